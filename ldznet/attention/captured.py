"""Words of the prompt that a picture was made with, by the attention that was seen while it was made."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..contracts import Host
from ..images import resize
from ..shapes import Float, Size
from .config import AttentionConfig
from .head import AttentionHead, found_in, grid_of, logits_of
from .presence import MEASURES, Evidence, score
from .prompts import Prompt
from .reading import Attention


class CapturedAttention:
    """A `contracts.JointSegmenter` for one picture: phrases of `prompt` need no further pass, all others one and
    those of presence, where the head's configuration has any.

    `attention` was read over latents of `latent_size` while `prompt` made them: after DAAM (Tang et al., ACL 2023,
    arXiv 2210.04885), with the recipe of the attention head.
    """

    def __init__(self, head: AttentionHead, attention: Attention, prompt: Prompt, latent_size: Size) -> None:
        self.head, self.attention, self.prompt, self.latent_size = head, attention, prompt, latent_size

    @property
    def head_config(self) -> AttentionConfig:
        """The attention head's."""
        return self.head.head_config

    def fitted_to(self, host: Host) -> CapturedAttention:
        """Itself: it was fitted when the sampler ran."""
        return self

    def segment_together(
        self, host: Host, latents: Float[Tensor, "1 4 h w"], phrases: Sequence[str], timestep: int, seed: int
    ) -> tuple[Float[Tensor, "1 p h w"], Float[Tensor, "1 p"]]:
        """As AttentionHead's, on the same grid."""
        config = self.head_config
        found = found_in(self.attention, self.prompt, config, host.specs, self.latent_size)
        size = grid_of(config, host.specs, (latents.shape[2], latents.shape[3]))
        logits, scores = resize(logits_of(found, config), size).to(latents.device), _scores(found.evidence, config)
        columns = {phrase: (logits[:, i], scores[:, i]) for i, phrase in enumerate(self.prompt.phrases)}
        others = [phrase for phrase in phrases if phrase not in columns]
        if others:
            theirs = self.head.segment_together(host, latents, others, timestep, seed)
            columns |= {phrase: (theirs[0][:, i], theirs[1][:, i]) for i, phrase in enumerate(others)}
        maps, of_maps = zip(*(columns[phrase] for phrase in phrases), strict=True)
        return torch.stack(maps, dim=1), torch.stack([s.to(latents.device) for s in of_maps], dim=1)


def _scores(evidence: Evidence, config: AttentionConfig) -> Float[Tensor, "1 p"]:
    """By a measure that needs no pass; 1 where the head's own needs some: the picture was made of these words."""
    measure = MEASURES.get(config.presence.measure)
    return torch.ones(evidence.shares.shape[:2]) if measure is None else score(measure(evidence), config.presence)
