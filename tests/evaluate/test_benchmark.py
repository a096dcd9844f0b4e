"""The benchmark on items small enough to count by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from ldznet.data.items import Item
from ldznet.evaluate import benchmark
from ldznet.tinyworld.surfaces import COLOURS


def item() -> Item:
    """4 x 4: the left half red, of which the upper part is "a red star"; the right half blue, "water"."""
    image = np.empty((4, 4, 3), np.uint8)
    image[:, :2], image[:, 2:] = COLOURS["red"], COLOURS["blue"]
    star, water = np.zeros((2, 4, 4), bool)
    star[:2, :2], water[:, 2:] = True, True
    masks = np.stack([star, water])
    return Item(
        image, ("",), ("a red star", "water"), masks, ("thing", "stuff"), ("a blue star", "a cat"), (True, False)
    )


def exact(item: Item, phrases: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The truth, sure of it; absent phrases score 0.4 and 0.1."""
    masks = np.concatenate([item.masks, np.zeros((2, 4, 4), bool)]).astype(np.float32)
    return masks, np.array([0.9, 0.3, 0.4, 0.1])


def test_rows_are_kept_apart() -> None:
    outcome = benchmark.run(exact, [item(), item()])
    assert outcome.things.tolist() == [True, False] * 2
    assert outcome.distracted.tolist() == [True, False] * 2
    assert outcome.images.tolist() == [0, 0, 1, 1]
    assert outcome.absent_hard.tolist() == [True, False] * 2


def test_figures_of_the_truth_by_hand() -> None:
    outcome = benchmark.run(exact, [item(), item()])
    things = benchmark.figures(outcome, outcome.things)
    assert (things.phrases, things.miou_50) == (2, pytest.approx(4 / 5))  # tp / (1 + tp)
    assert things.iou_fg == pytest.approx(8 / 9)
    assert benchmark.figures(outcome, ~outcome.things).miou_30 == pytest.approx(8 / 9)


def test_presence_by_hand() -> None:
    everything, hard = benchmark.presence(benchmark.run(exact, [item()]))
    assert everything == pytest.approx(3 / 4)  # 0.9 beats both, 0.3 beats one of two
    assert hard == pytest.approx(1 / 2)


def test_the_whole_image_by_hand() -> None:
    outcome = benchmark.run(benchmark.whole_image, [item()])
    assert benchmark.figures(outcome, outcome.things).miou_50 == pytest.approx(4 / 17)
    assert benchmark.figures(outcome, ~outcome.things).miou_50 == pytest.approx(8 / 17)


def test_the_nearest_colour_by_hand() -> None:
    outcome = benchmark.run(benchmark.nearest_colour, [item()])
    coloured = benchmark.names_colour(outcome.phrases)
    assert coloured.tolist() == [True, False]
    assert benchmark.figures(outcome, coloured).miou_50 == pytest.approx(4 / 9)


def test_progress_counts_items() -> None:
    seen: list[tuple[int, int]] = []
    benchmark.run(exact, [item(), item()], lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
