"""Words of the prompt that pictures were made with, by the attention that was seen while they were made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..contracts import TapSpec
from ..errors import InputError
from ..images import resize
from ..shapes import Float, Size
from .config import AttentionConfig
from .finding import found_in, grid_of, logits_of
from .presence import MEASURES, Evidence, score
from .prompts import Prompt
from .reading import Attention


@dataclasses.dataclass(frozen=True)
class CapturedAttention:
    """As `contracts.Captured`, for the attention head: phrases of `prompt` need no further pass.

    `attention` was read over latents of `latent_size` while `prompt` made them, a row a picture: after DAAM (Tang et
    al., ACL 2023, arXiv 2210.04885), with the recipe of the attention head.
    """

    attention: Attention
    prompt: Prompt
    latent_size: Size

    @property
    def phrases(self) -> tuple[str, ...]:
        """Those that need no further pass."""
        return self.prompt.phrases

    def fitted_to(self, config: AttentionConfig, latents: Float[Tensor, "b c h w"]) -> CapturedAttention:
        """Itself: its maps are resized where they are read. Raises InputError for another number of pictures."""
        pictures = len(next(iter(self.attention.cross.values()), latents))
        if pictures != len(latents):
            raise InputError(
                f"Expected captured attention of as many pictures as latents ({len(latents)}), got {pictures}."
            )
        return self

    def rows(self, images: slice) -> CapturedAttention:
        """That of some of the pictures."""
        parts = ({block: maps[images] for block, maps in part.items()} for part in self.attention)
        return dataclasses.replace(self, attention=Attention(*parts))

    def lacks_links(self, config: AttentionConfig) -> bool:
        """Whether its maps have to be propagated along self-attention that was not read: merged, tiled or skipped."""
        return bool(config.steps and self.prompt.phrases and not self.attention.self_attention)

    def linked(self, links: Mapping[str, Tensor], latent_size: Size) -> CapturedAttention:
        """With the self-attention of another pass, over latents of `latent_size`."""
        device = next(iter(self.attention.cross.values())).device
        placed = {block: maps.to(device) for block, maps in links.items()}
        return dataclasses.replace(self, attention=Attention(self.attention.cross, placed), latent_size=latent_size)

    def by_phrase(
        self, config: AttentionConfig, specs: Mapping[str, TapSpec], latents: Float[Tensor, "b c h w"]
    ) -> dict[str, tuple[Float[Tensor, "b h w"], Float[Tensor, " b"]]]:
        """Logits and scores of each phrase of the prompt, on the grid that a pass over `latents` would have."""
        if not self.prompt.phrases:
            return {}
        found = found_in(self.attention, self.prompt, config, specs, self.latent_size)
        size = grid_of(config, specs, (latents.shape[2], latents.shape[3]))
        logits = resize(logits_of(found, config), size).to(latents.device)
        scores = _scores(found.evidence, config).to(latents.device)
        return {phrase: (logits[:, i], scores[:, i]) for i, phrase in enumerate(self.prompt.phrases)}


@dataclasses.dataclass(frozen=True)
class CapturedTexts:
    """As CapturedAttention, where pictures were made with one text or several; a phrase is of one of `parts`."""

    parts: tuple[CapturedAttention, ...]

    @property
    def phrases(self) -> tuple[str, ...]:
        """Those that need no further pass."""
        return tuple(phrase for part in self.parts for phrase in part.prompt.phrases)

    def fitted_to(self, config: AttentionConfig, latents: Float[Tensor, "b c h w"]) -> CapturedTexts:
        """Itself, as CapturedAttention."""
        return self._each(lambda part: part.fitted_to(config, latents))

    def rows(self, images: slice) -> CapturedTexts:
        """That of some of the pictures."""
        return self._each(lambda part: part.rows(images))

    def lacks_links(self, config: AttentionConfig) -> bool:
        """Whether any lacks them."""
        return any(part.lacks_links(config) for part in self.parts)

    def linked(self, links: Mapping[str, Tensor], latent_size: Size) -> CapturedTexts:
        """With the self-attention of another pass, over latents of `latent_size`."""
        return self._each(lambda part: part.linked(links, latent_size))

    def by_phrase(
        self, config: AttentionConfig, specs: Mapping[str, TapSpec], latents: Float[Tensor, "b c h w"]
    ) -> dict[str, tuple[Float[Tensor, "b h w"], Float[Tensor, " b"]]]:
        """Logits and scores of each phrase, as CapturedAttention."""
        return {name: pair for part in self.parts for name, pair in part.by_phrase(config, specs, latents).items()}

    def _each(self, change: Callable[[CapturedAttention], CapturedAttention]) -> CapturedTexts:
        return CapturedTexts(tuple(map(change, self.parts)))


def _scores(evidence: Evidence, config: AttentionConfig) -> Float[Tensor, "b p"]:
    """By a measure that needs no pass; 1 where the head's own needs some: the pictures were made of these words."""
    measure = MEASURES.get(config.presence.measure)
    if measure is None:
        return torch.ones(evidence.shares.shape[:2], dtype=torch.float32, device=evidence.shares.device)
    return score(measure(evidence), config.presence)
