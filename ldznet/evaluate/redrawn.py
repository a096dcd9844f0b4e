"""T4 of the tiny world: scenes that the LDM drew over, with the masks that they had before.

What a thing became is checked by its colour, as far as that can be told; only things that keep theirs are asked for.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ..data.items import Item
from ..data.tinyworld import TEST_SEED, TinyWorldDataset, with_phrases
from ..hosts.tiny import TinyHost
from ..images import to_pictures, to_pixels
from ..tinyworld import COLOURS, Scene, scene
from ..tinyworld.words import matching

TIMESTEP = 300  # from 500 on forms move, and the masks from before are wrong
PALETTE = np.array(list(COLOURS.values()), np.float32)


class RedrawnScenes:
    """Photo scenes `start` .. `start + length - 1`, noised to `timestep` and drawn again with their captions."""

    def __init__(self, host: TinyHost, length: int, *, start: int = TEST_SEED, timestep: int = TIMESTEP) -> None:
        self.host, self.timestep = host, timestep
        self.scenes = TinyWorldDataset(length, start=start, domain="photo")

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Item:
        """The picture anew; of its phrases the stuff, and those whose things all kept their colour."""
        item = self.scenes[index]
        before = scene(self.scenes.start + index, "photo")
        latents = self.host.encode_image(to_pixels(item.image))
        drawn = self.host.redraw(latents, item.captions[:1], self.timestep, seed=self.scenes.start + index)
        image = to_pictures(self.host.decode_latents(drawn))[0]
        kept = kept_phrases(before, image)
        asked = with_phrases(item, lambda phrase: phrase in kept or phrase in item.absent)
        return dataclasses.replace(asked, image=image)


def kept_phrases(before: Scene, image: np.ndarray) -> set[str]:
    """The phrases of a scene that still hold in `image` h w 3, as far as colours say."""
    lost = [thing for thing in before.things if nearest_colour(image[thing.mask]) != thing.colour]
    return {phrase for phrase in before.phrases if not matching(lost, phrase)}


def nearest_colour(pixels: np.ndarray) -> str:
    """The palette's colour that is nearest to the mean of `pixels` n 3, RGB."""
    distance = np.linalg.norm(PALETTE - np.mean(pixels, axis=0), axis=1)
    return list(COLOURS)[int(distance.argmin())]
