"""The tiny world as a dataset: whose seeds, whose masks."""

from __future__ import annotations

import numpy as np
import pytest

from ldznet.data import TinyWorldDataset, TinyWorldTest
from ldznet.data.tinyworld import ABSENT, CAPTIONS, TEST_SEED, TESTS, TRAIN_SEED
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


def test_a_test_has_as_many_scenes_whatever_its_renderings() -> None:
    for name in TESTS:
        assert len(TinyWorldTest(name, 5)) == 5
    scenes = TinyWorldTest("T3", 5)
    assert [np.array_equal(scenes[i].image, TinyWorldDataset(5, start=0, domain=d)[i].image) for i, d in OTHERS] == [
        True
    ] * 5
    with pytest.raises(InputError, match="Expected a test of T0, T1, T2, T3, got 'T5'"):
        TinyWorldTest("T5", 1)


OTHERS = list(enumerate(("cartoon", "lines", "painting", "mosaic", "cartoon")))


def test_held_out_words_are_asked_apart() -> None:
    colours, categories = TinyWorldTest("T1", 12), TinyWorldTest("T2", 12)
    asked = [{p for i in range(12) for p in (*test[i].phrases, *test[i].absent)} for test in (colours, categories)]
    assert {p.split()[-2] for p in asked[0]} == {"purple", "orange", "blue"}
    assert {"a fish", "a cup"} <= asked[1]
    assert not any({"fish", "house", "flower", "cup"} & set(phrase.split()) for phrase in asked[0])
    assert not any({"purple", "orange", "blue"} & set(phrase.split()) for phrase in asked[1])
    item = categories[5]
    assert len(item.masks) == len(item.phrases) == len(item.kinds) == len(item.distracted)
