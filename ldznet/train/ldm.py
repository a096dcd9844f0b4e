"""Training the tiny latent diffusion model: the UNet, on captions that a frozen text encoder reads, as in SD.

The model predicts the noise. Where noise dominates, its loss is weighted as that of v (Salimans and Ho, ICLR 2022),
1 / alpha: an error in the noise is divided by sqrt(alpha) on its way into the picture, and unweighted it left the
brightness of whole pictures adrift. Where the picture dominates, min-SNR bounds the weight (Hang et al., ICCV 2023).
A tenth of the captions is dropped, for classifier-free guidance.

Which thing was asked for changes few latents by little, against textures and noise that nobody can foresee; left to
the squared error alone, categories come long after colours and grounds. So the picture that each prediction implies
is also compared in the features of a frozen judge of latents (a perceptual loss on the predicted latents, after Lin
and Yang, arXiv 2401.00110, who take the diffusion model's own features), and where a caption speaks of one kind of
thing, the judge must name it in that picture: classifier guidance (Dhariwal and Nichol, NeurIPS 2021) learned instead
of added while sampling. Captions are all that is learned from; masks tell only which images show one large thing.

A picture of several things can be denoised without knowing which noun means which of them, and then no noun's attention
tells. With `binding`, each noun's cross-attention is drawn to where the judge, who learned from captions of one thing,
sees that kind of thing: the token loss of TokenCompose (Wang et al., CVPR 2024), with the judge in the place of its
segmenter. What it does, for better and worse, stands in docs/experiments.md; the shipped UNet was trained without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..attention.reading import PARTS
from ..clip_bpe import Tokenizer
from ..data.cache import Cache, latents_of
from ..models import UNet
from ..schedule import NUM_TIMESTEPS, alphas_cumprod
from ..taps import transformers_of, watching
from ..tinyworld.namer import Namer
from ..tinyworld.shapes import CATEGORIES
from ..tinyworld.text import TextEncoder
from .engine import channels_last

CAPTION_DROP = 0.1
MIN_SNR_GAMMA = 5.0
PERCEPTUAL_WEIGHT, NAMING_WEIGHT = 5.0, 0.3
BINDING_STRIDE = 2  # the coarsest blocks whose attention is bound: 8 x 8 of 16 x 16 latents
UNNAMED = -1  # the category of an image whose caption names several or none
# Below these timesteps latents of 16 x 16 show which thing they hold, above them hardly anything: half of all batches.
DECISIVE = (350, 850)
LARGE, LARGE_SHARE = 0.06, 0.4  # share of an image that its only thing covers at least, and of such images in a batch


class Denoising(nn.Module):
    """The UNet as a module whose forward is the loss; text encoder and judge are no part of what is trained.

    `binding` is the weight with which `nouns`, the token of each category in their order, are drawn to their things.
    """

    weights: Tensor  # of the loss, by timestep
    alphas: Tensor
    nouns: Tensor

    def __init__(
        self,
        unet: UNet,
        text: TextEncoder,
        judge: Namer | None,
        nouns: Sequence[int] = (),
        binding: float = 0.0,
    ) -> None:
        super().__init__()
        self.unet, self.binding = unet, binding
        self.frozen = (text.requires_grad_(False), judge.requires_grad_(False) if judge else None)  # a tuple hides them
        alphas = alphas_cumprod()
        self.register_buffer("alphas", alphas.float(), persistent=False)
        snr = alphas / (1 - alphas)
        weights = snr.clamp(max=MIN_SNR_GAMMA) / snr / alphas
        self.register_buffer("weights", weights.float(), persistent=False)
        self.register_buffer("nouns", torch.tensor(nouns, dtype=torch.int64, device="cpu"), persistent=False)
        attentions = _bound_attentions(unet) if binding else {}
        self.bound = list(attentions)
        self.read = {f"{block}.{part}": getattr(a, part) for block, a in attentions.items() for part in PARTS}

    def _apply(self, fn: Any, recurse: bool = True) -> Denoising:
        for module in self.frozen:
            if module:
                module._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(
        self, latents: Tensor, noise: Tensor, timesteps: Tensor, ids: Tensor, categories: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        text, judge = self.frozen
        alphas = self.alphas[timesteps]
        a = alphas[:, None, None, None]
        noisy = a.sqrt() * latents + (1 - a).sqrt() * noise
        parts: dict[str, Tensor] = {}
        with watching(self.read, parts.__setitem__, end_early=False):
            eps = self.unet(noisy, timesteps, text(ids)).float()
        mse = ((eps - noise) ** 2).mean(dim=(1, 2, 3))
        loss, figures = (mse * self.weights[timesteps]).mean(), {"mse": mse.detach().mean()}
        if judge is None:
            return loss, figures
        with torch.autocast(latents.device.type, enabled=False):
            implied = (noisy - (1 - a).sqrt() * eps) / a.sqrt()
            maps = judge.maps(implied)
            with torch.no_grad():
                wanted = judge.maps(latents)
            seen = (alphas * perceptual_distance(maps, wanted)).mean()
            naming = F.cross_entropy(judge.read(maps)[0], categories, ignore_index=UNNAMED, reduction="none")
            named = (alphas.sqrt() * naming).mean()
            loss = loss + PERCEPTUAL_WEIGHT * seen + NAMING_WEIGHT * named
            figures |= {"seen": seen.detach(), "named": named.detach()}
            if self.binding:
                bound = self._astray(parts, ids, alphas, *judge.places(wanted))
                loss, figures["bound"] = loss + self.binding * bound, bound.detach()
        return loss, figures

    def _astray(
        self, parts: dict[str, Tensor], ids: Tensor, alphas: Tensor, places: Tensor, certainty: Tensor
    ) -> Tensor:
        """How far the nouns of each text attend to elsewhere, where the judge is sure and the picture can be seen."""
        heads = self.unet.config.num_heads
        said = (ids[:, :, None] == self.nouns).float()
        weights = certainty * said.amax(dim=1) * alphas[:, None]
        astray = [
            share_astray(noun_maps(parts[f"{block}.to_q"], parts[f"{block}.to_k"], said, heads), places)
            for block in self.bound
        ]
        return (weights * torch.stack(astray).mean(dim=0)).sum() / weights.sum().clamp(min=1)


def _bound_attentions(unet: UNet) -> dict[str, Any]:
    """The cross-attention layers of the finer blocks; not the first one's, which sees too little of the picture."""
    blocks = [spec.block for spec in unet.config.tap_specs().values() if spec.stride <= BINDING_STRIDE][1:]
    transformers: dict[str, Any] = transformers_of(unet, blocks)
    return {block: transformer.transformer_blocks[0].attn2 for block, transformer in transformers.items()}


def noun_maps(query: Tensor, key: Tensor, said: Tensor, heads: int) -> Tensor:
    """How much each pixel attends to the nouns: b n c, from queries b n d, keys b m d and `said` b m c, which says
    where in the text each of c nouns stands."""
    q, k = (rearrange(x, "b n (heads c) -> b heads n c", heads=heads).float() for x in (query, key))
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    return scores.softmax(dim=-1).mean(dim=1) @ said


def share_astray(maps: Tensor, places: Tensor) -> Tensor:
    """-log of the share of each noun's attention that lies where it should, b c; `maps` b n c of a square picture,
    `places` b c h w in [0, 1]."""
    side = math.isqrt(maps.shape[1])
    wanted = F.interpolate(places, size=(side, side), mode="bilinear").flatten(2).transpose(1, 2)
    return -(((maps * wanted).sum(dim=1) + 1e-6) / (maps.sum(dim=1) + 1e-6)).log()


def perceptual_distance(maps: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Mean squared difference of a judge's maps at cells of 8 and 16 pixels, b."""
    return torch.stack([((a - b) ** 2).mean(dim=(1, 2, 3)) for a, b in zip(maps[1:], wanted[1:], strict=True)]).sum(0)


class LDMTask:
    """Batches of cached latents with one of their captions each, from all `caches` alike."""

    def __init__(
        self,
        unet: UNet,
        text: TextEncoder,
        tokenizer: Tokenizer,
        caches: Sequence[Cache],
        judge: Namer | None = None,
        binding: float = 0.0,
    ) -> None:
        nouns = [tokenizer.ids(category)[0] for category in CATEGORIES]
        self.module = channels_last(Denoising(unet, text, judge, nouns, binding))
        self.latents = latents_of(caches)
        records = [record for cache in caches for record in cache.records]
        captions = [[tokenizer.encode(caption) for caption in record["captions"]] for record in records]
        self.captions = torch.tensor(captions, dtype=torch.int16)
        self.empty = torch.tensor(tokenizer.encode(""))
        self.categories = torch.tensor([only_category(record["captions"]) for record in records])
        covered = torch.cat([torch.from_numpy(cache.coverage()) for cache in caches])
        self.large = torch.nonzero((covered >= LARGE) & (self.categories != UNNAMED))[:, 0]

    def batch(self, step: int, size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        index = self._images(size, generator)
        latents = self.latents[index].float().contiguous(memory_format=torch.channels_last)
        ids = self.captions[index, torch.randint(self.captions.shape[1], (size,), generator=generator)].long()
        dropped = torch.rand(size, generator=generator) < CAPTION_DROP
        ids[dropped] = self.empty
        categories = self.categories[index].masked_fill(dropped, UNNAMED)
        timesteps = torch.randint(NUM_TIMESTEPS, (size,), generator=generator)
        timesteps[::2] = torch.randint(*DECISIVE, timesteps[::2].shape, generator=generator)
        noise = torch.randn(latents.shape, generator=generator).contiguous(memory_format=torch.channels_last)
        return latents, noise, timesteps, ids, categories

    def loss(self, module: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        return module(*batch)

    def _images(self, size: int, generator: torch.Generator) -> Tensor:
        """Places of `size` images: of one large thing, where there are any, or any image."""
        index = torch.randint(len(self.latents), (size,), generator=generator)
        if len(self.large):
            large = self.large[torch.randint(len(self.large), (size,), generator=generator)]
            index = torch.where(torch.rand(size, generator=generator) < LARGE_SHARE, large, index)
        return index


def only_category(captions: Sequence[str]) -> int:
    """The place in CATEGORIES of the one kind of thing that all `captions` of an image name; UNNAMED where several."""
    named = {word for caption in captions for word in caption.replace(",", "").split() if word in CATEGORIES}
    return list(CATEGORIES).index(named.pop()) if len(named) == 1 else UNNAMED
