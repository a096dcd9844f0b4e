"""Are taps of use to a head that is small? The light head with taps, without, and with those of an untrained UNet.

    python benchmarks/usefulness.py       three heads of three seeds each; a cell that is there is not made again

Each head is trained alike on `--labels` photo scenes (other ones for each seed) whose labels never name the held-out
colours and categories, then asked on photo scenes from 0 on, and on the other renderings of them. Figures are mIoU at
0.5 of things; differences are of the same phrases, their intervals over scenes and seeds. Cells lie in
docs/figures/usefulness/, the runs that made them in `--work`, where a run that was stopped goes on.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from helpers import ROOT, TEST, Row, drawn, kept, known, labelled, mean, parser, report, trained, untrained

from ldznet.data.tinyworld import names_held_out_category, names_held_out_colour
from ldznet.evaluate.reading import NULL, OWN, reading
from ldznet.hosts.tiny import TinyHost
from ldznet.models import build_head
from ldznet.tinyworld import world
from ldznet.train.engine import TrainConfig
from ldznet.train.recipe import seeded

CELLS = ROOT / "docs/figures/usefulness"
KINDS, SEEDS = ("taps", "no taps", "untrained taps"), (0, 1, 2)
CONFIG = dataclasses.replace(world.head_config("light"), timestep=200, timestep_range=(200, 200))
Values = dict[str, dict[str, list[float]]]
"""By test: the IoU of each phrase, and its scene."""


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
    host, folder = host_of(kind), work / f"{kind}-{seed}".replace(" ", "-")
    with seeded(seed):
        head = build_head(CONFIG)
    blind = kind == "no taps"
    training = TrainConfig(steps, seed=seed, ema=0.99, save_every=100)
    trained(head, host, labelled(seed, labels, host, work), training, folder, blind)
    found: Values = {}
    for name, (test, asked) in ASKED.items():
        items = drawn(test, scenes)
        read = reading(head, host, items, asked=lambda p, k, asked=asked: k == "thing" and asked(p), mistakes=[NULL])
        found[name] = {"iou": read.ious[NULL if blind else OWN].round(4).tolist(), "scene": read.scenes.tolist()}
    return found


def cells(labels: int, steps: int, scenes: int, work: Path, folder: Path, seeds: Sequence[int]) -> dict[str, Values]:
    """Every cell, by kind and seed, from `folder` or made and put there."""
    found: dict[str, Values] = {}
    for seed in seeds:
        for kind in KINDS:
            path = folder / f"{kind}-{seed}.json".replace(" ", "-")
            setting = {"labels": labels, "steps": steps, "batch": 16, "scenes": scenes, "first scene": TEST}
            make = functools.partial(cell, kind, seed, labels, steps, scenes, work)
            found[f"{kind}-{seed}"] = kept(path, setting, make)
    return found


def rows(found: dict[str, Values], seeds: Sequence[int]) -> Iterator[tuple[str, Row]]:
    """mIoU of each kind, and of what taps gain over each of the others; a scene of another seed is another one."""

    def together(kind: str, test: str) -> np.ndarray:
        return np.concatenate([found[f"{kind}-{seed}"][test]["iou"] for seed in seeds])

    images = {
        test: np.array([s * 1_000_000 + i for s in seeds for i in found[f"taps-{s}"][test]["scene"]]) for test in ASKED
    }
    asked = [test for test in ASKED if len(images[test])]
    for kind in KINDS:
        yield kind, {test: mean(together(kind, test), images[test]) for test in asked}
    for other in KINDS[1:]:
        yield (
            f"taps - {other}",
            {test: mean(together("taps", test) - together(other, test), images[test]) for test in asked},
        )
    yield "n phrases", {test: len(images[test]) for test in ASKED}


if __name__ == "__main__":
    made = parser(__doc__)
    made.add_argument("--scenes", type=int, default=60, help="of the test")
    made.add_argument("--labels", type=int, default=128, help="scenes that a head is trained on")
    made.add_argument("--steps", type=int, default=400, help="of 16 rows")
    made.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    made.add_argument("--work", type=Path, default=Path("runs/usefulness"), help="folder of the runs")
    made.add_argument("--cells", type=Path, default=CELLS, help="folder of the cells")
    given = made.parse_args()
    every = cells(given.labels, given.steps, given.scenes, given.work, given.cells, given.seeds)
    report(rows(every, given.seeds), given.json)
