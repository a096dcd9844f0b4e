"""Coarse regions without words: k-means over what the UNet itself shows of a picture, as in the paper's first figure.

A region means nothing by itself: pixels that the model sees alike are one. `ClusterHead` keeps `contracts.Head`, so
that a predictor gives a Segmentation whose phrases are the regions' names. Imports attention, taps and contracts, no
host.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from .attention.config import AttentionConfig, Presence, config_for
from .attention.reading import reading_attention
from .contracts import AttentionHost, Block, Captured, Host, TapSpec
from .errors import HostError, InputError
from .images import resize
from .schedule import seeded_noise
from .shapes import Float, Int
from .taps import reading

FEATURES, LINKS = "features", "self-attention"
KINDS = (FEATURES, LINKS)
TIMESTEP, TIMESTEPS = 200, (100, 300)  # benchmarks/coarse.py regions
MOST = 16  # regions
MOST_POSITIONS = 64 * 64  # of self-attention: a row of features for each
STEPS, TRIES = 25, 4  # of k-means, and its starts
SLOPE = 10.0  # logits per unit of distance, of which the mean distance between centres is one
EVERYTHING = Presence(middle=0.0, slope=0.0, found_from=0.0)  # a region is there by its making


class ClusterHead:
    """A head whose "phrases" are so many regions, whatever they are called: the largest first.

    `kind` "features": the hidden states of the UNet's early blocks, which see as finely as latents or half so. "self-
    attention": where each position looks, at the finest level that has it. One pass under no prompt.
    """

    def __init__(self, kind: str = FEATURES, config: AttentionConfig | None = None) -> None:
        if kind not in KINDS:
            raise InputError(f'Expected {" or ".join(KINDS)}, got "{kind}".')
        self.kind = kind
        self.head_config = dataclasses.replace(
            config or AttentionConfig(), timestep=TIMESTEP, timestep_range=TIMESTEPS, presence=EVERYTHING
        )

    def fitted_to(self, host: Host) -> ClusterHead:
        """The head for this host. Raises HostError for one that does not show its attention."""
        if not isinstance(host, AttentionHost):
            raise HostError(f"Expected a Stable Diffusion host, got {type(host).__name__}.")
        return ClusterHead(self.kind, config_for(host))

    @torch.no_grad()
    def segment(
        self,
        host: Host,
        latents: Float[Tensor, "b 4 h w"] | None,
        phrases: Sequence[str],
        *,
        timestep: int,
        seed: int,
        captured: Captured | None = None,
        pixels: Float[Tensor, "b 3 8*h 8*w"] | None = None,
    ) -> tuple[Float[Tensor, "b p H W"], Float[Tensor, "b p"]]:
        """As `contracts.Head.segment`: logits over 0 where a region is, and its share of the picture as its score."""
        assert latents is not None
        steps = torch.full((len(latents),), timestep, dtype=torch.int64, device=latents.device)
        noise = seeded_noise((1, *latents.shape[1:]), seed).to(latents).expand_as(latents)
        noisy = host.add_noise(latents.to(host.dtype), noise, steps)
        read = features_of if self.kind == FEATURES else links_of
        maps = read(cast(AttentionHost, host), noisy, steps)
        logits = torch.stack([regions_of(picture, len(phrases), seed) for picture in maps])
        shares = (logits > 0).float().mean(dim=(2, 3))
        return logits, shares.clamp(0, 1)


def features_of(
    host: AttentionHost, noisy: Float[Tensor, "b 4 h w"], steps: Int[Tensor, " b"]
) -> Float[Tensor, "b c h w"]:
    """The early blocks' taps of a pass under no prompt, each channel without its mean; blocks weigh alike."""
    blocks = early_blocks(host.specs)
    taps = host.observe(noisy, steps, host.condition([""]).repeated(len(noisy)), lambda unet: reading(unet, blocks))
    return torch.cat([resize(_levelled(tap.float()), _size(noisy)) for tap in taps.values()], dim=1)


def early_blocks(specs: Mapping[str, TapSpec]) -> list[str]:
    """The input blocks at the latents' own size and at half of it, without the very first, whose taps are nearly
    pixels."""
    early = [name for name, spec in specs.items() if Block.parse(name).stage == "input" and spec.stride <= 2]
    return [name for name in early if name != "input.1"]


def links_of(
    host: AttentionHost, noisy: Float[Tensor, "b 4 h w"], steps: Int[Tensor, " b"]
) -> Float[Tensor, "b n H W"]:
    """Where each position looks, square-rooted, at the finest level with attention and few enough positions, H x W."""
    size = _size(noisy)
    fine = [spec for spec in host.specs.values() if size[0] * size[1] <= MOST_POSITIONS * spec.stride**2]
    if not fine:
        raise InputError(f"Expected a smaller picture for self-attention, got latents of {size[0]} x {size[1]}.")
    finest = min(spec.stride for spec in fine)
    blocks = [spec.block for spec in fine if spec.stride == finest]
    nothing = host.condition([""]).repeated(len(noisy))
    seen = host.observe(noisy, steps, nothing, lambda unet: reading_attention(unet, (), blocks, host.specs, size))
    rows = torch.stack(list(seen.self_attention.values())).mean(0).sqrt()
    grid = (-(-size[0] // finest), -(-size[1] // finest))
    return _levelled(rows.transpose(1, 2).unflatten(2, grid))


def regions_of(features: Float[Tensor, "c h w"], count: int, seed: int = 0) -> Float[Tensor, "count h w"]:
    """Logits of regions by k-means over the positions of a picture's features, the best of `TRIES` starts, the largest
    region first. Over 0 where a region's centre is the nearest."""
    if not 1 < count <= MOST:
        raise InputError(f"Expected 2 to {MOST} regions, got {count}.")
    points = features.flatten(1).T.float()
    found = [settled(points, _spread_out(points, count, seed * TRIES + i)) for i in range(TRIES)]
    centres = min(found, key=lambda centres: float(torch.cdist(points, centres).amin(1).square().sum()))
    distances = torch.cdist(points, centres)
    sizes = torch.bincount(distances.argmin(1), minlength=count)
    distances = distances[:, sizes.argsort(descending=True, stable=True)]
    nearest = distances.topk(2, dim=1, largest=False).values
    rival = torch.where(distances == nearest[:, :1], nearest[:, 1:], nearest[:, :1])
    scale = torch.cdist(centres, centres).sum() / (count * (count - 1))
    return (SLOPE * (rival - distances) / scale.clamp(min=1e-6)).T.unflatten(1, features.shape[1:])


def settled(points: Float[Tensor, "n c"], centres: Float[Tensor, "k c"]) -> Float[Tensor, "k c"]:
    """Lloyd's iterations."""
    for _ in range(STEPS):
        nearest = torch.cdist(points, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        sizes = torch.bincount(nearest, minlength=len(centres))[:, None]
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
    return centres


def _spread_out(points: Float[Tensor, "n c"], count: int, seed: int) -> Float[Tensor, "k c"]:
    """The starts of k-means++ (Arthur and Vassilvitskii 2007)."""
    generator = torch.Generator().manual_seed(seed)
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    while len(chosen) < count:
        far = torch.cdist(points, points[chosen]).amin(1).square().double().cpu() + 1e-12
        chosen.append(int(torch.multinomial(far, 1, generator=generator)))
    return points[chosen]


def _levelled(maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Each channel without its mean over the picture, at a mean length of 1."""
    maps = maps - maps.mean((2, 3), keepdim=True)
    return maps / maps.norm(dim=1, keepdim=True).mean((2, 3), keepdim=True).clamp(min=1e-6)


def _size(latents: Tensor) -> tuple[int, int]:
    return latents.shape[2], latents.shape[3]
