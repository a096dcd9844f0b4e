"""Masks h w from outlines as datasets publish them: polygons, and runs of pixels. Imports shapes alone.

Every function here raises ValueError, which says what is wrong, for an outline that is none; `annotated` adds where it
stands. An outline's points are (x, y) from the top left corner of a picture of `size` (height, width).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..shapes import Bool, Float, Int, Size

FINER = 5  # steps a pixel in which COCO's rule follows a boundary
ZERO, BITS, GOES_ON, NEGATIVE = 48, 5, 0x20, 0x10  # of COCO's compressed counts: "0", and what its six bits mean
LONGEST = 60  # bits of a count, so that no text makes a number without end


def points(values: Any, size: Size) -> Float[np.ndarray, "n 2"]:
    """The points of a polygon: x, y, x, y … or a list of [x, y]. None may lie over a picture's size beyond it."""
    try:
        array = np.array(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError("a polygon of other things than numbers") from error
    if array.size % 2 or not (array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 2)):
        raise ValueError(f"a polygon of {array.size} numbers, which are no pairs")
    array = array.reshape(-1, 2)
    far = np.array([size[1], size[0]])
    if not ((array >= -far) & (array <= 2 * far)).all():  # NaN is neither
        raise ValueError(f"a polygon far outside of its picture of {size[0]} x {size[1]}")
    return array


def polygon_mask(polygon: Float[np.ndarray, "n 2"], size: Size) -> Bool[np.ndarray, "h w"]:
    """The pixels whose whole-numbered (x, y) lie in `polygon` or on its boundary; where it covers itself twice, it is
    outside. The rule of scikit-image's `polygon2mask`, by which CLIPSeg's and LD-ZNet's code draw PhraseCut."""
    height, width = size
    start, end = polygon, np.roll(polygon, -1, axis=0)
    top, bottom = np.minimum(start, end)[:, 1], np.maximum(start, end)[:, 1]
    first, last = np.clip(np.ceil(top), 0, height), np.clip(np.floor(bottom) + 1, 0, height)  # the rows that it meets
    edge, step = _along(np.maximum(last - first, 0).astype(np.int64) * (top < bottom))
    y = first.astype(np.int64)[edge] + step
    (x0, y0), (x1, y1) = start[edge].T, end[edge].T
    x = x0 + (y - y0) * (x1 - x0) / (y1 - y0)
    column = np.clip(np.ceil(x), 0, width).astype(np.int64)
    crosses = y < bottom[edge]  # a corner is the upper end of one edge and the lower end of another: it counts once
    crossings = np.zeros((height, width + 1), np.uint8)  # what it wraps at is even
    np.add.at(crossings, (y[crosses], column[crosses]), 1)
    mask = (crossings.cumsum(axis=1, dtype=np.uint8) & 1).astype(bool)[:, :width]
    on = (np.floor(x) == x) & (x >= 0) & (x < width)
    mask[y[on], column[on]] = True
    for (x0, y), (x1, _) in zip(start[top == bottom], end[top == bottom], strict=True):
        if y == np.floor(y) and 0 <= y < height:
            mask[int(y), max(0, int(np.ceil(min(x0, x1)))) : max(0, int(np.floor(max(x0, x1))) + 1)] = True
    return mask


def coco_mask(segmentation: Any, size: Size) -> Bool[np.ndarray, "h w"]:
    """The `segmentation` of a COCO annotation: polygons [x, y, x, y …], or runs {"size": [h, w], "counts": …}, or a
    list of those; what any of them covers. Forms: `annToRLE` and `mask.py` of github.com/cocodataset/cocoapi."""
    parts = segmentation if isinstance(segmentation, list) else [segmentation]
    if not parts:
        raise ValueError("no outline")
    mask = np.zeros(size, bool)
    for part in parts:
        mask |= runs_mask(part, size) if isinstance(part, dict) else coco_polygon_mask(points(part, size), size)
    return mask


def coco_polygon_mask(polygon: Float[np.ndarray, "n 2"], size: Size) -> Bool[np.ndarray, "h w"]:
    """A polygon by COCO's own rule (`rleFrPoly` of its maskApi), to the pixel: the boundary is followed in fifths of a
    pixel, and turns inside to outside where it crosses the middle of a column, downwards from there."""
    height, width = size
    u, v = _boundary(np.trunc(FINER * polygon + 0.5).astype(np.int64))
    turns = u[1:] != u[:-1]
    x = (np.minimum(u[1:], u[:-1])[turns] + 0.5) / FINER - 0.5
    y = (np.minimum(v[1:], v[:-1])[turns] + 0.5) / FINER - 0.5
    inside = (np.floor(x) == x) & (x >= 0) & (x <= width - 1)
    places = x[inside].astype(np.int64) * height + np.ceil(np.clip(y[inside], 0, height)).astype(np.int64)
    crossings = np.zeros(height * width + 1, np.uint8)  # what it wraps at is even
    np.add.at(crossings, places, 1)
    return _by_columns((crossings.cumsum(dtype=np.uint8)[:-1] & 1).astype(bool), size)


def runs_mask(runs: dict[str, Any], size: Size) -> Bool[np.ndarray, "h w"]:
    """Lengths of runs, outside first, down the columns from the left; as a list, or compressed into text."""
    counts = runs.get("counts")
    lengths = _decompressed(counts) if isinstance(counts, str) else counts
    if not (isinstance(lengths, list) and all(type(n) is int and n >= 0 for n in lengths)):
        raise ValueError("runs without counts")
    if runs.get("size") != list(size) or sum(lengths) != size[0] * size[1]:
        raise ValueError(f"runs of {sum(lengths)} pixels for a picture of {size[0]} x {size[1]}")
    return _by_columns(np.repeat(np.arange(len(lengths)) % 2 == 1, lengths), size)


def _decompressed(text: str) -> list[int]:
    """The counts in text: six bits a character from "0" on, of which five are the number's, lowest first, and one says
    that it goes on; from the fourth on as the difference to the last but one (`rleFrString` of COCO's maskApi)."""
    counts: list[int] = []
    number = shift = 0
    for code in text.encode():
        bits = code - ZERO
        if not 0 <= bits < 64 or shift > LONGEST:
            raise ValueError("compressed runs with other characters than theirs")
        number |= (bits % GOES_ON) << shift
        shift += BITS
        if not bits & GOES_ON:
            number -= (1 << shift) if bits & NEGATIVE else 0
            counts.append(number + (counts[-2] if len(counts) > 2 else 0))
            number = shift = 0
    if shift:
        raise ValueError("compressed runs that are cut short")
    return counts


def _boundary(corners: Int[np.ndarray, "n 2"]) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
    """Every point from corner to corner and back to the first, as (x, y): one a step along an edge's longer side."""
    following = np.roll(corners, -1, axis=0)
    sides = np.abs(following - corners)
    steps, wide = sides.max(axis=1), sides[:, 0] >= sides[:, 1]
    longer = np.where(wide, 0, 1)
    each = np.arange(len(corners))
    back = corners[each, longer] > following[each, longer]  # such an edge is rounded as the one that it returns on
    low, high = np.where(back[:, None], following, corners), np.where(back[:, None], corners, following)
    slope = (high - low)[each, 1 - longer] / np.maximum(steps, 1)
    edge, step = _along(steps + 1)
    step = np.where(back[edge], steps[edge] - step, step)
    along = low[edge, longer[edge]] + step
    across = np.trunc(low[edge, 1 - longer[edge]] + slope[edge] * step + 0.5).astype(np.int64)
    return np.where(wide[edge], along, across), np.where(wide[edge], across, along)


def _along(counts: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
    """(0, 0), (0, 1) … (1, 0) …: the number of each thing and, within it, 0 .. its count - 1."""
    number = np.repeat(np.arange(len(counts)), counts)
    return number, np.arange(len(number)) - np.repeat(np.cumsum(counts) - counts, counts)


def _by_columns(flat: Bool[np.ndarray, " n"], size: Size) -> Bool[np.ndarray, "h w"]:
    return flat.reshape(size[1], size[0]).T
