"""The tiny world as a dataset: scene seeds as items, and its tests by name. The splits never share a seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from ..errors import InputError
from ..tinyworld import DOMAINS, scenes
from .items import Item

TRAIN_SEED, TEST_SEED = 1_000_000, 0  # scenes 0 .. 999,999 are never trained on
CAPTIONS, ABSENT = 4, 8
TESTS = {  # the renderings of each, one scene after the other
    "T0": DOMAINS[:1],
    "T1": DOMAINS[:1],  # of T0's phrases those of a known category in a held-out colour
    "T2": DOMAINS[:1],  # of T0's phrases those of a held-out category, in no colour or a known one
    "T3": DOMAINS[1:],
}
HELD_OUT_COLOURS = frozenset(("purple", "orange", "blue"))  # that labels of experiments never name
HELD_OUT_CATEGORIES = frozenset(("fish", "house", "flower", "cup"))


class TinyWorldDataset:
    """Scenes `start` .. `start + length - 1`. `domain` None takes a domain per seed."""

    def __init__(
        self,
        length: int,
        *,
        start: int = TRAIN_SEED,
        domain: str | None = None,
        size: int = 128,
        things: int | None = None,
    ) -> None:
        if length < 1:
            raise InputError(f"Expected at least one scene, got {length}.")
        self.length, self.start, self.domain, self.size, self.things = length, start, domain, size, things

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Item:
        if not 0 <= index < self.length:
            raise IndexError(index)
        seed = self.start + index
        scene = scenes.scene(seed, self.domain, size=self.size, things=self.things)
        rng = np.random.default_rng([seed, 99])
        return Item(
            image=scene.image,
            captions=(scene.caption, *(scenes.captions(scene, rng) for _ in range(CAPTIONS - 1))),
            phrases=scene.phrases,
            masks=np.stack([scene.masks[phrase] for phrase in scene.phrases]),
            kinds=tuple(scene.kinds[phrase] for phrase in scene.phrases),
            absent=tuple(scenes.absent_phrases(scene, rng, ABSENT)),
            distracted=tuple(scenes.distractor(scene, phrase) for phrase in scene.phrases),
        )


class TinyWorldTest:
    """`length` scenes of the test `name`, a key of `TESTS`, whatever the number of its renderings."""

    def __init__(self, name: str, length: int, *, start: int = TEST_SEED, size: int = 128) -> None:
        if name not in TESTS:
            raise InputError(f"Expected a test of {', '.join(TESTS)}, got {name!r}.")
        self.name = name
        self.renderings = [TinyWorldDataset(length, start=start, domain=d, size=size) for d in TESTS[name]]

    def __len__(self) -> int:
        return len(self.renderings[0])

    def __getitem__(self, index: int) -> Item:
        item = self.renderings[index % len(self.renderings)][index]
        return with_phrases(item, ASKED[self.name]) if self.name in ASKED else item


def names_held_out_colour(phrase: str) -> bool:
    """True for a known category in a colour of `HELD_OUT_COLOURS`."""
    words = set(phrase.split())
    return bool(words & HELD_OUT_COLOURS) and not words & HELD_OUT_CATEGORIES


def names_held_out_category(phrase: str) -> bool:
    """True for a category of `HELD_OUT_CATEGORIES` in no colour or a known one."""
    words = set(phrase.split())
    return bool(words & HELD_OUT_CATEGORIES) and not words & HELD_OUT_COLOURS


ASKED: dict[str, Callable[[str], bool]] = {"T1": names_held_out_colour, "T2": names_held_out_category}


def with_phrases(item: Item, wanted: Callable[[str], bool]) -> Item:
    """The item with those of its phrases alone, present and absent, that are `wanted`."""
    rows = [i for i, phrase in enumerate(item.phrases) if wanted(phrase)]
    return dataclasses.replace(
        item,
        phrases=tuple(item.phrases[i] for i in rows),
        masks=item.masks[rows],
        kinds=tuple(item.kinds[i] for i in rows),
        absent=tuple(filter(wanted, item.absent)),
        distracted=tuple(item.distracted[i] for i in rows),
    )
