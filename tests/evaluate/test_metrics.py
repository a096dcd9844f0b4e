"""The metrics on 4 x 4 cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ldznet.evaluate.metrics import THRESHOLDS, Counts, at, auroc, bootstrap, simpson


def case(positive: int, false: int, missed: int, p: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    """A 4 x 4 mask with that many true positives, false positives and false negatives between 0.1 and p."""
    probabilities, truth = np.full(16, 0.1), np.zeros(16, bool)
    probabilities[: positive + false] = p
    truth[:positive] = truth[positive + false : positive + false + missed] = True
    return probabilities.reshape(4, 4), truth.reshape(4, 4)


def counts(*cases: tuple[np.ndarray, np.ndarray]) -> Counts:
    return Counts.of(np.stack([p for p, _ in cases]), np.stack([t for _, t in cases]))


def test_iou_by_hand() -> None:
    both = counts(case(4, 2, 1), case(1, 0, 3))
    assert at(both.miou(), 0.5) == pytest.approx((4 / 8 + 1 / 5) / 2)
    assert at(both.iou_fg(), 0.5) == pytest.approx(5 / (1 + 5 + 2 + 4))
    assert at(both.miou(), 0.9) == 0
    assert at(both.miou(), 0.04) == pytest.approx((5 / 17 + 4 / 17) / 2)


def test_a_probability_equal_to_the_threshold_is_negative() -> None:
    found = counts(case(4, 0, 0, p=float(THRESHOLDS[24])))
    assert found.tp[0, 24] == 0
    assert found.tp[0, 23] == 4


def test_ap_by_hand() -> None:
    """Two recalls: all pixels positive below 0.1 (recall 5/6, precision 5/17), then 4 of 6 (recall 4/6, 4/7)."""
    assert counts(case(4, 2, 1)).ap() == pytest.approx((5 / 6 - 4 / 6) * (5 / 17 + 4 / 7) / 2)


def test_simpson_is_exact_for_parabolas_on_uneven_points() -> None:
    for n in (3, 4, 7, 8):
        x = np.sort(np.random.default_rng(n).random(n))
        assert simpson(x**2, x) == pytest.approx((x[-1] ** 3 - x[0] ** 3) / 3)


def test_auroc_by_hand() -> None:
    assert auroc(np.array([0.9, 0.5]), np.array([0.5, 0.1])) == pytest.approx((1 + 1 + 0.5 + 1) / 4)


def test_bootstrap_resamples_images_not_phrases() -> None:
    values = np.array([1.0] * 50 + [0.0] * 50)
    mean, low, high = bootstrap(values, groups=[0] * 50 + [1] * 50)
    assert (mean, low, high) == (0.5, 0.0, 1.0)
    _, narrow_low, narrow_high = bootstrap(values, groups=np.arange(100))
    assert 0.35 < narrow_low < narrow_high < 0.65


def test_an_interval_holds_95_of_100_means() -> None:
    """Of a hundred coins the mean's deviation is 0.05, so the interval is 1.96 of it to either side."""
    mean, low, high = bootstrap(np.arange(100) % 2.0, np.arange(100))
    assert mean == 0.5
    assert (low, high) == pytest.approx((0.5 - 0.098, 0.5 + 0.098), abs=0.012)


def test_an_interval_is_over_groups() -> None:
    """Ten of ten alike in each group: as few coins as groups."""
    values = np.repeat(np.arange(100) % 2.0, 10)
    _, low, high = bootstrap(values, np.repeat(np.arange(100), 10))
    assert (low, high) == pytest.approx((0.5 - 0.098, 0.5 + 0.098), abs=0.012)
