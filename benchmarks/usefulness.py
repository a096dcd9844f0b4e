"""Are taps of use to a head that is small? The light head with taps, without, and with those of an untrained UNet.

    python benchmarks/usefulness.py       three heads of three seeds each; a cell that is there is not made again

Each head is trained alike on `--labels` photo scenes (other ones for each seed) whose labels never name the held-out
colours and categories, then asked on photo scenes from 0 on, and on the other renderings of them. Figures are mIoU at
0.5 of things; differences are of the same phrases, their intervals over scenes and seeds. Cells lie in
docs/figures/usefulness/, the runs that made them in `--work`, where a run that was stopped goes on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from helpers import Values, drawn, known, labelled, of_cells, slug, trained, untrained

from ldznet.data.tinyworld import names_held_out_category, names_held_out_colour
from ldznet.evaluate.reading import NULL, OWN, reading
from ldznet.hosts.tiny import TinyHost
from ldznet.models import build_head
from ldznet.tinyworld import world
from ldznet.train.engine import TrainConfig
from ldznet.train.recipe import seeded

KINDS = ("taps", "no taps", "untrained taps")
CONFIG = dataclasses.replace(world.head_config("light"), timestep=200, timestep_range=(200, 200))

ASKED: dict[str, tuple[str, Callable[[str], bool]]] = {
    "known words": ("T0", known),
    "untaught colours": ("T0", names_held_out_colour),
    "untaught nouns": ("T0", names_held_out_category),
    "other renderings": ("T3", known),
}


def host_of(kind: str) -> TinyHost:
    """The tiny LDM, with a UNet that has learned nothing where `kind` says so."""
    host = TinyHost.load(dtype=torch.float32)
    return untrained(host) if kind == "untrained taps" else host


def cell(kind: str, seed: int, labels: int, steps: int, scenes: int, work: Path) -> Values:
    """One head trained and asked."""
    host, folder = host_of(kind), work / slug(kind, seed)
    with seeded(seed):
        head = build_head(CONFIG)
    blind = kind == "no taps"
    training = TrainConfig(steps, seed=seed, ema=0.99, save_every=100)
    trained(head, host, labelled(seed, labels, host, work), training, folder, blind=blind)
    found = {}
    for name, (test, asked) in ASKED.items():
        items = drawn(test, scenes)
        read = reading(head, host, items, asked=lambda p, k, asked=asked: k == "thing" and asked(p), mistakes=[NULL])
        found[name] = {"iou": read.ious[NULL if blind else OWN].round(4).tolist(), "scene": read.scenes.tolist()}
    return found


if __name__ == "__main__":
    of_cells(__doc__, cell, KINDS, [("taps", other) for other in KINDS[1:]], "usefulness", labels=128, steps=400)
