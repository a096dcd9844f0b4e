"""What can be done to masks: pure functions of tensors, on any device. Imports errors and shapes alone.

Masks are float b h w in [0, 1]; nothing changes in place. Lengths are true pixels, areas are counts of pixels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import InputError
from .shapes import Bool, Float, Int

INSIDE = 0.5  # over this a pixel counts as inside, where a function needs yes or no
PAMR_DILATIONS = (1, 2, 4, 8, 12, 24)  # Araslanov and Roth 2020, section 4


def grow(mask: Float[Tensor, "b h w"], pixels: int) -> Float[Tensor, "b h w"]:
    """Dilation by a disc of radius `pixels` (Serra 1982): n grows a straight edge by n px. Negative values shrink.

    What lies beyond the picture's edge neither grows into it nor eats it away.
    """
    if pixels < 0:
        return 1 - grow(1 - mask, -pixels)
    height = mask.shape[1]
    padded = F.pad(mask[:, None], (0, 0, pixels, pixels))
    grown = mask[:, None]
    for dy in range(-pixels, pixels + 1):
        half = math.floor(math.sqrt(pixels**2 - dy**2))
        row = padded[:, :, pixels + dy : pixels + dy + height]
        grown = torch.maximum(grown, F.max_pool2d(row, (1, 2 * half + 1), 1, (0, half)) if half else row)
    return grown[:, 0]


def feather(mask: Float[Tensor, "b h w"], pixels: float) -> Float[Tensor, "b h w"]:
    """Gaussian blur of deviation `pixels` / 2, so that an edge falls off over some 2 · `pixels`. Edges are repeated."""
    if pixels <= 0:
        return mask
    reach = math.ceil(1.5 * pixels)
    steps = torch.arange(-reach, reach + 1, device=mask.device, dtype=torch.float32)
    kernel = torch.exp(-2 * (steps / pixels) ** 2)
    kernel = (kernel / kernel.sum()).to(mask.dtype)
    out = F.conv2d(_repeat_edges(mask[:, None], 0, reach), kernel[None, None, :, None])
    out = F.conv2d(_repeat_edges(out, reach, 0), kernel[None, None, None, :])
    return out[:, 0].clamp(0, 1)


def fill_holes(mask: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """1 where background is cut off from the picture's edge (4-connected; Soille 2003, section 6.3.7)."""
    outside = mask <= INSIDE
    labels = components(outside)
    filled = mask.clone()
    for image, (label, background) in enumerate(zip(labels, outside, strict=True)):
        edge = torch.cat([label[0], label[-1], label[:, 0], label[:, -1]]).unique()
        filled[image][background & ~torch.isin(label, edge[edge > 0])] = 1
    return filled


def drop_specks(mask: Float[Tensor, "b h w"], area: int) -> Float[Tensor, "b h w"]:
    """0 where fewer than `area` pixels hang together (4-connected; area opening, Vincent 1993)."""
    if area <= 1:
        return mask
    kept = mask.clone()
    for image, label in enumerate(components(mask > INSIDE)):
        sizes = label.flatten().bincount()
        kept[image][(sizes[label] < area) & (label > 0)] = 0
    return kept


def components(inside: Bool[Tensor, "b h w"]) -> Int[Tensor, "b h w"]:
    """A number over 0 for each 4-connected piece, 0 outside. Runs of rows and of columns take their highest number in
    turn until nothing changes (label propagation, after Rosenfeld and Pfaltz 1966)."""
    _, height, width = inside.shape
    labels = torch.arange(1, height * width + 1, device=inside.device).view(1, height, width) * inside
    rows, columns = _runs(inside), _runs(inside.transpose(1, 2))
    while True:
        spread = _highest(labels, rows) * inside
        spread = _highest(spread.transpose(1, 2), columns).transpose(1, 2) * inside
        if torch.equal(spread, labels):
            return labels
        labels = spread


def guided_filter(
    mask: Float[Tensor, "b h w"], guide: Float[Tensor, "b 3 h w"], radius: int = 12, smoothness: float = 1e-4
) -> Float[Tensor, "b h w"]:
    """`mask` with the edges of `guide` in [0, 1]: the colour guided filter (He, Sun, Tang 2013, equations 19 to 21).

    `radius` in pixels is half the window's side; `smoothness` is the paper's epsilon. 12 pixels are 1.5 latents: the
    best of 4 to 24 on the tiny world (benchmarks/edges.py).
    """
    _same_size(mask, guide)
    target = mask[:, None]
    mean_guide, mean_target = _box(guide, radius), _box(target, radius)
    covariance = _box(guide * target, radius) - mean_guide * mean_target
    products = torch.einsum("bihw,bjhw->bijhw", guide, guide).flatten(1, 2)
    means = torch.einsum("bihw,bjhw->bijhw", mean_guide, mean_guide).flatten(1, 2)
    variance = (_box(products, radius) - means).unflatten(1, (3, 3)).permute(0, 3, 4, 1, 2)
    variance = variance + smoothness * torch.eye(3, device=guide.device)
    a = torch.linalg.solve(variance, covariance.permute(0, 2, 3, 1)[..., None])[..., 0].permute(0, 3, 1, 2)
    b = mean_target - (a * mean_guide).sum(dim=1, keepdim=True)
    out = (_box(a, radius) * guide).sum(dim=1, keepdim=True) + _box(b, radius)
    return out[:, 0].clamp(0, 1)


def pamr(mask: Float[Tensor, "b h w"], guide: Float[Tensor, "b 3 h w"], iterations: int = 10) -> Float[Tensor, "b h w"]:
    """`mask` averaged over neighbours of like colour in `guide` in [0, 1]: pixel-adaptive mask refinement, Araslanov
    and Roth (CVPR 2020), equations 1 to 3: 8 neighbours at six dilations, contrast scaled by the local deviation."""
    _same_size(mask, guide)
    refined = []
    for target, picture in zip(mask[:, None, None], guide[:, None], strict=True):
        neighbours = _neighbours(picture)  # 1 3 n h w
        deviation = torch.cat([neighbours, picture[:, :, None]], dim=2).std(dim=2, keepdim=True)
        contrast = (neighbours - picture[:, :, None]).abs() / (0.1 * deviation + 1e-8)
        affinity = (-contrast.mean(dim=1, keepdim=True)).softmax(dim=2)
        for _ in range(iterations):
            target = (_neighbours(target) * affinity).sum(dim=2)
        refined.append(target[:, 0])
    return torch.cat(refined).clamp(0, 1)


def label_map(probabilities: Float[Tensor, "b p h w"], threshold: float = 0.5) -> Int[Tensor, "b h w"]:
    """Per pixel the number of the likeliest phrase, from 1; 0 where none is over `threshold` (the background's score).

    Source: argmax over phrases and a constant background, as in CLIPSeg's and DenseCLIP's zero-shot evaluation.
    """
    if probabilities.shape[1] == 0:
        raise InputError("Expected at least one phrase to label, got none.")
    best, index = probabilities.max(dim=1)
    return torch.where(best > threshold, index + 1, 0)


def _runs(inside: Bool[Tensor, "b h w"]) -> Int[Tensor, "b h w"]:
    """A number for each stretch of like pixels of a row: it goes up where the row changes."""
    changes = F.pad((inside[..., 1:] != inside[..., :-1]).long(), (1, 0))
    return changes.cumsum(dim=-1)


def _highest(labels: Int[Tensor, "b h w"], runs: Int[Tensor, "b h w"]) -> Int[Tensor, "b h w"]:
    """For each pixel the highest of `labels` in its run."""
    peaks = torch.zeros_like(labels).scatter_reduce(-1, runs, labels, "amax")
    return peaks.gather(-1, runs)


def _box(maps: Float[Tensor, "b c h w"], radius: int) -> Float[Tensor, "b c h w"]:
    """Mean over a window of 2 · `radius` + 1, cut off at the picture's edge."""
    side = 2 * radius + 1
    out = F.avg_pool2d(maps, (side, 1), 1, (radius, 0), count_include_pad=False)
    return F.avg_pool2d(out, (1, side), 1, (0, radius), count_include_pad=False)


def _neighbours(maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c n h w"]:
    """The 8 neighbours of each pixel at each dilation; beyond the edge, the edge."""
    height, width = maps.shape[2:]
    found = []
    for dilation in PAMR_DILATIONS:
        padded = _repeat_edges(maps, dilation, dilation)
        offsets = [(dy, dx) for dy in range(3) for dx in range(3) if (dy, dx) != (1, 1)]
        for dy, dx in offsets:
            top, left = dy * dilation, dx * dilation
            found.append(padded[:, :, top : top + height, left : left + width])
    return torch.stack(found, dim=2)


def _repeat_edges(maps: Float[Tensor, "b c h w"], across: int, down: int) -> Float[Tensor, "b c H W"]:
    return F.pad(maps, (across, across, down, down), mode="replicate")


def _same_size(mask: Tensor, guide: Tensor) -> None:
    if mask.shape[0] != guide.shape[0] or mask.shape[1:] != guide.shape[2:] or guide.shape[1] != 3:
        raise InputError(
            f"Expected a picture b 3 h w as large as the mask {tuple(mask.shape)}, got {tuple(guide.shape)}. "
            "Connect the image that was segmented."
        )
