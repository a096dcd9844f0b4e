"""From attention to maps of phrases: pure tensor functions, steps of iSeg's recipe or GoCA's. Imports shapes alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..shapes import Float, Size

TINIEST = 1e-12  # keeps divisions finite where nothing is


def token_maps(
    cross: Mapping[str, Float[Tensor, "b n _ _"]],
    levels: Sequence[tuple[Sequence[str], float]],
    size: Size,
    normalised: bool = True,
) -> Float[Tensor, "b n H W"]:
    """One map per text token at `size`: the mean over each level's blocks, the levels weighted.

    Each block's map is resized bilinearly and divided by its spatial sum, in this order, so that every map sums to 1
    and the weights mean what they say at any resolution. With `normalised` false they stay attention probabilities.
    """
    total = torch.zeros((), dtype=torch.float32, device="cpu")
    for blocks, weight in levels:
        for block in blocks:
            maps = F.interpolate(cross[block], size=size, mode="bilinear", align_corners=False)
            if normalised:
                maps = maps / maps.sum(dim=(2, 3), keepdim=True).clamp(min=TINIEST)
            total = total.to(maps) + maps * (weight / len(blocks))
    return total


def group_means(maps: Float[Tensor, "b n h w"], groups: Sequence[Sequence[int]]) -> Float[Tensor, "b g h w"]:
    """The mean over each group of tokens: a phrase's map is that of its content tokens."""
    if not groups:
        return maps[:, :0]
    return torch.stack([maps[:, list(group)].mean(dim=1) for group in groups], dim=1)


def shares(maps: Float[Tensor, "b g h w"], content: Float[Tensor, "b n h w"]) -> Float[Tensor, "b g h w"]:
    """Each map divided, at each pixel, by the sum over all content tokens (GoCA's per-pixel rescaling)."""
    return maps / content.sum(dim=1, keepdim=True).clamp(min=TINIEST)


def min_max(maps: Float[Tensor, "b g h w"]) -> Float[Tensor, "b g h w"]:
    """Each map stretched to 0 .. 1; a map of one value becomes zeros."""
    low, high = maps.amin(dim=(2, 3), keepdim=True), maps.amax(dim=(2, 3), keepdim=True)
    return (maps - low) / (high - low).clamp(min=TINIEST)


def sharpened(attention: Float[Tensor, "b n n"], strength: float) -> Float[Tensor, "b n n"]:
    """Self-attention of lower entropy, its rows summing to 1 (iSeg): weak links go, the others stay.

    Each column divided by its maximum, then max(0, a + strength * log10(e a)). A pixel left without any link keeps to
    itself. Works on a copy.
    """
    a = attention / attention.amax(dim=1, keepdim=True).clamp(min=TINIEST)
    if strength:
        a = (a + strength * (a.clamp(min=TINIEST) * math.e).log10_()).clamp_(min=0)
    rows = a.sum(dim=2, keepdim=True)
    alone = rows[..., 0] <= TINIEST
    a /= rows.clamp_(min=TINIEST)
    torch.diagonal(a, dim1=1, dim2=2)[alone] = 1
    return a


def propagated(
    maps: Float[Tensor, "b g h w"], links: Float[Tensor, "b n n"], steps: int, stretch: bool = True
) -> Float[Tensor, "b g h w"]:
    """`steps` times m <- links m, so that a map fills what it lies in; `links` has rows that sum to 1.

    With `stretch`, after each step m -= min and m /= sum (iSeg), which gives every map a scale of its own. Without it
    the values stay averages of those that came in, and maps can be compared.
    """
    m = rearrange(maps, "b g h w -> b (h w) g")
    for _ in range(steps):
        m = links @ m
        if stretch:
            m = m - m.amin(dim=1, keepdim=True)
            m = m / m.sum(dim=1, keepdim=True).clamp(min=TINIEST)
    return rearrange(m, "b (h w) g -> b g h w", h=maps.shape[2])
