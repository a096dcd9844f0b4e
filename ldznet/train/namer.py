"""Training the judges of the gates: a classifier on pixels, a probe on latents, both on scenes of one thing."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.cache import Cache, images_to_pixels
from ..tinyworld.namer import Namer, labels_of
from .engine import channels_last


class Naming(nn.Module):
    """A namer as a module whose forward is the loss."""

    def __init__(self, namer: Namer) -> None:
        super().__init__()
        self.namer = namer

    def forward(self, x: Tensor, categories: Tensor, colours: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        category, colour = self.namer(x)
        loss = F.cross_entropy(category, categories) + 0.5 * F.cross_entropy(colour, colours)
        return loss, {"right": (category.argmax(1) == categories).float().mean()}


class NamerTask:
    """Batches of pixels or latents. A classifier sees half of its pictures as `decode` gives them back from latents, a
    probe half of its latents with noise of up to their own deviation, so that it bears those an LDM predicts.
    """

    def __init__(self, namer: Namer, cache: Cache, decode: Callable[[Tensor], Tensor] | None = None) -> None:
        if cache.latents is None:
            raise ValueError("Expected a cache with latents, got one without. Call add_latents first.")
        self.module = channels_last(Naming(namer))
        self.cache, self.latents, self.decode = cache, cache.latents, decode
        self.labels = labels(cache)

    def batch(self, step: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        index = torch.randint(len(self.cache), (size,), generator=generator)
        categories, colours = self.labels[index].T
        x = self.latents[index].float()
        if self.decode is not None:
            pixels = images_to_pixels(self.cache.images[index.numpy()])
            half = size // 2
            x = torch.cat([self.decode(x[:half]).clamp(-1, 1), pixels[half:]])
            x = x.flip(3) if torch.rand((), generator=generator) < 0.5 else x  # mirrored latents are no latents
        else:
            deviations = (2 * torch.rand(size, 1, 1, 1, generator=generator) - 1).clamp(min=0)
            x = x + deviations * torch.randn(x.shape, generator=generator)
        return x.contiguous(memory_format=torch.channels_last), categories, colours

    def loss(self, module: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        return module(*batch)


def labels(cache: Cache) -> Tensor:
    """Category and colour of the one thing in each image, n 2."""
    return torch.tensor([labels_of(record["phrases"][1]) for record in cache.records])
