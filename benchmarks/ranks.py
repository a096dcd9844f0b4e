"""How much of a head fits into changes of low rank: LD-ZNet whole, and as heads of two passes at several ranks.

    python benchmarks/ranks.py       four heads of three seeds each; a cell that is there is not made again

Every head starts from the LDM's own weights and is trained alike on `--labels` photo scenes (other ones for each seed)
whose labels never name the held-out colours and categories. Figures are mIoU at 0.5 on photo scenes from 0 on, and on
the other renderings of them; differences are of the same phrases, their intervals over scenes and seeds. Cells lie in
docs/figures/ranks/, the runs that made them in `--work`, where a run that was stopped goes on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from helpers import ROOT, TEST, Row, drawn, kept, known, labelled, mean, parser, report, trained

from ldznet.data.tinyworld import names_held_out_category, names_held_out_colour
from ldznet.evaluate import benchmark
from ldznet.hosts.tiny import TinyHost
from ldznet.models import DeltaHead, Network, build_head
from ldznet.predictor import Predictor
from ldznet.tinyworld import world
from ldznet.train.engine import TrainConfig
from ldznet.train.head import start_from
from ldznet.train.recipe import seeded
from ldznet.train.tiers import tier_config

CELLS = ROOT / "docs/figures/ranks"
RANKS, SEEDS = (4, 8, 16), (0, 1, 2)
Values = dict[str, dict[str, list[float]]]
"""By test: the IoU of each phrase, and its scene."""

ASKED: dict[str, tuple[str, Callable[[str, bool], bool]]] = {
    "things": ("T0", lambda phrase, thing: thing and known(phrase)),
    "stuff": ("T0", lambda phrase, thing: not thing),
    "untaught colours": ("T0", lambda phrase, thing: thing and names_held_out_colour(phrase)),
    "untaught nouns": ("T0", lambda phrase, thing: thing and names_held_out_category(phrase)),
    "other renderings": ("T3", lambda phrase, thing: thing and known(phrase)),
}


def fresh(rank: int, host: TinyHost, seed: int) -> Network:
    """A head at the start of its training; rank 0 is LD-ZNet whole."""
    with seeded(seed):
        if rank == 0:
            head = build_head(world.head_config("ldznet"))
            start_from(head, host.unet)
            return head
        head = build_head(tier_config("two", "tiny", world.UNET, world.PIXELS, rank))
        assert isinstance(head, DeltaHead)
        return head.begin()


def cell(rank: int, seed: int, labels: int, steps: int, scenes: int, work: Path) -> Values:
    """One head trained and asked."""
    host = TinyHost.load(dtype=torch.float32)
    training = TrainConfig(steps, seed=seed, ema=0.99, save_every=50)
    head = fresh(rank, host, seed)
    trained(head, host, labelled(seed, labels, host, work), training, work / f"{rank}-{seed}")
    segment, found = benchmark.segment_with(Predictor(host, head)), Values()
    outcomes = {test: benchmark.run(segment, drawn(test, scenes)) for test in ("T0", "T3")}
    for name, (test, asked) in ASKED.items():
        outcome = outcomes[test]
        rows = [i for i, p in enumerate(outcome.phrases) if asked(str(p), bool(outcome.things[i]))]
        iou = outcome.counts.iou()[rows, benchmark.MIDDLE]
        found[name] = {"iou": iou.round(4).tolist(), "scene": outcome.images[rows].tolist()}
    return found


def rows(found: dict[tuple[int, int], Values], seeds: Sequence[int]) -> Iterator[tuple[str, Row]]:
    """mIoU of each head, and what each rank lacks of the whole one; a scene of another seed is another one."""

    def together(rank: int, test: str, what: str = "iou") -> np.ndarray:
        return np.concatenate([np.array(found[rank, seed][test][what]) for seed in seeds])

    images = {
        test: np.concatenate([np.array(found[0, s][test]["scene"]) + s * 1_000_000 for s in seeds]) for test in ASKED
    }
    asked = [test for test in ASKED if len(images[test])]
    for rank in (0, *RANKS):
        yield (
            f"rank {rank}" if rank else "whole",
            {test: mean(together(rank, test), images[test]) for test in asked},
        )
    for rank in RANKS:
        yield (
            f"rank {rank} - whole",
            {test: mean(together(rank, test) - together(0, test), images[test]) for test in asked},
        )
    yield "n phrases", {test: len(images[test]) for test in ASKED}


if __name__ == "__main__":
    made = parser(__doc__)
    made.add_argument("--scenes", type=int, default=60, help="of the test")
    made.add_argument("--labels", type=int, default=512, help="scenes that a head is trained on")
    made.add_argument("--steps", type=int, default=1000, help="of 16 rows")
    made.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    made.add_argument("--work", type=Path, default=Path("runs/ranks"), help="folder of the runs")
    made.add_argument("--cells", type=Path, default=CELLS, help="folder of the cells")
    given = made.parse_args()
    setting = {"labels": given.labels, "steps": given.steps, "batch": 16, "scenes": given.scenes, "first scene": TEST}
    numbers = (given.labels, given.steps, given.scenes, given.work)
    every = {
        (rank, seed): kept(given.cells / f"{rank}-{seed}.json", setting, functools.partial(cell, rank, seed, *numbers))
        for seed in given.seeds
        for rank in (0, *RANKS)
    }
    report(rows(every, given.seeds), given.json)
