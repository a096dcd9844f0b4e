"""Whether a head reads its taps: what each mistake does to them, and what it costs the heads that come with us."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ldznet import load_head
from ldznet.data import TinyWorldDataset
from ldznet.evaluate.reading import MISTAKES, NULL, OWN, Reading, _iou, reading
from ldznet.hosts.tiny import TinyHost

TAPS = {"a": torch.arange(4.0).view(2, 2, 1, 1), "b": torch.full((2, 2, 1, 1), 7.0), "c": torch.ones(2, 3, 1, 1)}
OTHER = {block: -tap for block, tap in TAPS.items()}


def test_what_each_mistake_does() -> None:
    done = {name: mistake(TAPS, OTHER) for name, mistake in MISTAKES.items()}
    assert torch.equal(done["taps of another scene"]["a"], -TAPS["a"])
    swapped = done["blocks swapped"]
    assert torch.equal(swapped["a"], TAPS["b"])
    assert torch.equal(swapped["b"], TAPS["a"])
    assert torch.equal(swapped["c"], TAPS["c"])  # no other of its shape
    assert torch.equal(done["taps of another phrase"]["a"], TAPS["a"].flip(0))


def test_iou_by_hand() -> None:
    masks, truths = torch.tensor([[[True, True, False]]]), torch.tensor([[[True, False, False]]])
    assert _iou(masks, truths).tolist() == [pytest.approx(1 / 3)]


def test_a_cost_is_paired() -> None:
    found = Reading({OWN: np.array([0.9, 0.5]), NULL: np.array([0.6, 0.4])}, np.array([0, 1]))
    mean, low, high = found.cost(NULL)
    assert mean == pytest.approx(0.2)
    assert (low, high) == (pytest.approx(0.1), pytest.approx(0.3))


@pytest.fixture(scope="module")
def scenes() -> list:
    dataset = TinyWorldDataset(6, start=0, domain="photo")
    return [dataset[i] for i in range(6)]


def test_the_light_head_reads_its_taps(scenes: list) -> None:
    found = reading(
        load_head("tiny-light"), TinyHost.load(), scenes, mistakes=["taps of another scene", "blocks swapped"]
    )
    assert found.ious[OWN].mean() > 0.35
    assert found.cost("taps of another scene")[0] > 0.15
    assert found.cost("blocks swapped")[0] > 0.05
