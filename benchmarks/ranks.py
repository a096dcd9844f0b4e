"""How much of a head fits into changes of low rank: LD-ZNet whole, and as heads of two passes at several ranks.

    python benchmarks/ranks.py       four heads of three seeds each; a cell that is there is not made again

Every head starts from the LDM's own weights and is trained alike on `--labels` photo scenes (other ones for each seed)
whose labels never name the held-out colours and categories. Figures are mIoU at 0.5 on photo scenes from 0 on, and on
the other renderings of them; differences are of the same phrases, their intervals over scenes and seeds. Cells lie in
docs/figures/ranks/, the runs that made them in `--work`, where a run that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from helpers import Values, drawn, known, labelled, of_cells, trained

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

WHOLE = "whole"
RANKS = {WHOLE: 0, "rank 4": 4, "rank 8": 8, "rank 16": 16}

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


def cell(name: str, seed: int, labels: int, steps: int, scenes: int, work: Path) -> Values:
    """One head trained and asked."""
    host = TinyHost.load(dtype=torch.float32)
    training = TrainConfig(steps, seed=seed, ema=0.99, save_every=50)
    head = fresh(RANKS[name], host, seed)
    trained(head, host, labelled(seed, labels, host, work), training, work / f"{name}-{seed}".replace(" ", "-"))
    segment, found = benchmark.segment_with(Predictor(host, head)), {}
    outcomes = {test: benchmark.run(segment, drawn(test, scenes)) for test in ("T0", "T3")}
    for what, (test, asked) in ASKED.items():
        outcome = outcomes[test]
        rows = [i for i, p in enumerate(outcome.phrases) if asked(str(p), bool(outcome.things[i]))]
        iou = outcome.counts.iou()[rows, benchmark.MIDDLE]
        found[what] = {"iou": iou.round(4).tolist(), "scene": outcome.images[rows].tolist()}
    return found


if __name__ == "__main__":
    of_cells(__doc__, cell, list(RANKS), [(name, WHOLE) for name in list(RANKS)[1:]], "ranks", labels=512, steps=1000)
