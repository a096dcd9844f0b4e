"""The training-free head: a mask from the attention of whatever model is loaded. Imports no host.

Keeps `contracts.Head`; the recipe is iSeg's propagation with GoCA's per-pixel rescaling: `attend` runs a pass,
`finding.found_in` makes maps of what it shows, with the constants of `AttentionConfig`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ..contracts import AttentionHost, Captured, Conditioning, Host
from ..errors import HostError, InputError
from ..schedule import seeded_noise
from ..shapes import Float, Int
from .captured import CapturedAttention, CapturedTexts
from .concepts import concepts_of, numbered, with_concepts
from .config import BY_CONCEPTS, SD, AttentionConfig, blocks_at, concept_config, config_for, require_readable
from .denoising import RIVALS, gains
from .finding import Found, found_in, grid_of, logits_of
from .presence import MEASURES, score
from .prompts import Prompt, prompts_of, texts_of
from .reading import Attention, reader_of


class AttentionHead(nn.Module):
    """A head without parameters. `config` None: the constants of the host's family, once it is `fitted_to` one, by
    concept attention if `concepts`."""

    def __init__(self, config: AttentionConfig | None = None, concepts: bool = False) -> None:
        super().__init__()
        self.given, self.concepts = config, concepts
        self.head_config = config or (dataclasses.replace(SD, **BY_CONCEPTS) if concepts else SD)

    def fitted_to(self, host: Host) -> AttentionHead:
        """The head for this host. Raises HostError for one that does not show the attention that is read here."""
        if not isinstance(host, AttentionHost):
            name = type(host).__name__
            raise HostError(f"Expected a host that shows its attention, got {name}. Open a Stable Diffusion model.")
        fitted = AttentionHead(self.given or (concept_config if self.concepts else config_for)(host))
        require_readable(fitted.head_config, host)
        return fitted

    @torch.no_grad()
    def segment(
        self,
        host: Host,
        latents: Float[Tensor, "b c h w"] | None,
        phrases: Sequence[str],
        *,
        timestep: int,
        seed: int,
        captured: Captured | None = None,
        pixels: Float[Tensor, "b 3 _ _"] | None = None,
    ) -> tuple[Float[Tensor, "b p H W"], Float[Tensor, "b p"]]:
        """As `contracts.Head.segment`; logits are 0 at the configuration's threshold. `pixels` are not read.

        Phrases share a pass as far as 77 tokens hold them, and compete there: one's mask depends a little on the
        others. Those that `captured` shows take no pass. Raises InputError for a phrase that no prompt can hold, and
        for latents beyond `most_positions`.
        """
        assert latents is not None
        config, clean = self.head_config, latents.to(host.dtype)
        if config.concepts and captured is not None:
            raise InputError(
                "Expected no capture for concept attention, got one: it takes passes of its own. For a capture, take "
                "the head attention (no download)."
            )
        seen = cast("CapturedAttention | CapturedTexts | None", captured)
        spoken = () if seen is None else seen.phrases
        others = [phrase for phrase in phrases if phrase not in spoken]
        lacking = seen is not None and seen.lacks_links(config)
        asked = others or (spoken if lacking else ())
        found, links = self._by_passes(cast(AttentionHost, host), clean, asked, timestep, seed)
        known: dict[str, tuple[Tensor, Tensor]] = {}
        if seen is not None:
            seen = seen.linked(links, (clean.shape[2], clean.shape[3])) if lacking else seen
            known = seen.by_phrase(config, host.specs, clean)
        if others:
            maps = torch.cat([logits_of(part, config) for part in found], dim=1)
            scores = score(measured(cast(AttentionHost, host), clean, others, found, config, seed), config.presence)
            known |= {phrase: (maps[:, i], scores[:, i]) for i, phrase in enumerate(others)}
        logits, scores = (torch.stack([known[phrase][part] for phrase in phrases], dim=1) for part in (0, 1))
        return logits.float(), scores.float()

    def _by_passes(
        self, host: AttentionHost, latents: Tensor, phrases: Sequence[str], timestep: int, seed: int
    ) -> tuple[list[Found], dict[str, Tensor]]:
        """What passes of the head's own find, as few as hold all `phrases`, and the self-attention of the first."""
        config = self.head_config
        steps = torch.full((len(latents),), timestep, dtype=torch.int64, device=latents.device)
        noise = seeded_noise((1, *latents.shape[1:]), seed).to(latents).expand_as(latents)
        noisy, size = host.add_noise(latents, noise, steps), (latents.shape[2], latents.shape[3])
        found: list[Found] = []
        links: dict[str, Tensor] = {}
        for prompt in prompts_of(phrases, config, texts_of(host)):
            attention = attend(host, noisy, steps, prompt, config)
            placed = numbered(prompt, config) if config.concepts else prompt
            found.append(found_in(attention, placed, config, host.specs, size))
            links = links or attention.self_attention
        return found, links


def measured(
    host: AttentionHost,
    latents: Float[Tensor, "b c h w"],
    phrases: Sequence[str],
    found: Sequence[Found],
    config: AttentionConfig,
    seed: int,
) -> Float[Tensor, "b p"]:
    """The measure of presence that `config` names: of what the prompts' passes `found`, or by passes of its own."""
    name = config.presence.measure
    if name in MEASURES:
        return torch.cat([MEASURES[name](part.evidence) for part in found], dim=1)
    return gains(host, latents, config.opening, phrases, config.presence.timesteps, seed, RIVALS[name])


def attend(
    host: AttentionHost,
    latents: Float[Tensor, "b c h w"],
    timesteps: Int[Tensor, " b"],
    prompt: Prompt,
    config: AttentionConfig,
) -> Attention:
    """The attention of one conditional pass with `prompt`, the rows of its phrases' tokens rescaled."""
    size = (latents.shape[2], latents.shape[3])
    positions = torch.Size(grid_of(config, host.specs, size)).numel() if config.steps else 0
    if positions > config.most_positions:
        raise InputError(
            f"Expected at most {config.most_positions} positions of self-attention, got {positions}. "
            'Use a smaller image, or resolution "head".'
        )
    cross = blocks_at((*config.coarse, *config.fine), host.specs)
    self_blocks = blocks_at(config.self_attention, host.specs) if config.steps else ()
    conditioning = rescaled(host.condition([prompt.text]), prompt, config.rescaling, len(latents))
    how: dict[str, int] = {}
    if config.concepts:
        concepts = concepts_of(prompt, config)
        conditioning, how = with_concepts(host, conditioning, concepts, config), {"concepts": len(concepts)}
    return host.observe(
        latents,
        timesteps,
        conditioning,
        lambda network: reader_of(host)(network, cross, self_blocks, host.specs, size, **how),
    )


def rescaled(conditioning: Conditioning, prompt: Prompt, factor: float, batch: int) -> Conditioning:
    """A copy for a `batch`, in which the rows of the phrases' content tokens are `factor` times as long."""
    context = conditioning.context.repeat(batch, 1, 1)
    if factor != 1:  # else rows of the text may be others than those of the context, as HiDream's are
        context[:, sorted({token for tokens in prompt.phrase_tokens for token in tokens})] *= factor
    extras = {
        name: extra.repeat(batch, *[1] * (extra.ndim - 1)) if extra.ndim > 1 and len(extra) == 1 else extra
        for name, extra in conditioning.extras.items()
    }
    return dataclasses.replace(conditioning, context=context, extras=extras)
