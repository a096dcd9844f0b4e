"""T4: what the LDM draws over, and which phrases are still asked."""

from __future__ import annotations

import numpy as np
import torch

from ldznet.evaluate import redrawn
from ldznet.hosts.tiny import TinyHost
from ldznet.tinyworld import COLOURS, scene


def test_a_thing_that_lost_its_colour_is_not_asked_for() -> None:
    before = scene(3, "photo")
    first = before.things[0]
    other = next(name for name in COLOURS if name != first.colour)
    image = np.zeros((128, 128, 3), np.uint8)
    for thing in before.things:
        image[thing.mask] = COLOURS[other if thing is first else thing.colour]
    kept = redrawn.kept_phrases(before, image)
    lost = set(before.phrases) - kept
    assert f"a {first.category}".split()[-1] in " ".join(lost)
    assert all(first.category in phrase for phrase in lost)
    assert {phrase for phrase, kind in before.kinds.items() if kind == "stuff"} <= kept


def test_from_little_noise_the_picture_comes_back_and_from_much_it_does_not() -> None:
    host = TinyHost.load()
    item = redrawn.RedrawnScenes(host, 1, start=3).scenes[0]
    latents = host.encode_image(torch.from_numpy(item.image).permute(2, 0, 1)[None].float() / 127.5 - 1)
    little, much = (host.redraw(latents, item.captions[:1], t, steps=3) - latents for t in (50, 900))
    assert little.abs().mean() < 0.3 * latents.abs().mean()
    assert much.abs().mean() > little.abs().mean() * 2
