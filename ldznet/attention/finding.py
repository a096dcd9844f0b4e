"""Where the phrases of a prompt are, by attention that was read in whatever pass: steps 3 to 5 of the recipe.

`head` reads attention in passes of its own, `captured` has a sampler's. Imports this folder's tensor functions alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..contracts import TapSpec
from ..shapes import Float, Size, tap_size
from .config import AttentionConfig, blocks_at
from .maps import group_means, min_max, propagated, shares, sharpened, token_maps
from .presence import Evidence
from .prompts import Prompt
from .reading import Attention


class Found(NamedTuple):
    """What a prompt's phrases look like: `maps` are stretched and propagated, `evidence` keeps the common scale."""

    maps: Float[Tensor, "b p h w"]
    evidence: Evidence


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
        links = sharpened(torch.stack(list(attention.self_attention.values())).mean(dim=0), config.sharpening)
        filled = propagated(maps, links, config.steps, stretch=False)
        stretched = min_max(propagated(stretched, links, config.steps))
    bare = group_means(token_maps(attention.cross, levels, size, normalised=False), groups)
    p = len(prompt.phrases)
    evidence = Evidence(bare[:, :p], maps[:, :p], filled[:, :p], bare[:, p:], filled[:, p:])
    return Found(stretched, evidence)


def logits_of(found: Found, config: AttentionConfig) -> Float[Tensor, "b p h w"]:
    """Logits that are 0 at the threshold, and a straight line of the map: resizing them resizes the map.

    Of concepts the threshold is each map's own mean.

    On the scale "common", 0 is where a phrase draws level with the best background word, and the largest of several
    phrases' logits is the most fitting phrase.
    """
    if config.concepts:
        return config.steepness * (found.maps - found.maps.mean(dim=(2, 3), keepdim=True))
    if config.scale == "phrase":
        return config.steepness * (found.maps - config.threshold)
    filled, background = found.evidence.filled, found.evidence.filled_background
    most = torch.cat([filled, background], dim=1).amax(dim=(1, 2, 3), keepdim=True)
    rival = background.amax(dim=1, keepdim=True) if background.shape[1] else config.threshold * most
    return config.steepness * (filled - rival) / most


def grid_of(config: AttentionConfig, specs: Mapping[str, TapSpec], latent_size: Size) -> Size:
    """The size at which maps are propagated: that of the self-attention."""
    return tap_size(latent_size, specs[blocks_at(config.self_attention, specs)[0]].stride)
