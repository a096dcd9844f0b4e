"""A segmenter over a dataset: the paper's metrics of present phrases, presence of absent ones, and blind baselines.

Background never enters, absent phrases are scored apart, and things are reported apart from stuff, which is easy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from ..data.items import Dataset, Item
from ..errors import InputError
from ..predictor import Predictor
from ..segmentation import Segmentation
from ..shapes import Bool, Float, Int
from ..tinyworld.surfaces import COLOURS
from .boundary import boundary_f
from .metrics import THRESHOLDS, Counts, at, auroc, bootstrap, place, spread

Segment = Callable[[Item, Sequence[str]], tuple[np.ndarray, np.ndarray]]
"""Soft masks p h w in [0, 1] and scores p of an item's phrases."""

Interval = tuple[float, float]
MASK = 0.5  # the threshold of the masks whose edges are compared
MIDDLE = place(MASK)


@dataclass(frozen=True)
class Outcome:
    """What came out, a row per present phrase; `absent` rows have a score and whether they were near misses.

    `images` and `absent_images` are the items' numbers; `boundary` is the F of each mask's edge at 0.5.
    """

    counts: Counts
    images: Int[np.ndarray, " n"]
    phrases: np.ndarray
    things: Bool[np.ndarray, " n"]
    distracted: Bool[np.ndarray, " n"]
    scores: Float[np.ndarray, " n"]
    boundary: Float[np.ndarray, " n"]
    absent_images: Int[np.ndarray, " m"]
    absent_scores: Float[np.ndarray, " m"]
    absent_hard: Bool[np.ndarray, " m"]


def _nothing() -> Outcome:
    """An outcome without rows."""
    counts, whole, real, true = np.zeros((0, len(THRESHOLDS)), int), np.zeros(0, int), np.zeros(0), np.zeros(0, bool)
    return Outcome(Counts(counts, counts, counts), whole, np.zeros(0, str), true, true, real, real, whole, real, true)


NOTHING = _nothing()


@dataclass(frozen=True)
class Figures:
    """mIoU and IoU_FG at 0.3 and at the best of the 49 thresholds, mIoU at 0.5 too (`interval`: 95 % over images), AP,
    and the mean F of edges."""

    phrases: int
    images: int
    miou_30: float
    miou_50: float
    interval: Interval
    miou_best: float
    best: float
    iou_fg_30: float
    iou_fg: float
    ap: float
    boundary: float


def run(
    segment: Segment,
    items: Dataset | Sequence[Item],
    progress: Callable[[int, int], None] | None = None,
    shard: tuple[int, int] = (0, 1),
) -> Outcome:
    """Segments every present phrase of `items`, and scores every absent one. No map is kept longer than its item.

    `shard` (k, n) takes items k, k + n, k + 2n … alone; `merged` makes of all n what one run would give.
    """
    parts, numbers = [], range(shard[0], len(items), shard[1])
    for done, number in enumerate(numbers, 1):
        parts.append(_measured(segment, items[number], number))
        if progress:
            progress(done, len(numbers))
    return merged(parts)


def _measured(segment: Segment, item: Item, number: int) -> Outcome:
    """The rows of one item; none where there is nothing to ask."""
    if not item.phrases and not item.absent:
        return NOTHING
    soft, scores = segment(item, (*item.phrases, *item.absent))
    present = len(item.phrases)
    return Outcome(
        counts=Counts.of(soft[:present], item.masks),
        images=np.full(present, number),
        phrases=np.array(item.phrases, str),
        things=np.array([kind == "thing" for kind in item.kinds], bool),
        distracted=np.array(item.distracted or (False,) * present, bool),
        scores=np.array(scores[:present], float),
        boundary=boundary_f(soft[:present] > MASK, item.masks),
        absent_images=np.full(len(item.absent), number),
        absent_scores=np.array(scores[present:], float),
        absent_hard=np.array([is_near_miss(phrase) for phrase in item.absent], bool),
    )


def merged(parts: Sequence[Outcome]) -> Outcome:
    """One outcome of several, ordered by item, however the items were shared out among them."""
    parts = [NOTHING, *parts]
    present, absent = (
        np.argsort(np.concatenate([getattr(part, name) for part in parts]), kind="stable")
        for name in ("images", "absent_images")
    )
    counts = Counts(*(np.concatenate([getattr(part.counts, name) for part in parts]) for name in ("tp", "fp", "fn")))
    columns = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])[
            absent if field.name.startswith("absent") else present
        ]
        for field in fields(Outcome)
        if field.name != "counts"
    }
    return Outcome(counts=counts.select(present), **columns)


def figures(outcome: Outcome, rows: Bool[np.ndarray, " n"]) -> Figures:
    """The metrics of some rows of an outcome; raises InputError where there are none."""
    if not rows.any():
        raise InputError("Expected pictures with at least one phrase that is there, got none. Look at the annotations.")
    counts = outcome.counts.select(np.flatnonzero(rows))
    curve, pooled = counts.miou(), counts.iou_fg()
    _, low, high = bootstrap(counts.iou()[:, MIDDLE], outcome.images[rows])
    return Figures(
        phrases=int(rows.sum()),
        images=len(np.unique(outcome.images[rows])),
        miou_30=at(curve, 0.3),
        miou_50=at(curve, 0.5),
        interval=(low, high),
        miou_best=float(curve.max()),
        best=float(THRESHOLDS[curve.argmax()]),
        iou_fg_30=at(pooled, 0.3),
        iou_fg=float(pooled.max()),
        ap=counts.ap(),
        boundary=float(outcome.boundary[rows].mean()),
    )


def intervals(outcome: Outcome, rows: Bool[np.ndarray, " n"]) -> dict[str, Interval]:
    """The 95 % intervals of all of `Figures`' metrics, by its names, whole images drawn anew.

    Those of the best thresholds are at the threshold that was best over all images.
    """
    counts, images = outcome.counts.select(np.flatnonzero(rows)), outcome.images[rows]
    curve, pooled = counts.miou(), counts.iou_fg()
    places = {"miou_30": place(0.3), "miou_50": MIDDLE, "miou_best": int(curve.argmax())}
    found = {name: bootstrap(counts.iou()[:, i], images)[1:] for name, i in places.items()}
    best = int(pooled.argmax())
    of_pools = spread(counts, images, lambda c: np.array([at(c.iou_fg(), 0.3), c.iou_fg()[best], c.ap()]))
    found |= dict(zip(("iou_fg_30", "iou_fg", "ap"), of_pools, strict=True))
    return {**found, "boundary": bootstrap(outcome.boundary[rows], images)[1:]}


def presence(outcome: Outcome) -> tuple[float, float]:
    """AUROC of the scores: against all absent phrases, and against the near misses among them."""
    scores, absent = outcome.scores, outcome.absent_scores
    return auroc(scores, absent), auroc(scores, absent[outcome.absent_hard])


def presence_interval(outcome: Outcome, draws: int = 500) -> Interval:
    """The 95 % interval of the first AUROC, whole images drawn anew."""
    images = np.unique(np.concatenate([outcome.images, outcome.absent_images]))
    there = [outcome.scores[outcome.images == image] for image in images]
    absent = [outcome.absent_scores[outcome.absent_images == image] for image in images]
    rng, found = np.random.default_rng(0), []
    for _ in range(draws):
        drawn = rng.integers(len(images), size=len(images))
        scores = [np.concatenate([side[i] for i in drawn]) for side in (there, absent)]
        if all(map(len, scores)):
            found.append(auroc(*scores))
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)


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
