"""A small convolutional network that names the thing in a picture or in latents: the judge of the gates.

As a classifier it reads pixels, as a probe it reads latents. It judges; no head and no host ever uses it.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from ..shapes import Float
from .shapes import CATEGORIES
from .surfaces import COLOURS
from .vae import LATENT_CHANNELS, PATCH

NAMES = (*CATEGORIES, *COLOURS)
LAYERS = 6  # of each scale


class Namer(nn.Module):
    """Logits of every category and of every colour, from the `sort` "pixels" (b 3 h w) or "latents" (b 4 h w)."""

    def __init__(self, sort: str) -> None:
        super().__init__()
        widths = (3 * PATCH**2, 32, 64, 128)  # from cells of 4 x 4 pixels on, for pixels and latents alike
        unfolded = nn.Sequential(nn.Conv2d(LATENT_CHANNELS, 4 * widths[0], 3, padding=1), nn.PixelShuffle(2))
        layers: list[nn.Module] = [nn.PixelUnshuffle(PATCH) if sort == "pixels" else unfolded]
        for i, (before, width) in enumerate(pairwise(widths)):
            layers += [nn.Conv2d(before, width, 3, stride=1 if i == 0 else 2, padding=1), *_refined(width)]
        self.body = nn.Sequential(*layers)
        self.names = nn.Linear(2 * widths[-1], len(NAMES))

    def forward(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b categories"], Float[Tensor, "b colours"]]:
        return self.read(self.maps(x))

    def read(
        self, maps: list[Float[Tensor, "b _ _ _"]]
    ) -> tuple[Float[Tensor, "b categories"], Float[Tensor, "b colours"]]:
        """The logits, from what `maps` found."""
        h = maps[-1]
        logits = self.names(torch.cat([h.mean(dim=(2, 3)), h.amax(dim=(2, 3))], dim=1))
        return logits[:, : len(CATEGORIES)], logits[:, len(CATEGORIES) :]

    def places(
        self, maps: list[Float[Tensor, "b _ _ _"]]
    ) -> tuple[Float[Tensor, "b categories h w"], Float[Tensor, "b categories"]]:
        """Where each category is seen, from 0 to 1 at its peak, and how sure that peak is: its share among categories.

        The readout of the largest values, at every cell (class activation maps, Zhou et al., CVPR 2016).
        """
        h = maps[-1]
        weight = self.names.weight[: len(CATEGORIES), h.shape[1] :]
        evidence = torch.einsum("kc,bchw->bkhw", weight, h)
        shares = evidence.softmax(dim=1)
        places = shares * (evidence - evidence.mean(dim=1, keepdim=True)).relu()
        return places / places.amax(dim=(2, 3), keepdim=True).clamp(min=1e-6), shares.amax(dim=(2, 3))

    def maps(self, x: Float[Tensor, "b c h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        """What the network sees at cells of 4, 8 and 16 pixels: 32, 64 and 128 channels."""
        found = []
        for i, layer in enumerate(self.body):
            x = layer(x)
            if i and i % LAYERS == 0:
                found.append(x)
        return found


def _refined(width: int) -> list[nn.Module]:
    return [nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU()]


def labels_of(phrase: str) -> tuple[int, int]:
    """Category and colour, as places in CATEGORIES and COLOURS, of a phrase that names both: "a red star"."""
    *_, colour, category = phrase.split()
    return list(CATEGORIES).index(category), list(COLOURS).index(colour)
