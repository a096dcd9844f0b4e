"""What can be done to masks: pure functions of tensors. Imports errors and shapes alone; needs scipy.

Masks are float b h w in [0, 1]; nothing changes in place. Lengths are true pixels, areas are counts of pixels. Results
lie on the mask's device; pieces and the guided filter are worked out on the processor. What may take long calls `check`
every fraction of a second, which may raise to end it: in ComfyUI it does when the user cancels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from .errors import InputError
from .shapes import Bool, Float, Int

INSIDE = 0.5  # over this a pixel counts as inside, where a function needs yes or no
LOW, HIGH = 0.1, 0.9  # of a soft mask: what `ends_pulled` makes 0 and 1 of
PAMR_DILATIONS = (1, 2, 4, 8, 12, 24)  # Araslanov and Roth 2020, section 4
TILE = 1024  # pixels: larger pictures are refined in tiles of this side, so that memory is bounded
BAND = 128  # rows of a long blur at once, and the longest kernel that is a convolution
ROUNDING = 1e-5  # a blurred mask this near to 1 is 1: the kernel's weights add up to 1 but for rounding

Check = Callable[[], None]


def never() -> None:
    """The `check` of a caller who does not cancel."""


def grow(mask: Float[Tensor, "b h w"], pixels: int, check: Check = never) -> Float[Tensor, "b h w"]:
    """Dilation by a disc of radius `pixels` (Serra 1982): n grows a straight edge by n px. Negative values shrink.

    Each pixel takes the highest value within the disc, so a soft mask, grown and then cut at a threshold, is the mask
    cut at that threshold and then grown. What lies beyond the picture's edge neither grows into it nor eats it away.
    """
    if pixels < 0:
        return -grow(-mask, -pixels, check)
    grown = mask.clone()
    for image in grown:  # one at a time: the memory of one
        image.copy_(_dilated(image, pixels, check))
    return grown


def feather(mask: Float[Tensor, "b h w"], pixels: float, check: Check = never) -> Float[Tensor, "b h w"]:
    """Gaussian blur of deviation `pixels` / 2, so that an edge falls off over some 2 · `pixels`. Edges are repeated.

    Further than 1.5 · `pixels` from the mask 0 stays 0, and as far inside of it 1 stays 1, to the bit.
    """
    if pixels <= 0 or not len(mask):
        return mask
    reach = math.ceil(1.5 * pixels)
    steps = torch.arange(-reach, reach + 1, device=mask.device, dtype=torch.float32)
    kernel = torch.exp(-2 * (steps / pixels) ** 2)
    kernel = (kernel / kernel.sum()).to(mask.dtype)[None, None, :, None]
    blurred = [_blurred(_blurred(image[None, None], kernel, check).mT, kernel, check).mT for image in mask]
    out = torch.cat(blurred)[:, 0].clamp(0, 1)
    return torch.where(out > 1 - ROUNDING, 1, out)


def ends_pulled(soft: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """A soft mask whose ends are exactly 0 and 1: (p − 0.1) / 0.8, cut to [0, 1]; 0.5 stays 0.5.

    A sigmoid reaches neither: a picture composited with its output has no pixel left as it was.
    """
    return ((soft - LOW) / (HIGH - LOW)).clamp(0, 1)


def fill_holes(mask: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """1 where background is cut off from the picture's edge (4-connected; Soille 2003, section 6.3.7)."""
    outside = mask <= INSIDE
    filled = mask.clone()
    for image, (label, background) in enumerate(zip(components(outside), outside, strict=True)):
        edge = torch.cat([label[0], label[-1], label[:, 0], label[:, -1]]).unique()
        filled[image][background & ~torch.isin(label, edge[edge > 0])] = 1
    return filled


def drop_specks(mask: Float[Tensor, "b h w"], area: int) -> Float[Tensor, "b h w"]:
    """0 where fewer than `area` pixels hang together (4-connected; area opening, Vincent 1993).

    Pixels over 0.5 count. What a soft mask has around a dropped piece goes with it, unless a larger piece hangs there.
    """
    if area <= 1:
        return mask
    kept = mask.clone()
    for image, (label, around) in enumerate(zip(components(mask > INSIDE), components(mask > 0), strict=True)):
        large = (label.flatten().bincount()[label] >= area) & (label > 0)
        kept[image][((label > 0) & ~large) | ~torch.isin(around, around[large].unique())] = 0
    return kept


def components(inside: Bool[Tensor, "b h w"]) -> Int[Tensor, "b h w"]:
    """A number from 1 for each 4-connected piece of an image, in the order in which rows meet them; 0 outside."""
    numbered = [torch.from_numpy(ndimage.label(image.cpu().numpy())[0]) for image in inside]
    return torch.stack(numbered).long().to(inside.device) if numbered else inside.long()


class Piece(NamedTuple):
    """What hangs together: its box (right and bottom are one beyond it), where it is within that, its pixels."""

    left: int
    top: int
    right: int
    bottom: int
    mask: Bool[Tensor, "h w"]
    area: int


def pieces(inside: Bool[Tensor, "h w"], least: int = 1) -> list[Piece]:
    """The 4-connected pieces of one image of at least `least` pixels, largest first; of like ones the upper first."""
    numbered = components(inside[None])[0].cpu()
    sizes = numbered.flatten().bincount().tolist()
    found = []
    for number, place in enumerate(ndimage.find_objects(numbered.numpy()), start=1):
        if sizes[number] >= least:
            rows, columns = place
            mask = numbered[rows, columns] == number
            found.append(Piece(columns.start, rows.start, columns.stop, rows.stop, mask, sizes[number]))
    return sorted(found, key=lambda piece: -piece.area)


def joined(parts: Sequence[Piece]) -> Piece:
    """Several pieces of one image, at least one, as one in a box around all."""
    left, top = min(part.left for part in parts), min(part.top for part in parts)
    right, bottom = max(part.right for part in parts), max(part.bottom for part in parts)
    mask = torch.zeros(bottom - top, right - left, dtype=torch.bool, device="cpu")
    for part in parts:
        mask[part.top - top : part.bottom - top, part.left - left : part.right - left] |= part.mask
    return Piece(left, top, right, bottom, mask, sum(part.area for part in parts))


def guided_filter(
    mask: Float[Tensor, "b h w"],
    guide: Float[Tensor, "b 3 h w"],
    radius: int = 12,
    smoothness: float = 1e-4,
    check: Check = never,
) -> Float[Tensor, "b h w"]:
    """`mask` with the edges of `guide` in [0, 1]: the colour guided filter (He, Sun, Tang 2013, equations 19 to 21).

    `radius` in pixels is half the window's side; `smoothness` is the paper's epsilon. 12 pixels are 1.5 latents: the
    best of 4 to 24 on the tiny world (benchmarks/edges.py).
    """

    def filtered(target: Tensor, picture: Tensor) -> Tensor:
        return _guided(target, picture, radius, smoothness)

    return _in_tiles(filtered, mask, guide, 2 * radius, check)


def pamr(
    mask: Float[Tensor, "b h w"], guide: Float[Tensor, "b 3 h w"], iterations: int = 10, check: Check = never
) -> Float[Tensor, "b h w"]:
    """`mask` averaged over neighbours of like colour in `guide` in [0, 1]: pixel-adaptive mask refinement, Araslanov
    and Roth (CVPR 2020), equations 1 to 3: 8 neighbours at six dilations, contrast scaled by the local deviation."""

    def refined(target: Tensor, picture: Tensor) -> Tensor:
        affinity = _affinity(picture, check)
        for _ in range(iterations):
            check()
            averaged = torch.zeros_like(target)
            for neighbour, weight in zip(_neighbours(target[None]), affinity, strict=True):
                averaged.addcmul_(neighbour[0], weight)
            target = averaged
        return target.clamp(0, 1)

    return _in_tiles(refined, mask, guide, iterations * max(PAMR_DILATIONS), check)


def label_map(probabilities: Float[Tensor, "b p h w"], threshold: float = 0.5) -> Int[Tensor, "b h w"]:
    """Per pixel the number of the likeliest phrase, from 1; 0 where none is over `threshold` (the background's score).

    Source: argmax over phrases and a constant background, as in CLIPSeg's and DenseCLIP's zero-shot evaluation.
    """
    if probabilities.shape[1] == 0:
        raise InputError("Expected at least one phrase to label, got none.")
    best, index = probabilities.max(dim=1)
    return torch.where(best > threshold, index + 1, 0)


def _dilated(mask: Float[Tensor, "h w"], pixels: int, check: Check) -> Float[Tensor, "h w"]:
    """The highest value within a disc.

    The maximum over a row of the disc is that of two maxima over a power of two of pixels, which start at its two ends
    and overlap; that power doubles as the rows get longer, so each row costs three passes over the mask at any radius.
    """
    height, width = mask.shape
    pad, grown = min(pixels, width - 1), mask.clone()
    runs, length = F.pad(mask, (pad, pad), value=-math.inf), 1  # at x the maximum over `length` pixels from x on
    for dy in range(min(pixels, height - 1), -1, -1):  # from the disc's top to its middle
        check()
        half = min(math.isqrt(pixels**2 - dy**2), width - 1)
        while 2 * length <= 2 * half + 1:
            runs, length = torch.maximum(runs[:, :-length], runs[:, length:]), 2 * length
        first, last = pad - half, pad + half + 1 - length
        row = torch.maximum(runs[:, first : first + width], runs[:, last : last + width])
        above, below = grown[: height - dy], grown[dy:]
        torch.maximum(above, row[dy:], out=above)
        torch.maximum(below, row[: height - dy], out=below)
    return grown


def _blurred(
    image: Float[Tensor, "1 1 h w"], kernel: Float[Tensor, "1 1 k 1"], check: Check
) -> Float[Tensor, "1 1 h w"]:
    """Along columns, some columns at a time; beyond the edge, the edge."""
    reach, columns = kernel.shape[2] // 2, max(1, TILE**2 // image.shape[2])
    parts = []
    for part in image.split(columns, dim=3):
        check()
        parts.append(_filtered(F.pad(part, (0, 0, reach, reach), mode="replicate"), kernel))
    return torch.cat(parts, dim=3)


def _filtered(padded: Float[Tensor, "1 1 n w"], kernel: Float[Tensor, "1 1 k 1"]) -> Float[Tensor, "1 1 h w"]:
    """The convolution. A long kernel's is a product with a band matrix, BAND rows at a time: processors without a fast
    path for tall kernels take twenty times as long for the convolution itself."""
    length = kernel.shape[2]
    if length <= BAND:
        return F.conv2d(padded, kernel)
    row = F.pad(kernel.flatten(), (0, BAND))
    band = row.repeat(BAND)[: BAND * (length + BAND - 1)].view(BAND, -1)  # each row is the one before, a step further
    x, parts = padded[0, 0], []
    for start in range(0, len(x) - length + 1, BAND):
        piece = x[start : start + BAND + length - 1]
        rows = len(piece) - length + 1
        parts.append(band[:rows, : len(piece)] @ piece)
    return torch.cat(parts)[None, None]


def _in_tiles(
    refine: Callable[[Tensor, Tensor], Tensor],
    mask: Float[Tensor, "b h w"],
    guide: Float[Tensor, "b 3 h w"],
    halo: int,
    check: Check,
) -> Float[Tensor, "b h w"]:
    """`refine` (of h w and 3 h w) of each image, tile by tile; a pixel depends on others within `halo` pixels alone."""
    _same_size(mask, guide)
    out = torch.empty_like(mask)
    for image, picture, result in zip(mask, guide, out, strict=True):
        for rows, wide_rows in _spans(mask.shape[1], halo):
            for columns, wide_columns in _spans(mask.shape[2], halo):
                check()
                part = refine(image[wide_rows, wide_columns], picture[:, wide_rows, wide_columns])
                top, left = rows.start - wide_rows.start, columns.start - wide_columns.start
                whole = result[rows, columns]
                whole.copy_(part[top : top + whole.shape[0], left : left + whole.shape[1]])
    return out


def _spans(length: int, halo: int) -> list[tuple[slice, slice]]:
    """Each tile's pixels along one side, and those with `halo` more on either hand as far as there are any."""
    starts = range(0, length, TILE)
    return [
        (slice(start, min(start + TILE, length)), slice(max(start - halo, 0), min(start + TILE + halo, length)))
        for start in starts
    ]


def _guided(
    target: Float[Tensor, "h w"], guide: Float[Tensor, "3 h w"], radius: int, smoothness: float
) -> Float[Tensor, "h w"]:
    """The filter of one picture: a · guide + b with a = (variance + smoothness · 1)⁻¹ covariance in each window."""
    mean_guide, mean_target = _box(guide, radius), _box(target[None], radius)
    covariance = _box(guide * target, radius) - mean_guide * mean_target
    first, second = torch.triu_indices(3, 3, device=guide.device)  # a symmetric matrix's six numbers, row by row
    variance = _box(guide[first] * guide[second], radius) - mean_guide[first] * mean_guide[second]
    variance[first == second] += smoothness
    a = _solved(variance, covariance)
    b = mean_target - (a * mean_guide).sum(dim=0)
    return ((_box(a, radius) * guide).sum(dim=0) + _box(b, radius)[0]).clamp(0, 1)


def _solved(matrices: Float[Tensor, "6 h w"], vectors: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
    """x of A x = b for symmetric positive A (a11, a12, a13, a22, a23, a33), by A = L D Lᵀ (Golub and Van Loan, 4.1)."""
    a11, a12, a13, a22, a23, a33 = matrices
    l21, l31 = a12 / a11, a13 / a11
    d2 = a22 - l21 * a12
    rest = a23 - l31 * a12
    l32 = rest / d2
    d3 = a33 - l31 * a13 - l32 * rest
    y1, y2 = vectors[0], vectors[1] - l21 * vectors[0]
    x3 = (vectors[2] - l31 * y1 - l32 * y2) / d3
    x2 = y2 / d2 - l32 * x3
    return torch.stack([y1 / a11 - l21 * x2 - l31 * x3, x2, x3])


def _box(maps: Float[Tensor, "c h w"], radius: int) -> Float[Tensor, "c h w"]:
    """Mean over a window of 2 · `radius` + 1, cut off at the picture's edge: running sums, as long for any radius."""
    side, sums = 2 * radius + 1, maps.float().cpu().numpy()
    for axis in (1, 2):
        places = torch.arange(maps.shape[axis], dtype=torch.float32, device="cpu")
        inside = (places + radius).clamp(max=maps.shape[axis] - 1) - (places - radius).clamp(min=0) + 1
        share = (inside / side).numpy()  # of the window, that lies within the picture
        sums = ndimage.uniform_filter1d(sums, side, axis=axis, mode="constant")
        sums = sums / (share[:, None] if axis == 1 else share)
    return torch.from_numpy(sums).to(maps)


def _affinity(picture: Float[Tensor, "3 h w"], check: Check) -> Float[Tensor, "n h w"]:
    """How alike each neighbour is: softmax over them of minus the contrast, scaled by the deviation around a pixel."""
    count = 1 + 8 * len(PAMR_DILATIONS)
    mean, squares = picture.clone(), torch.zeros_like(picture)
    for neighbour in _neighbours(picture):
        mean += neighbour
    mean /= count
    for neighbour in (picture, *_neighbours(picture)):
        check()
        squares.addcmul_(neighbour - mean, neighbour - mean)
    scale = 1 / (0.1 * (squares / (count - 1)).sqrt() + 1e-8)
    affinity = picture.new_empty((count - 1, *picture.shape[1:]))
    for weight, neighbour in zip(affinity, _neighbours(picture), strict=True):
        check()
        torch.mean((neighbour - picture).abs_().mul_(-scale), dim=0, out=weight)
    affinity.sub_(affinity.amax(dim=0)).exp_()
    return affinity.div_(affinity.sum(dim=0))


def _neighbours(maps: Float[Tensor, "c h w"]) -> list[Float[Tensor, "c h w"]]:
    """Views of the 8 neighbours of each pixel at each dilation; beyond the edge, the edge."""
    (height, width), reach = maps.shape[1:], max(PAMR_DILATIONS)
    padded = F.pad(maps[None], (reach, reach, reach, reach), mode="replicate")[0]
    around = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
    corners = [(reach + dy * step, reach + dx * step) for step in PAMR_DILATIONS for dy, dx in around]
    return [padded[:, top : top + height, left : left + width] for top, left in corners]


def _same_size(mask: Tensor, guide: Tensor) -> None:
    if mask.shape[0] != guide.shape[0] or mask.shape[1:] != guide.shape[2:] or guide.shape[1] != 3:
        raise InputError(
            f"Expected a picture b 3 h w as large as the mask {tuple(mask.shape)}, got {tuple(guide.shape)}. "
            "Connect the image that was segmented."
        )
