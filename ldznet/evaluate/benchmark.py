"""A segmenter over a dataset: the paper's metrics of present phrases, presence of absent ones, and blind baselines.

Background never enters, absent phrases are scored apart, and things are reported apart from stuff, which is easy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..data.items import Dataset, Item
from ..predictor import Predictor
from ..segmentation import Segmentation
from ..shapes import Bool, Float
from ..tinyworld.surfaces import COLOURS
from .metrics import THRESHOLDS, Counts, at, auroc, bootstrap

Segment = Callable[[Item, Sequence[str]], tuple[np.ndarray, np.ndarray]]
"""Soft masks p h w in [0, 1] and scores p of an item's phrases."""


@dataclass(frozen=True)
class Outcome:
    """What came out, a row per present phrase; `absent` rows have a score and whether they were near misses."""

    counts: Counts
    images: np.ndarray
    phrases: np.ndarray
    things: Bool[np.ndarray, " n"]
    distracted: Bool[np.ndarray, " n"]
    scores: Float[np.ndarray, " n"]
    absent_scores: Float[np.ndarray, " m"]
    absent_hard: Bool[np.ndarray, " m"]


@dataclass(frozen=True)
class Figures:
    """mIoU at three thresholds (`interval`: 95 % at 0.5, over images), IoU_FG at its best threshold, and AP."""

    phrases: int
    miou_30: float
    miou_50: float
    interval: tuple[float, float]
    miou_best: float
    best: float
    iou_fg: float
    ap: float


def run(
    segment: Segment, items: Dataset | Sequence[Item], progress: Callable[[int, int], None] | None = None
) -> Outcome:
    """Segments every present phrase of `items`, and scores every absent one."""
    parts, rows, absent = [], [], []
    for number in range(len(items)):
        item = items[number]
        soft, scores = segment(item, (*item.phrases, *item.absent))
        present = len(item.phrases)
        if present:
            parts.append(Counts.of(soft[:present], item.masks))
        distracted = item.distracted or (False,) * present
        rows += list(zip([number] * present, item.phrases, item.kinds, distracted, scores[:present], strict=True))
        absent += [(score, is_near_miss(p)) for score, p in zip(scores[present:], item.absent, strict=True)]
        if progress:
            progress(number + 1, len(items))
    images, phrases, kinds, distracted_all, found = zip(*rows, strict=True)
    counts = Counts(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("tp", "fp", "fn")))
    return Outcome(
        counts=counts,
        images=np.array(images),
        phrases=np.array(phrases),
        things=np.array(kinds) == "thing",
        distracted=np.array(distracted_all),
        scores=np.array(found),
        absent_scores=np.array([score for score, _ in absent]),
        absent_hard=np.array([hard for _, hard in absent], bool),
    )


def figures(outcome: Outcome, rows: Bool[np.ndarray, " n"]) -> Figures:
    """The metrics of some rows of an outcome."""
    counts = outcome.counts.select(np.flatnonzero(rows))
    curve, middle = counts.miou(), int(np.abs(THRESHOLDS - 0.5).argmin())
    _, low, high = bootstrap(counts.iou()[:, middle], outcome.images[rows])
    return Figures(
        phrases=int(rows.sum()),
        miou_30=at(curve, 0.3),
        miou_50=at(curve, 0.5),
        interval=(low, high),
        miou_best=float(curve.max()),
        best=float(THRESHOLDS[curve.argmax()]),
        iou_fg=float(counts.iou_fg().max()),
        ap=counts.ap(),
    )


def presence(outcome: Outcome) -> tuple[float, float]:
    """AUROC of the scores: against all absent phrases, and against the near misses among them."""
    scores, absent = outcome.scores, outcome.absent_scores
    return auroc(scores, absent), auroc(scores, absent[outcome.absent_hard])


def segment_with(predictor: Predictor) -> Segment:
    """A predictor as a `Segment`."""

    def segment(item: Item, phrases: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        predictor.set_image(item.image)
        return arrays(predictor.predict(phrases))

    return segment


def arrays(result: Segmentation) -> tuple[np.ndarray, np.ndarray]:
    """Soft masks p h w and scores p of the first image."""
    return result.probabilities[0].cpu().numpy(), result.scores[0].cpu().numpy()


def whole_image(item: Item, phrases: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The blind baseline that answers everything with the whole image."""
    return np.ones((len(phrases), *item.image.shape[:2]), np.float32), np.ones(len(phrases), np.float32)


def nearest_colour(item: Item, phrases: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The baseline that knows colours alone: pixels whose nearest palette colour (RGB) is the one in the phrase."""
    palette = np.array(list(COLOURS.values()), np.float32)
    distance = np.linalg.norm(item.image[:, :, None].astype(np.float32) - palette, axis=3)
    nearest = distance.argmin(axis=2)
    masks = np.stack([nearest == _colour(phrase) for phrase in phrases]).astype(np.float32)
    return masks, masks.mean(axis=(1, 2))


def names_colour(phrases: Sequence[str] | np.ndarray) -> Bool[np.ndarray, " n"]:
    """Which phrases name a colour of the palette."""
    return np.array([_colour(phrase) >= 0 for phrase in phrases], bool)


def is_near_miss(phrase: str) -> bool:
    """True for an absent phrase of colour and category: the tiny world makes those of one present half."""
    return _colour(phrase) >= 0


def _colour(phrase: str) -> int:
    """The place in the palette of the colour that a phrase names; -1 if it names none."""
    words = phrase.split()
    return next((i for i, colour in enumerate(COLOURS) if colour in words), -1)
