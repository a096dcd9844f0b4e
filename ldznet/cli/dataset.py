"""`ldznet evaluate --dataset`: heads on a dataset, beside each other and beside what others published."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table

from ..checkpoints import load_head
from ..data import DATASETS, FolderDataset, TinyWorldTest
from ..data.annotated import PAGE
from ..data.items import Dataset
from ..data.tinyworld import TESTS
from ..errors import InputError
from ..evaluate import benchmark, clipseg, shards
from ..evaluate.benchmark import Outcome, Segment
from ..evaluate.metrics import THRESHOLDS, bootstrap
from ..evaluate.published import PUBLISHED
from ..hosts import open_host
from ..predictor import Predictor
from ..shapes import PIXELS_PER_LATENT
from .progress import progress_bar
from .results import results
from .sheet import Row, sheet

CLIPSEG, WHOLE = "CLIPSeg", "the whole image"
COLUMNS = ("miou_50", "miou_30", "miou_best", "iou_fg_30", "iou_fg", "ap", "boundary")
TITLES = ("mIoU @0.5", "mIoU @0.3", "mIoU best (at)", "IoU_FG @0.3", "IoU_FG best", "AP", "boundary F")
CASES = 4  # best and worst ones in the picture of each


@dataclass(frozen=True)
class Setting:
    """What the command line asked for. `size` None is the first head's own, 0 leaves pictures as they are; `clipseg` is
    a folder to be measured beside the heads."""

    dataset: str
    folder: Path | None
    split: str | None
    heads: tuple[str, ...]
    model: str
    clipseg: Path | None
    size: int | None
    scenes: int
    device: str | None
    seed: int


def evaluate(setting: Setting, out: Path | None) -> Table | None:
    """Measures every head over the dataset; writes the figures, the curve and the cases into `out`. None in processes
    other than the first."""
    segments, size = _segments(setting)
    items = opened(setting.dataset, setting.folder, setting.split, size or None, setting.scenes)
    outcomes = {name: _measured(name, segment, items) for name, segment in segments.items()}
    if shards.shard()[0]:
        return None
    asked = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(setting).items()}
    facts = {**asked, "size": size, "items": len(items), **report(outcomes, setting.dataset)}
    if out is not None:
        _write(out, facts, outcomes, next(iter(segments.values())), items)
    return table(facts)


def opened(name: str, folder: Path | None, split: str | None, size: int | None, scenes: int) -> Dataset:
    """The dataset `name`, its pictures squashed to `size` x `size`, or as they are where that is None; its usual split
    where `split` is None. `scenes`: how many, of a test of the tiny world. Raises InputError for one there is not."""
    if name in (*TESTS, "T4"):
        return _tiny_world(name, scenes, size or 128)
    known = [known for known in DATASETS if known != "tinyworld"]
    if name not in known:
        raise InputError(f"Expected a dataset of {', '.join((*known, *TESTS, 'T4'))}, got {name!r}. {PAGE}")
    if folder is None:
        raise InputError(f"Expected a folder with the files of {name}, got none. Give --data FOLDER. {PAGE}")
    if issubclass(DATASETS[name], FolderDataset):
        return FolderDataset(folder, size=size, cropped=False)
    given = {} if split is None else {"split": split}
    kind: Any = DATASETS[name]
    return kind(folder, size=size, **given)


def _tiny_world(name: str, scenes: int, size: int) -> Dataset:
    if name in TESTS:
        return TinyWorldTest(name, scenes, size=size)
    from ..evaluate.redrawn import RedrawnScenes
    from ..hosts.tiny import TinyHost

    return RedrawnScenes(TinyHost.load(), scenes)


def _segments(setting: Setting) -> tuple[dict[str, Segment], int]:
    """What segments, by name, and the side of the square that pictures are brought to; 0: they stay as they are."""
    segments, sides, host = dict[str, Segment](), list[int](), None
    for name in setting.heads:
        host = host or open_host(setting.model, device=setting.device)
        predictor = Predictor(host, load_head(name, device=setting.device), seed=setting.seed)
        sides.append(max(predictor.config.latent_grid) * PIXELS_PER_LATENT)
        segments[name] = benchmark.segment_with(predictor)
    if setting.clipseg is not None:
        segments[CLIPSEG] = clipseg.clipseg(setting.clipseg, setting.device)
        sides.append(clipseg.SIDE)
    if not segments:
        raise InputError("Expected at least one head, got none. Give --head or --clipseg.")
    segments[WHOLE] = benchmark.whole_image
    return segments, sides[0] if setting.size is None else setting.size


def _measured(name: str, segment: Segment, items: Dataset) -> Outcome:
    with progress_bar(name) as progress:
        return shards.gathered(benchmark.run(segment, items, progress, shards.shard()))


def report(outcomes: Mapping[str, Outcome], dataset: str) -> dict[str, Any]:
    """All figures with their intervals, as plain data: of each head, of pairs of heads, and published ones."""
    names = list(outcomes)
    return {
        "heads": {name: dict(_of_kinds(outcome)) for name, outcome in outcomes.items()},
        "presence": {name: _presence(outcome) for name, outcome in outcomes.items() if name != WHOLE},
        "less": {f"{name} less {names[0]}": _less(outcomes[name], outcomes[names[0]]) for name in names[1:]},
        "published": [row._asdict() for row in PUBLISHED.get(dataset, ())],
    }


def _of_kinds(outcome: Outcome) -> Iterator[tuple[str, dict[str, Any]]]:
    """Figures, intervals and curves over all phrases, and over things and stuff where there are both."""
    kinds = {"all": outcome.things | True}
    if len(set(outcome.things.tolist())) > 1:
        kinds |= {"things": outcome.things, "stuff": ~outcome.things}
    for kind, rows in kinds.items():
        counts = outcome.counts.select(np.flatnonzero(rows))
        curves = {"miou": counts.miou().tolist(), "iou_fg": counts.iou_fg().tolist()}
        figures = asdict(benchmark.figures(outcome, rows))
        yield kind, {**figures, "intervals": benchmark.intervals(outcome, rows), "curves": curves}


def _presence(outcome: Outcome) -> dict[str, Any] | None:
    """How scores part what is there from what is not; None where nothing is said to be absent."""
    if not len(outcome.absent_scores):
        return None
    auroc = benchmark.auroc(outcome.scores, outcome.absent_scores)
    sizes = {"present": len(outcome.scores), "absent": len(outcome.absent_scores)}
    return {"auroc": auroc, "interval": benchmark.presence_interval(outcome), **sizes}


def _less(outcome: Outcome, first: Outcome) -> tuple[float, float, float]:
    """Difference in mIoU at 0.5, phrase by phrase, and its 95 % interval over images."""
    ious = [x.counts.iou()[:, benchmark.MIDDLE] for x in (outcome, first)]
    return bootstrap(ious[0] - ious[1], outcome.images)


def table(facts: Mapping[str, Any]) -> Table:
    """What `report` says, as a table."""
    shown = Table("head", "n phrases (images)", *TITLES, "presence AUROC", title=f"{facts['dataset']}, 95 % intervals")
    for name, kinds in facts["heads"].items():
        for kind, found in kinds.items():
            label = name if kind == "all" else f"{name}, {kind}"
            auroc = facts["presence"].get(name) if kind == "all" else None
            presence = _cell(auroc["auroc"], auroc["interval"]) if auroc else ""
            n = f"{found['phrases']:,} ({found['images']:,})"
            shown.add_row(label, n, *(_figure(found, column) for column in COLUMNS), presence)
    for name, (mean, low, high) in facts["less"].items():
        shown.add_row(name, "", f"{mean:+.3f}\n({low:+.3f} .. {high:+.3f})")
    for row in facts["published"]:
        cells = [row.get(column) for column in ("miou_30", "miou_best", "", "iou_fg", "ap")]
        said = [f"{cell / 100:.3f}" if cell is not None else "" for cell in cells]
        shown.add_row(f"{row['system']} (published)", "", "", *said, "", "", style="dim")
    shown.caption = "\n".join(dict.fromkeys(f"published: {row['note']}" for row in facts["published"] if row["note"]))
    return shown


def _figure(found: Mapping[str, Any], column: str) -> str:
    cell = _cell(found[column], found["intervals"][column])
    return cell.replace("\n", f" ({found['best']:.2f})\n") if column == "miou_best" else cell


def _cell(value: float, interval: Sequence[float]) -> str:
    return f"{value:.3f}\n({interval[0]:.3f} .. {interval[1]:.3f})"


def _write(
    out: Path, facts: Mapping[str, Any], outcomes: Mapping[str, Outcome], segment: Segment, items: Dataset
) -> None:
    """result.json, curve.png, worst.png and best.png; the cases are those of the first head, segmented once more."""
    ious = next(iter(outcomes.values())).counts.iou()[:, benchmark.MIDDLE]
    order = np.argsort(ious, kind="stable")
    with results(out, facts) as save:
        save("curve.png", curve(facts["heads"]))
        for name, rows in {"worst": order[:CASES], "best": order[::-1][:CASES]}.items():
            save(f"{name}.png", _cases(name, outcomes, rows, segment, items))


def _cases(
    name: str, outcomes: Mapping[str, Outcome], rows: np.ndarray, segment: Segment, items: Dataset
) -> Image.Image:
    """Some rows of the first head: the picture, the truth, the soft mask, and both over each other."""
    head, outcome = next(iter(outcomes.items()))
    shown = []
    for row in rows:
        item, phrase = items[int(outcome.images[row])], str(outcome.phrases[row])
        truth, (soft, _) = item.masks[item.phrases.index(phrase)], segment(item, (*item.phrases, *item.absent))
        found = soft[item.phrases.index(phrase)]
        notes = ("", f"IoU {outcome.counts.iou()[row, benchmark.MIDDLE]:.3f}")
        maps, masks = np.stack([truth, found]), np.stack([truth, found > benchmark.MASK])
        shown.append(Row(item.image, phrase, ("truth", "found"), maps, masks, notes))
    return sheet(shown, f"{head}: its {name} of {len(outcome.images):,} phrases")


def curve(heads: Mapping[str, Any]) -> Image.Image:
    """mIoU and IoU_FG over the 49 thresholds, a line for each head."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        install = 'pip install "ldznet[train]"'
        raise InputError(f"Expected matplotlib for the curve, got: {error}. {install}") from error
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, 2), {"miou": "mIoU", "iou_fg": "IoU_FG"}.items(), strict=True):
        for name, kinds in heads.items():
            axes.plot(THRESHOLDS, kinds["all"]["curves"][key], label=name)
        axes.set(xlabel="threshold on probabilities", ylabel=title, xlim=(0, 1), ylim=(0, 1))
        axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return Image.open(buffer)
