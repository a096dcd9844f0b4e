"""What every dataset must keep. A new one is a line in `making.DATASETS`, with three items."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from data import making

from ldznet.data import DATASETS
from ldznet.data.cache import draw
from ldznet.data.items import Dataset, Item


@pytest.fixture(params=DATASETS)
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Dataset:
    return making.DATASETS[request.param](tmp_path)


def test_every_dataset_is_tested() -> None:
    assert set(making.DATASETS) == set(DATASETS)


def test_it_is_of_the_registered_class(dataset: Dataset) -> None:
    assert type(dataset) in DATASETS.values()


def test_three_items_and_no_more(dataset: Dataset) -> None:
    assert len(dataset) == 3
    with pytest.raises(IndexError):
        dataset[3]


def test_items_hold_what_they_say(dataset: Dataset) -> None:
    for i in range(3):
        item = dataset[i]
        phrases = len(item.phrases)
        assert isinstance(item, Item)
        assert item.image.shape == (making.SIDE, making.SIDE, 3)
        assert item.image.dtype == np.uint8
        assert item.masks.shape == (phrases, making.SIDE, making.SIDE)
        assert item.masks.dtype == bool
        assert len(item.kinds) == phrases
        assert set(item.kinds) <= {"thing", "stuff"}
        assert len(item.distracted) in (0, phrases)
        assert item.captions
        assert len(set(item.phrases)) == phrases
        assert not set(item.phrases) & set(item.absent)
        texts = (*item.captions, *item.phrases, *item.absent)
        assert all(isinstance(text, str) for text in texts)


def test_an_item_is_the_same_twice(dataset: Dataset) -> None:
    one, two = (dataclasses.asdict(dataset[1]) for _ in range(2))
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_it_can_be_cached(dataset: Dataset, tmp_path: Path) -> None:
    cache = draw(dataset, tmp_path / "cache")
    assert len(cache) == 3
    for i in range(3):
        item = dataset[i]
        assert np.array_equal(cache.images[i], item.image)
        assert tuple(cache.records[i]["phrases"]) == item.phrases
        for plane, mask in enumerate(item.masks):
            assert np.array_equal(cache.mask(i, plane), mask)
