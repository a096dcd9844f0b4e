"""Masks that steer the run that they come from: when to look, where regions lie, how texts enter. No host's words.

A sampler's run goes on as ever up to a step of choice. Then phrases are segmented in its present estimate of the clean
latents, and each region's text takes over inside its mask for the rest of the run. A host says of each call at which
noise level it is (`Run`), and mixes by mask what cross-attention gives for each text (`mixed`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .masks import Check, grow, never
from .segmentation import Segmentation
from .shapes import Float, Size

SAME_LEVEL = 1e-4  # of a noise level: samplers work out anew what the schedule says


class Region(NamedTuple):
    """What to find, and what to paint there."""

    phrase: str
    prompt: str


class Plan(NamedTuple):
    """When a run is looked at: after `share` (0 .. 1) of its steps, and from then on every `every` steps (0: once)."""

    share: float = 0.25
    every: int = 0

    def first(self, steps: int) -> int:
        """The step, from 0, before which the run is looked at first: the second or a later one, for the first step
        leaves the first estimate. Of `steps` or more there is none."""
        return max(1, math.ceil(self.share * steps - SAME_LEVEL))


@dataclass
class Run:
    """One sampler's run: its schedule, its latest estimate of the clean latents, and what was found in that."""

    sigmas: Sequence[float]  # noise levels: where each step begins, and where the last ends
    plan: Plan
    sigma: float = math.inf  # of the present call
    estimate: Float[Tensor, "b c h w"] | None = None  # in model space
    looks: list[int] = field(default_factory=list)  # the steps before which it was looked at
    found: Segmentation | None = None  # at the first look
    notes: list[str] = field(default_factory=list)  # on how that was found
    areas: Float[Tensor, "b r h w"] | None = None  # of the regions (`areas_of`); None: there is nothing to steer
    samples: list[Tensor] = field(default_factory=list)  # what the sampler returned, in the host's own scale
    sized: dict[Size, Tensor] = field(default_factory=dict)  # `areas` at the sizes that were asked for

    @property
    def steps(self) -> int:
        """Of the schedule."""
        return len(self.sigmas) - 1

    @property
    def step(self) -> int:
        """The step, from 0, that the present call belongs to: that which begins at its noise level, or above."""
        return sum(level >= self.sigma * (1 - SAME_LEVEL) for level in self.sigmas[1:-1])

    @property
    def due(self) -> bool:
        """Whether the estimate is to be looked at before the present call."""
        if self.estimate is None:
            return False
        if not self.looks:
            return self.step >= self.plan.first(self.steps)
        return self.plan.every > 0 and self.step >= self.looks[-1] + self.plan.every

    def look(self, found: Segmentation, areas: Float[Tensor, "b r h w"] | None) -> None:
        """Takes what was found before the present call. A region that an earlier look has found, and this one has not,
        stays where it was: what was painted there is no longer what its phrase names."""
        if areas is not None and self.areas is not None:
            lost = areas.flatten(2).amax(dim=2) == 0
            areas = torch.where(lost[:, :, None, None], self.areas, areas)
        self.looks.append(self.step)
        self.found = found if self.found is None else self.found
        self.areas = areas if areas is not None and bool(areas.any()) else self.areas
        self.sized.clear()

    def areas_at(self, size: Size) -> Float[Tensor, "b r h w"]:
        """The regions' areas at the size of a block: what of each of its pixels a region covers."""
        assert self.areas is not None
        if size not in self.sized:
            self.sized[size] = F.adaptive_avg_pool2d(self.areas, size)
        return self.sized[size]


def areas_of(
    found: Segmentation,
    phrases: Sequence[str],
    size: Size,
    threshold: float,
    pixels: int = 0,
    check: Check = never,
) -> Float[Tensor, "b r h w"]:
    """What of each pixel of latents of `size` belongs to the region of each of `phrases`, each of which was `found`.

    Masks at `threshold`, grown by so many `pixels` of the picture; a region that was not found is empty. Where regions
    overlap they share: at each pixel they add up to 1 at most.
    """
    order = [found.phrases.index(phrase) for phrase in dict.fromkeys(phrases)]
    hard = found.select(order).masks(threshold).float()
    rows = [grow(hard[:, i], pixels, check) for i in range(len(order))]
    areas = F.adaptive_avg_pool2d(torch.stack(rows, dim=1), size)
    each = areas[:, [list(dict.fromkeys(phrases)).index(phrase) for phrase in phrases]]
    return each / each.sum(dim=1, keepdim=True).clamp(min=1)


def mixed(
    plain: Float[Tensor, "b n d"], texts: Sequence[Float[Tensor, "b n d"]], areas: Float[Tensor, "b r n"]
) -> Float[Tensor, "b n d"]:
    """What cross-attention gives, `plain` for the prompt, with that of each region's text in its area. Where no region
    is, `plain` stays to the bit."""
    out = plain
    for text, area in zip(texts, areas.unbind(1), strict=True):
        out = out + (text - plain) * area[..., None].to(plain)
    return out


def grid_of(tokens: int, size: Size) -> Size | None:
    """Height and width of a block that has so many `tokens` of latents of `size`, halved some times and rounded up each
    time; None where there is none: tokens were merged, or it is no block of such latents."""
    height, width = size
    while height * width > tokens:
        height, width = math.ceil(height / 2), math.ceil(width / 2)
    return (height, width) if height * width == tokens else None


def lines_of(run: Run, regions: Sequence[Region]) -> list[str]:
    """What a report says of a run: from which step on each region has its own prompt, in which images, or why not."""
    if not run.looks:
        first = run.plan.first(run.steps)
        return [f"no region: the run ended after {run.steps} steps, and step {first + 1} is the first with regions"]
    lines = []
    for r, region in enumerate(regions):
        images = [] if run.areas is None else [b + 1 for b, area in enumerate(run.areas[:, r]) if area.any()]
        if images:
            where = ", ".join(map(str, images))
            lines.append(
                f'"{region.phrase}" => "{region.prompt}": from step {run.looks[0] + 1} of {run.steps} on, image {where}'
            )
        else:
            lines.append(f'"{region.phrase}": not found after {run.looks[0]} of {run.steps} steps, nothing is changed')
    return [*lines, *run.notes]


def missing_in(found: Segmentation, run: Run) -> str:
    """A sentence that says which phrases were not found in a run's estimate; empty where all were."""
    absent = [
        f'"{phrase}" in image {b + 1}'
        for b, row in enumerate(found.found.tolist())
        for phrase, there in zip(found.phrases, row, strict=True)
        if not there
    ]
    if not absent:
        return ""
    return f"Not found when {run.step} of {run.steps} steps were done: {', '.join(absent)}."
