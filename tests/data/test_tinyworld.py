"""The tiny world as a dataset: whose seeds, whose masks."""

from __future__ import annotations

import numpy as np
import pytest

from ldznet.data import TinyWorldDataset
from ldznet.data.tinyworld import ABSENT, CAPTIONS, TEST_SEED, TRAIN_SEED
from ldznet.errors import InputError
from ldznet.tinyworld import scene


def test_items_are_the_scenes_of_its_seeds() -> None:
    dataset = TinyWorldDataset(2, start=70, domain="cartoon", size=64)
    expected = scene(71, "cartoon", size=64)
    item = dataset[1]
    assert np.array_equal(item.image, expected.image)
    assert item.phrases == expected.phrases
    assert item.captions[0] == expected.caption
    assert len(item.captions) == CAPTIONS
    assert len(item.absent) == ABSENT
    for phrase, kind, mask in zip(item.phrases, item.kinds, item.masks, strict=True):
        assert np.array_equal(mask, expected.masks[phrase])
        assert kind == expected.kinds[phrase]


def test_training_never_sees_a_test_scene() -> None:
    assert TinyWorldDataset(1).start == TRAIN_SEED
    assert TRAIN_SEED - TEST_SEED >= 100_000


@pytest.mark.parametrize("index", [-1, 2])
def test_no_item_beyond_the_last(index: int) -> None:
    with pytest.raises(IndexError):
        TinyWorldDataset(2, size=64)[index]


def test_none_is_refused() -> None:
    with pytest.raises(InputError, match="at least one scene"):
        TinyWorldDataset(0)
