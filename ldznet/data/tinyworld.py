"""The tiny world as a dataset: scene seeds as items. The splits never share a seed."""

from __future__ import annotations

import numpy as np

from ..errors import InputError
from ..tinyworld import scenes
from .items import Item

TRAIN_SEED, TEST_SEED = 1_000_000, 0  # scenes 0 .. 999,999 are never trained on
CAPTIONS, ABSENT = 4, 8


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
