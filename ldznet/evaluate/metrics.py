"""mIoU, IoU_FG and AP as CLIPSeg and LD-ZNet compute them, presence AUROC, and bootstrap intervals.

Luddecke & Ecker, CVPR 2022: 49 thresholds, positive if p > threshold, background never enters. Imports numpy alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..shapes import Bool, Float, Int

THRESHOLDS = np.linspace(0.02, 0.98, 49)


@dataclass(frozen=True)
class Counts:
    """Pixels counted per sample and threshold: true positives, false positives, false negatives, each n 49."""

    tp: Int[np.ndarray, "n k"]
    fp: Int[np.ndarray, "n k"]
    fn: Int[np.ndarray, "n k"]

    @classmethod
    def of(cls, probabilities: Float[np.ndarray, "n h w"], truths: Bool[np.ndarray, "n h w"]) -> Counts:
        """Counts of soft masks against true ones. Raises InputError where their shapes differ."""
        if probabilities.shape != truths.shape or probabilities.ndim != 3:
            raise InputError(f"Expected two arrays n h w, got {probabilities.shape} and {truths.shape}.")
        pairs = list(zip(probabilities, truths, strict=True))
        counted = [[_above(p[t]) for p, t in pairs], [_above(p[~t]) for p, t in pairs]]
        positive, false = np.array(counted, np.int64).reshape(2, len(pairs), len(THRESHOLDS))
        return cls(positive, false, truths.sum(axis=(1, 2))[:, None] - positive)

    def select(self, index: Sequence[int] | np.ndarray) -> Counts:
        """The counts of some samples."""
        return Counts(self.tp[index], self.fp[index], self.fn[index])

    def iou(self) -> Float[np.ndarray, "n k"]:
        """tp / (1 + tp + fp + fn) per sample and threshold."""
        return self.tp / (1 + self.tp + self.fp + self.fn)

    def miou(self) -> Float[np.ndarray, " k"]:
        """Mean over samples of the IoU, at each threshold."""
        return self.iou().mean(axis=0)

    def iou_fg(self) -> Float[np.ndarray, " k"]:
        """IoU of the pixels of all samples pooled, at each threshold."""
        tp, fp, fn = (x.sum(axis=0) for x in (self.tp, self.fp, self.fn))
        return tp / (1 + tp + fp + fn)

    def ap(self) -> float:
        """Area under the pooled precision over the recalls reached, by Simpson's rule (0 for fewer than two).

        Points that repeat count once. Those of one recall and several precisions all stay, in the order of their
        thresholds; CLIPSeg's code leaves their order to a Python set.
        """
        return _area(*(x.sum(axis=0) for x in (self.tp, self.fp, self.fn)))


def at(curve: Float[np.ndarray, " k"], threshold: float) -> float:
    """A curve over THRESHOLDS at the one nearest to `threshold`."""
    return float(curve[place(threshold)])


def _area(tp: Int[np.ndarray, " k"], fp: Int[np.ndarray, " k"], fn: Int[np.ndarray, " k"]) -> float:
    """AP of pooled counts."""
    kept = tp + fp > 0
    recall, precision = (tp / (1 + tp + fn))[kept], (tp / (1 + tp + fp))[kept]
    order = np.argsort(recall, kind="stable")
    points = np.array(list(dict.fromkeys(zip(recall[order].tolist(), precision[order].tolist(), strict=True))))
    return simpson(points[:, 1], points[:, 0]) if len(points) > 1 else 0.0


def simpson(y: Float[np.ndarray, " n"], x: Float[np.ndarray, " n"]) -> float:
    """Composite Simpson's rule for unevenly spaced points; with an even number, the last interval as in Cartwright.

    As in SciPy, quotients of intervals of no width count as 0.
    """
    h = np.diff(x)
    if len(h) == 1:
        return float(h[0] * (y[0] + y[1]) / 2)
    pairs = len(h) // 2 * 2
    a, b = h[0:pairs:2], h[1:pairs:2]
    y0, y1, y2 = y[0:pairs:2], y[1 : pairs + 1 : 2], y[2 : pairs + 1 : 2]
    sides = y0 * (2 - _over(b, a)) + y2 * (2 - _over(a, b))
    total = ((a + b) / 6 * (sides + y1 * _over((a + b) ** 2, a * b))).sum()
    if pairs < len(h):
        before, last = h[-2:-1], h[-1:]
        end = y[-1] * _over(2 * last**2 + 3 * before * last, 6 * (before + last))
        end += y[-2] * _over(last**2 + 3 * last * before, 6 * before)
        end -= y[-3] * _over(last**3, 6 * before * (before + last))
        total += end[0]
    return float(total)


def _over(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """a / b, and 0 where b is 0."""
    return np.divide(a, b, out=np.zeros_like(a), where=b != 0)


def auroc(present: Float[np.ndarray, " n"], absent: Float[np.ndarray, " m"]) -> float:
    """Probability that a present phrase scores above an absent one, ties counting half."""
    if len(present) == 0 or len(absent) == 0:
        raise InputError(f"Expected scores of both kinds, got {len(present)} present and {len(absent)} absent.")
    order = np.sort(absent)
    below = np.searchsorted(order, present, side="left")
    not_above = np.searchsorted(order, present, side="right")
    return float((below + not_above).mean() / (2 * len(absent)))


def bootstrap(
    values: Float[np.ndarray, " n"], groups: Sequence[int] | np.ndarray, seed: int = 0, draws: int = 2000
) -> tuple[float, float, float]:
    """Mean of `values` and its 95 % interval, resampling whole `groups` (images), as phrases of one are not apart."""
    _, inverse = np.unique(np.asarray(groups), return_inverse=True)
    sums, sizes = np.bincount(inverse, values), np.bincount(inverse)
    index = np.random.default_rng(seed).integers(len(sizes), size=(draws, len(sizes)))
    means = sums[index].sum(axis=1) / sizes[index].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(np.mean(values)), float(low), float(high)


def spread(
    counts: Counts,
    groups: Sequence[int] | np.ndarray,
    figure: Callable[[Counts], Float[np.ndarray, " m"]],
    seed: int = 0,
    draws: int = 500,
) -> list[tuple[float, float]]:
    """The 95 % intervals of the m figures that `figure` makes of pooled counts 1 k, resampling whole `groups`."""
    _, inverse = np.unique(np.asarray(groups), return_inverse=True)
    size = int(inverse.max()) + 1
    pools = [np.zeros((size, len(THRESHOLDS)), np.int64) for _ in range(3)]
    for pool, values in zip(pools, (counts.tp, counts.fp, counts.fn), strict=True):
        np.add.at(pool, inverse, values)
    rng, found = np.random.default_rng(seed), []
    for _ in range(draws):
        often = np.bincount(rng.integers(size, size=size), minlength=size)
        found.append(figure(Counts(*((often @ pool)[None] for pool in pools))))
    return [(float(low), float(high)) for low, high in np.quantile(found, (0.025, 0.975), axis=0).T]


def place(threshold: float) -> int:
    """Which of THRESHOLDS is nearest to `threshold`."""
    return int(np.abs(THRESHOLDS - threshold).argmin())


def _above(values: Float[np.ndarray, " n"]) -> Int[np.ndarray, " k"]:
    """How many values lie above each threshold."""
    return len(values) - np.searchsorted(np.sort(values), THRESHOLDS.astype(values.dtype), side="right")
