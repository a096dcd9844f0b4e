"""Training the tiny world's joint-attention transformer: flow matching on captions that a frozen text encoder reads.

What `ldm.py` says of the squared error holds here too: which thing was asked for changes few latents by little. So
half of each batch shows one large thing at the noise between which its shape is decided, and there the latents that the
prediction implies are compared in the features of a frozen judge, who must also name the captioned thing in them. A
tenth of the captions is dropped, for classifier-free guidance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..clip_bpe import Tokenizer
from ..data.cache import Cache, latents_of
from ..tinyworld import joint
from ..tinyworld.namer import Namer
from ..tinyworld.text import TextEncoder
from .ldm import (
    CAPTION_DROP,
    LARGE,
    NAMING_WEIGHT,
    PERCEPTUAL_WEIGHT,
    UNNAMED,
    only_category,
    perceptual_distance,
)

# Share of noise: as noisy as the timesteps 350 to 850 of SD's schedule, between which `ldm.DECISIVE` says that latents
# come to show which thing they hold.
DECISIVE = (0.5, 0.86)


class Flowing(nn.Module):
    """The transformer as a module whose forward is the loss; text encoder and judge are no part of what is trained."""

    def __init__(self, transformer: nn.Module, text: TextEncoder, judge: Namer | None) -> None:
        super().__init__()
        self.transformer = transformer
        self.frozen = (text.requires_grad_(False), judge.requires_grad_(False) if judge else None)  # a tuple hides them

    def _apply(self, fn: Any, recurse: bool = True) -> Flowing:
        for module in self.frozen:
            if module:
                module._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(
        self, latents: Tensor, noise: Tensor, sigmas: Tensor, ids: Tensor, categories: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        text, judge = self.frozen
        s = sigmas[:, None, None, None]
        noisy = (1 - s) * latents + s * noise
        context, pooled = joint.read(text, ids)
        flow = self.transformer(noisy, context, pooled, sigmas * joint.NUM_TIMESTEPS, return_dict=False)[0].float()
        mse = ((flow - (noise - latents)) ** 2).mean()
        loss, figures = mse, {"mse": mse.detach()}
        if judge is None:
            return loss, figures
        rows = slice(0, None, 2)  # those of one large thing
        with torch.autocast(latents.device.type, enabled=False):
            maps = judge.maps((noisy - s * flow)[rows])
            with torch.no_grad():
                wanted = judge.maps(latents[rows])
            visible = ((1 - sigmas) ** 2 / ((1 - sigmas) ** 2 + sigmas**2))[rows]
            seen = (visible * perceptual_distance(maps, wanted)).mean()
            naming = F.cross_entropy(judge.read(maps)[0], categories[rows], ignore_index=UNNAMED, reduction="none")
            named = (visible.sqrt() * naming).mean()
        loss = loss + PERCEPTUAL_WEIGHT / 2 * seen + NAMING_WEIGHT * named
        return loss, {**figures, "seen": seen.detach(), "named": named.detach()}


class JointTask:
    """Batches of cached latents with one of their captions each: every second one of a single large thing, where there
    are any, the others from all `caches` alike."""

    def __init__(
        self,
        transformer: nn.Module,
        text: TextEncoder,
        tokenizer: Tokenizer,
        caches: Sequence[Cache],
        judge: Namer | None = None,
    ) -> None:
        self.module = Flowing(transformer, text, judge)
        self.latents = latents_of(caches)
        records = [record for cache in caches for record in cache.records]
        ids = [[joint.token_ids(tokenizer, caption) for caption in record["captions"]] for record in records]
        self.captions = torch.tensor(ids, dtype=torch.int16)
        self.empty = torch.tensor(joint.token_ids(tokenizer, ""))
        self.categories = torch.tensor([only_category(record["captions"]) for record in records])
        covered = torch.cat([torch.from_numpy(cache.coverage()) for cache in caches])
        self.large = torch.nonzero((covered >= LARGE) & (self.categories != UNNAMED))[:, 0]

    def batch(self, step: int, size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        index = torch.randint(len(self.latents), (size,), generator=generator)
        sigmas = torch.rand(size, generator=generator)
        if len(self.large):
            index[::2] = self.large[torch.randint(len(self.large), index[::2].shape, generator=generator)]
        sigmas[::2] = DECISIVE[0] + (DECISIVE[1] - DECISIVE[0]) * sigmas[::2]
        ids = self.captions[index, torch.randint(self.captions.shape[1], (size,), generator=generator)].long()
        dropped = torch.rand(size, generator=generator) < CAPTION_DROP
        ids[dropped] = self.empty
        latents = self.latents[index].float()
        noise = torch.randn(latents.shape, generator=generator)
        return latents, noise, sigmas, ids, self.categories[index].masked_fill(dropped, UNNAMED)

    def loss(self, module: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        return module(*batch)


class Drawing:
    """How often what is drawn from captions is what they name: the share of them in whose pictures a judge of pixels
    finds the captioned category."""

    def __init__(
        self,
        models: Any,
        judge: Namer,
        captions: Sequence[str],
        categories: Sequence[int],
        steps: int = 14,
        guidance: float = 4.0,
    ) -> None:
        """`models`: the tiny world's, of which the VAE, the text encoder and the tokenizer are taken."""
        ids = [torch.tensor([joint.token_ids(models.tokenizer, text) for text in texts]) for texts in (captions, [""])]
        self.text, self.empty = (joint.read(models.text, part.expand(len(captions), -1)) for part in ids)
        self.vae, self.judge, self.categories = models.vae, judge.eval(), torch.tensor(categories)
        self.steps, self.guidance = steps, guidance
        shape = (len(captions), joint.CONFIG["in_channels"], joint.CONFIG["sample_size"], joint.CONFIG["sample_size"])
        self.noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def found(self, transformer: nn.Module) -> Tensor:
        """For each caption, whether the judge names its category first."""
        latents = joint.sample(transformer, self.noise, self.text, self.empty, self.steps, self.guidance)
        return self.judge(self.vae.decode(latents).clamp(-1, 1))[0].argmax(1) == self.categories
