"""CLIPSeg's own metric code beside ours: what `FixedIntervalMetrics` of github.com/timojl/clipseg (metrics.py at
77c4e2d, SciPy 1.10.1) printed for these masks, each sample a class of its own as its PhraseCut has them."""

from __future__ import annotations

import numpy as np
import pytest

from ldznet.evaluate.metrics import THRESHOLDS, Counts, at

SIDE, SAMPLES = 24, 5
PRINTED = {
    1.0: {"miou 0.3": 0.36150844732160087, "miou 0.5": 0.5245981723720811, "miou best": 0.6225338244118042}
    | {"at": 0.62, "fg 0.3": 0.36351763169351325, "fg best": 0.6266924564796905, "ap": 0.8477651722141328},
    0.5: {"miou 0.3": 0.6191334982873474, "miou 0.5": 0.0, "miou best": 0.6191334982873474}
    | {"at": 0.3, "fg 0.3": 0.6240740740740741, "fg best": 0.6240740740740741, "ap": 0.8353794355492945},
}


def plane() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float64)
    return y, x


def soft(sample: int, top: float) -> np.ndarray:
    """Waves between 0 and about `top`."""
    y, x = plane()
    wave = np.sin(0.31 * x * (1 + 0.13 * sample) + 0.7 * sample) + np.cos(0.23 * y - 0.4 * sample)
    return ((wave + 0.35 * np.sin(1.7 * x + 2.3 * y + sample) + 2.35) / 4.7 * top).astype(np.float32)


def truth(sample: int) -> np.ndarray:
    y, x = plane()
    wave = np.sin(0.31 * x * (1 + 0.13 * sample) + 0.7 * sample + 0.5) + np.cos(0.23 * y - 0.4 * sample + 0.4)
    return wave > 0.3 + 0.1 * sample


@pytest.mark.parametrize("top", PRINTED)
def test_the_same_figures(top: float) -> None:
    """All to the last digits. But AP of masks that end at 0.5: there 24 points of 17 recalls are left, and the original
    leaves the order of ties to a set, and the last interval of an even number to its SciPy."""
    counts = Counts.of(np.stack([soft(i, top) for i in range(SAMPLES)]), np.stack([truth(i) for i in range(SAMPLES)]))
    curve, pooled = counts.miou(), counts.iou_fg()
    found = {"miou 0.3": at(curve, 0.3), "miou 0.5": at(curve, 0.5), "miou best": curve.max()}
    found |= {"at": THRESHOLDS[curve.argmax()], "fg 0.3": at(pooled, 0.3), "fg best": pooled.max()}
    printed = dict(PRINTED[top])
    assert counts.ap() == pytest.approx(printed.pop("ap"), abs=1e-12 if top == 1 else 1e-3)
    assert found == pytest.approx(printed, abs=1e-12)


def test_a_float32_at_a_threshold_is_negative() -> None:
    """float32(0.3) lies above the double 0.3; torch compares in float32, and so does the original."""
    soft = np.full((1, 2, 2), 0.3, np.float32)
    assert Counts.of(soft, np.ones((1, 2, 2), bool)).tp[0, [13, 14]].tolist() == [4, 0]
