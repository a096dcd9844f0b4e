"""`ldznet evaluate`: what is measured, over which scenes, and the tables that say so."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from ..checkpoints import load_head
from ..data import TinyWorldTest
from ..data.items import Item
from ..errors import InputError
from ..evaluate import benchmark, gates, sweeps
from ..evaluate.benchmark import Outcome, Segment
from ..evaluate.gates import share_interval
from ..evaluate.metrics import bootstrap
from ..evaluate.reading import OWN, reading
from ..hosts.tiny import TinyHost
from ..models import Network
from ..predictor import Predictor
from ..writing import replacing
from .progress import progress_bar


def drawn(count: int, test: str = "T0", size: int = 128) -> list[Item]:
    """The scenes of a test; `size` in pixels."""
    scenes = TinyWorldTest(test, count, size=size)
    return [scenes[i] for i in range(count)]


def tiny(head: str, count: int) -> Table:
    """T0 (photo) and T3 (the other domains): the head, and baselines that never look."""
    host = TinyHost.load()
    predictor = Predictor(host, load_head(head))
    table, presence = _table(f"{head} on {count} unseen scenes each"), []
    for name, test in (("T0 photo", "T0"), ("T3 other domains", "T3")):
        scenes = drawn(count, test)
        outcome = _run(name, benchmark.segment_with(predictor), scenes)
        coloured = outcome.things & benchmark.names_colour(outcome.phrases)
        _rows(table, name, outcome)
        _row(table, f"{name}, things with a distractor", outcome, outcome.things & outcome.distracted)
        _row(table, f"{name}, things by colour", outcome, coloured)
        _rows(table, f"{name}, whole image", _run("whole image", benchmark.whole_image, scenes))
        _row(table, f"{name}, nearest colour", _run("nearest colour", benchmark.nearest_colour, scenes), coloured)
        presence.append(_presence(name, outcome, predictor.config.presence_threshold))
    table.caption = "\n".join(presence)
    return table


def resolution(head: str, count: int) -> Table:
    """Photo scenes at 1, 1.5 and 2 times the head's size: three ways to bring their latents in."""
    host, loaded = TinyHost.load(), load_head(head)
    table = _table(f"{head} on latents of other sizes, {count} photo scenes")
    for scale in sweeps.SCALES:
        scenes = drawn(count, size=round(128 * scale))
        for name, segment in sweeps.by_resolution(host, loaded):
            _rows(table, f"{scale}x, {name}", _run(name, segment, scenes))
    return table


def timestep(head: str, count: int) -> Table:
    """Photo scenes with taps from other timesteps."""
    table = _table(f"{head} by timestep of its taps, {count} photo scenes")
    scenes = drawn(count)
    for name, segment in sweeps.by_timestep(TinyHost.load(), load_head(head)):
        _rows(table, name, _run(name, segment, scenes))
    return table


def taps(head: str, count: int) -> Table:
    """What wrong taps cost a head, latents and text as they were: whether it reads them."""
    loaded, scenes = load_head(head), drawn(count)
    if not isinstance(loaded, Network) or not loaded.head_config.tap_specs:
        raise InputError(f'Expected a head that reads taps, such as "tiny-light" or "tiny", got "{head}".')
    with progress_bar("Segmenting") as progress:
        found = reading(loaded, TinyHost.load(), scenes, progress=progress)
    n = f"{len(found.scenes)} ({len(set(found.scenes.tolist()))})"
    table = Table("taps", "n things (images)", "mIoU @0.5", "what it costs", title=f"{head}, {count} photo scenes")
    for name, ious in found.ious.items():
        mean, low, high = bootstrap(ious, found.scenes)
        cost = "" if name == OWN else "{:.3f} ({:.3f} .. {:.3f})".format(*found.cost(name))
        table.add_row(name, n, f"{mean:.3f} ({low:.3f} .. {high:.3f})", cost)
    return table


def naming(weights: Path, count: int) -> tuple[Table, bool]:
    """Whether a noun's attention picks, of three things, the one that it names; no LDM here has to."""
    return _gates_table([gates.naming(TinyHost.load(weights=weights), count)], count), True


def gate_table(weights: Path, count: int) -> tuple[Table, bool]:
    """The gates of the tiny world, and whether every figure reaches what it must."""
    with progress_bar("Generating") as progress:
        reached = gates.gates(TinyHost.load(weights=weights), weights, count, progress)
    return _gates_table(reached, count), all(gate.passed for gate in reached)


def _gates_table(reached: Sequence[gates.Gate], count: int) -> Table:
    table = Table(
        "gate", "n", "figure (95 %)", "needed", "passed", "beside it", title="Gates over unseen scenes or captions"
    )
    for gate in reached:
        passed, (low, high) = "yes" if gate.passed else "NO", gate.interval or share_interval(gate.figure, count)
        figure = f"{gate.figure:.3f} ({low:.3f} .. {high:.3f})"
        table.add_row(gate.name, str(count), figure, f"{gate.needed:g}", passed, gate.note)
    return table


def write_table(table: Table, path: Path) -> None:
    """A table as JSON: its columns, its rows of texts, and what stands below it."""
    columns = [list(column.cells) for column in table.columns]
    rows = [[str(cell).replace("\n", " ") for cell in row] for row in zip(*columns, strict=True)]
    facts = {"columns": [str(column.header) for column in table.columns], "rows": rows, "caption": table.caption or ""}
    with replacing(path) as file:
        file.write(json.dumps(facts, indent=1, ensure_ascii=False).encode())


def _run(label: str, segment: Segment, scenes: Sequence[Item]) -> Outcome:
    with progress_bar(label) as progress:
        return benchmark.run(segment, scenes, progress)


def _table(title: str) -> Table:
    columns = ("what", "n phrases (images)", "mIoU @0.5", "@0.3", "best (at)", "IoU_FG", "AP", "boundary F")
    return Table(*columns, title=f"{title}; 95 % intervals over images")


def _rows(table: Table, name: str, outcome: Outcome) -> None:
    _row(table, f"{name}, things", outcome, outcome.things)
    _row(table, f"{name}, stuff", outcome, ~outcome.things)


def _row(table: Table, name: str, outcome: Outcome, rows: np.ndarray) -> None:
    f, of = benchmark.figures(outcome, rows), benchmark.intervals(outcome, rows)
    columns = ("miou_50", "miou_30", "miou_best", "iou_fg", "ap", "boundary")
    cells = [f"{getattr(f, c):.3f}\n({of[c][0]:.3f} .. {of[c][1]:.3f})" for c in columns]
    cells[2] = cells[2].replace("\n", f" ({f.best:.2f})\n")
    table.add_row(name, f"{f.phrases:,} ({f.images:,})", *cells)


def _presence(name: str, outcome: Outcome, threshold: float) -> str:
    """One line on presence: AUROC, and how many are found at the head's threshold."""
    everything, hard = benchmark.presence(outcome)
    low, high = benchmark.presence_interval(outcome)
    found, false = (outcome.scores >= threshold).mean(), (outcome.absent_scores >= threshold).mean()
    return (
        f"{name}: presence AUROC {everything:.3f} ({low:.3f} .. {high:.3f}), against near misses {hard:.3f} "
        f"({outcome.absent_hard.mean():.0%} of the absent); found {found:.1%} of {len(outcome.scores)} present and "
        f"{false:.1%} of {len(outcome.absent_scores)} absent."
    )
