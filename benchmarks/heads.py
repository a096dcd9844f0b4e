"""The paper's heads and heads of low rank, trained alike from few labels.

    python benchmarks/heads.py                        all with three seeds; a cell that is there is not made again
    python benchmarks/heads.py --only ZNet LD-ZNet    these alone

Every head starts from the LDM's own weights and learns from `--labels` photo scenes (other ones for each seed) whose
labels never name the held-out colours and categories. RGBNet, ZNet, LD-ZNet and the fusion by concatenation are the
paper's; "best blocks" are those of the sweep over blocks at 16 x 16 and 8 x 8, where the published ones are 4 x 4 and
2 x 2. "four times the rate" learns at 2e-3, where the others do at 5e-4; "inputs left out" does so too, without latents
in a quarter of its rows and without taps in another. Ranks are those of changes to the linear layers of the LDM's
own transformers, in two passes.

Figures are mIoU at 0.5 on photo scenes from 0 on, and on the other renderings of them; "cost of wrong taps" is what
things lose of theirs to the taps of the next scene. Differences are of the same phrases, their intervals over scenes
and seeds. Cells lie in docs/figures/heads/, the runs that made them in `--work`, where a run that was stopped goes on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from helpers import Values, drawn, known, labelled, of_cells, slug, trained

from ldznet.config import HeadConfig
from ldznet.data.tinyworld import names_held_out_category, names_held_out_colour
from ldznet.evaluate import benchmark
from ldznet.evaluate.reading import reading
from ldznet.hosts.tiny import TinyHost
from ldznet.models import DeltaHead, Network, build_head
from ldznet.predictor import Predictor
from ldznet.tinyworld import world
from ldznet.train.engine import TrainConfig
from ldznet.train.head import INPUT_DROP, start_from
from ldznet.train.recipe import seeded
from ldznet.train.tiers import tier_config

RANKS = (16, 8, 4)
BEST = ("input.2", "input.4", "input.5")


def own(network: str, blocks: tuple[str, ...] | None = None) -> HeadConfig:
    """One of the paper's, with the published blocks if there are no others."""
    config = world.head_config(network)
    return dataclasses.replace(config, blocks=blocks or config.blocks)


def low(rank: int) -> HeadConfig:
    """Two passes of the LDM under changes of a rank."""
    return tier_config("two", "tiny", world.UNET, world.PIXELS, rank)


HEADS: dict[str, HeadConfig] = {
    "RGBNet": own("rgbnet"),
    "ZNet": own("znet"),
    "LD-ZNet": own("ldznet"),
    "LD-ZNet, best blocks": own("ldznet", BEST),
    "concatenation, best blocks": own("concatenation", BEST),
    "rank 16": low(16),
    **{f"rank {rank}, four times the rate": low(rank) for rank in RANKS},
    "LD-ZNet, four times the rate": own("ldznet"),
    "ZNet, four times the rate": own("znet"),
    "LD-ZNet, best blocks, inputs left out": own("ldznet", BEST),
    "rank 16, inputs left out": low(16),
}
FAST = 4 * TrainConfig.learning_rate  # changes of low rank are mostly learned faster than whole weights
PAIRS = [
    ("RGBNet", "ZNet"),
    ("LD-ZNet", "ZNet"),
    ("LD-ZNet, best blocks", "ZNet"),
    ("LD-ZNet, best blocks", "LD-ZNet"),
    ("concatenation, best blocks", "LD-ZNet, best blocks"),
    ("LD-ZNet, four times the rate", "LD-ZNet"),
    ("LD-ZNet, four times the rate", "ZNet, four times the rate"),
    ("rank 16", "LD-ZNet"),
    ("rank 16, inputs left out", "rank 16, four times the rate"),
    *((f"rank {rank}, four times the rate", "LD-ZNet, four times the rate") for rank in RANKS),
]

COST = "cost of wrong taps"
ASKED: dict[str, tuple[str, Callable[[str, bool], bool]]] = {
    "things": ("T0", lambda phrase, thing: thing and known(phrase)),
    "stuff": ("T0", lambda phrase, thing: not thing),
    "untaught colours": ("T0", lambda phrase, thing: thing and names_held_out_colour(phrase)),
    "untaught nouns": ("T0", lambda phrase, thing: thing and names_held_out_category(phrase)),
    "other renderings": ("T3", lambda phrase, thing: thing and known(phrase)),
}


def fresh(config: HeadConfig, host: TinyHost, seed: int) -> Network:
    """A head at the start of its training."""
    with seeded(seed):
        head = build_head(config)
    if isinstance(head, DeltaHead):
        return head.begin()
    start_from(head, host.unet)
    return head


def cell(name: str, seed: int, labels: int, steps: int, scenes: int, work: Path) -> Values:
    """One head trained and asked."""
    host = TinyHost.load(dtype=torch.float32)
    left_out = "left out" in name
    rate = FAST if left_out or "four times" in name else TrainConfig.learning_rate
    training = TrainConfig(steps, learning_rate=rate, seed=seed, ema=0.99, save_every=50)
    head, folder = fresh(HEADS[name], host, seed), work / slug(name, seed)
    trained(head, host, labelled(seed, labels, host, work), training, folder, input_drop=INPUT_DROP if left_out else 0)
    segment, found = benchmark.segment_with(Predictor(host, head)), {}
    outcomes = {test: benchmark.run(segment, drawn(test, scenes)) for test in ("T0", "T3")}
    for what, (test, asked) in ASKED.items():
        outcome = outcomes[test]
        rows = [i for i, p in enumerate(outcome.phrases) if asked(str(p), bool(outcome.things[i]))]
        iou = outcome.counts.iou()[rows, benchmark.MIDDLE]
        found[what] = {"iou": iou.round(4).tolist(), "scene": outcome.images[rows].tolist()}
    found[COST] = {**found["things"], "iou": cost_of_wrong_taps(head, host, scenes, found["things"]["iou"])}
    return found


def cost_of_wrong_taps(head: Network, host: TinyHost, scenes: int, own: Sequence[float]) -> list[float]:
    """What each of *things* loses of its `own` IoU to the taps of the next scene; a head without taps, nothing."""
    if not head.head_config.tap_specs:
        return [0.0] * len(own)
    asked, mistake = ASKED["things"][1], "taps of another scene"
    found = reading(
        head, host, drawn("T0", scenes), asked=lambda phrase, kind: asked(phrase, kind == "thing"), mistakes=[mistake]
    )
    return (np.asarray(own) - found.ious[mistake]).round(4).tolist()


if __name__ == "__main__":
    of_cells(__doc__, cell, list(HEADS), PAIRS, "heads", labels=128, steps=400)
