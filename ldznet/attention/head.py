"""The training-free head: a mask from the attention of whatever Stable Diffusion is loaded. Imports no host.

Keeps `contracts.JointSegmenter`; the recipe is iSeg's propagation with GoCA's per-pixel rescaling, step by step in
`read_prompt`, with the constants of `AttentionConfig`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..contracts import AttentionHost, Conditioning, Host, TapSpec
from ..errors import HostError, InputError
from ..schedule import seeded_noise
from ..shapes import Float, Int, Size, tap_size
from .config import SD, AttentionConfig, blocks_at, config_for, require_readable
from .denoising import RIVALS, gains
from .maps import group_means, min_max, propagated, shares, sharpened, token_maps
from .presence import MEASURES, Evidence, score
from .prompts import Prompt, prompts_of
from .reading import Attention, reading_attention


class Found(NamedTuple):
    """What a prompt's phrases look like: `maps` are stretched and propagated, `evidence` keeps the common scale."""

    maps: Float[Tensor, "b p h w"]
    evidence: Evidence


class AttentionHead(nn.Module):
    """A head without parameters. `config` None: the constants of the host's family, once it is `fitted_to` one."""

    def __init__(self, config: AttentionConfig | None = None) -> None:
        super().__init__()
        self.given = config
        self.head_config = config or SD

    def fitted_to(self, host: Host) -> AttentionHead:
        """The head for this host. Raises HostError for one that does not show the attention that is read here."""
        if not isinstance(host, AttentionHost):
            name = type(host).__name__
            raise HostError(f"Expected a host that shows its attention, got {name}. Open a Stable Diffusion model.")
        fitted = AttentionHead(self.given or config_for(host.family))
        require_readable(fitted.head_config, host)
        return fitted

    @torch.no_grad()
    def segment_together(
        self, host: Host, latents: Float[Tensor, "b 4 h w"], phrases: Sequence[str], timestep: int, seed: int
    ) -> tuple[Float[Tensor, "b p h w"], Float[Tensor, "b p"]]:
        """Logits (0 at the configuration's threshold) and scores of all phrases, from clean latents.

        Phrases share a pass as far as 77 tokens hold them, and compete there: one's mask depends a little on the
        others. Raises InputError for a phrase that no prompt can hold, and for latents beyond `most_positions`.
        """
        assert isinstance(host, AttentionHost)
        config, steps = self.head_config, torch.full((len(latents),), timestep, device=latents.device)
        noise = seeded_noise((1, *latents.shape[1:]), seed).to(latents).expand_as(latents)
        noisy = host.add_noise(latents, noise, steps)
        prompts = prompts_of(phrases, config, host.tokenize)
        found = [read_prompt(host, noisy, steps, prompt, config) for prompt in prompts]
        logits = torch.cat([logits_of(part, config) for part in found], dim=1)
        return logits, score(measured(host, latents, phrases, found, config, seed), config.presence)


def measured(
    host: AttentionHost,
    latents: Float[Tensor, "b 4 h w"],
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


def read_prompt(
    host: AttentionHost,
    latents: Float[Tensor, "b 4 h w"],
    timesteps: Int[Tensor, " b"],
    prompt: Prompt,
    config: AttentionConfig,
) -> Found:
    """One pass for all phrases of `prompt`: the recipe of method.md section 7, steps 2 to 5."""
    size = (latents.shape[2], latents.shape[3])
    return found_in(attend(host, latents, timesteps, prompt, config), prompt, config, host.specs, size)


def found_in(
    attention: Attention, prompt: Prompt, config: AttentionConfig, specs: Mapping[str, TapSpec], latent_size: Size
) -> Found:
    """Where the phrases of `prompt` are, by attention that was read over latents of `latent_size`, in whatever pass."""
    size = grid_of(config, specs, latent_size)
    coarse, fine = (blocks_at(places, specs) for places in (config.coarse, config.fine))
    levels = ((coarse, config.weights[0]), (fine, config.weights[1]))
    groups = (*prompt.phrase_tokens, *prompt.background_tokens)
    tokens = token_maps(attention.cross, levels, size)
    maps = group_means(tokens, groups)
    if config.per_pixel:
        maps = shares(maps, tokens[:, sorted({token for group in groups for token in group})])
    filled, stretched = maps, min_max(maps[:, : len(prompt.phrases)])
    if config.steps:
        links = sharpened(torch.stack(list(attention.selves.values())).mean(dim=0), config.sharpening)
        filled = propagated(maps, links, config.steps, stretch=False)
        stretched = min_max(propagated(stretched, links, config.steps))
    bare = group_means(token_maps(attention.cross, levels, size, normalised=False), groups)
    p = len(prompt.phrases)
    evidence = Evidence(bare[:, :p], maps[:, :p], filled[:, :p], bare[:, p:], filled[:, p:])
    return Found(stretched, evidence)


def attend(
    host: AttentionHost,
    latents: Float[Tensor, "b 4 h w"],
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
    selves = blocks_at(config.selves, host.specs) if config.steps else ()
    conditioning = rescaled(host.condition([prompt.text]), prompt, config.rescaling, len(latents))
    return host.observe(
        latents,
        timesteps,
        conditioning,
        lambda unet: reading_attention(unet, cross, selves, host.specs, size),
    )


def rescaled(conditioning: Conditioning, prompt: Prompt, factor: float, batch: int) -> Conditioning:
    """A copy for a `batch`, in which the rows of the phrases' content tokens are `factor` times as long."""
    context = conditioning.context.repeat(batch, 1, 1)
    context[:, sorted({token for tokens in prompt.phrase_tokens for token in tokens})] *= factor
    extras = {name: extra.expand(batch, *extra.shape[1:]) for name, extra in conditioning.extras.items()}
    return dataclasses.replace(conditioning, context=context, extras=extras)


def logits_of(found: Found, config: AttentionConfig) -> Float[Tensor, "b p h w"]:
    """Logits that are 0 at the threshold, and a straight line of the map: resizing them resizes the map.

    On the scale "common", 0 is where a phrase draws level with the best background word, and the largest of several
    phrases' logits is the most fitting phrase.
    """
    if config.scale == "phrase":
        return config.steepness * (found.maps - config.threshold)
    filled, background = found.evidence.filled, found.evidence.filled_background
    most = torch.cat([filled, background], dim=1).amax(dim=(1, 2, 3), keepdim=True)
    rival = background.amax(dim=1, keepdim=True) if background.shape[1] else config.threshold * most
    return config.steepness * (filled - rival) / most


def grid_of(config: AttentionConfig, specs: Mapping[str, TapSpec], latent_size: Size) -> Size:
    """The size at which maps are propagated: that of the self-attention."""
    return tap_size(latent_size, specs[blocks_at(config.selves, specs)[0]].stride)
