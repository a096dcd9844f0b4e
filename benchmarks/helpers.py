"""What the scripts of this folder share: scenes, pixels, IoU, weights that stand for none, and figures as JSON.

A figure is a number, or [mean, low, high] with its 95 % interval over images; of times, the median and the range. A row
has figures by name, and a script's JSON has rows by name; `figures.py` puts such rows into the pages of docs/.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ldznet.checkpoints import load_weights
from ldznet.checkpoints.load import WEIGHTS
from ldznet.data import TinyWorldDataset, TinyWorldTest
from ldznet.data.cache import Cache, add_latents, draw, images_to_pixels
from ldznet.data.items import Item
from ldznet.data.tinyworld import HELD_OUT_CATEGORIES, HELD_OUT_COLOURS
from ldznet.evaluate.benchmark import Segment, arrays
from ldznet.evaluate.metrics import bootstrap
from ldznet.hosts.tiny import TinyHost
from ldznet.predictor import Predictor
from ldznet.tinyworld import world
from ldznet.tinyworld.namer import Namer
from ldznet.train.engine import Run, TrainConfig
from ldznet.train.head import HeadTask, content_words
from ldznet.train.recipe import part_of, seeded

ROOT = Path(__file__).parents[1]
UNTAUGHT = HELD_OUT_COLOURS | HELD_OUT_CATEGORIES  # words that labels of experiments never name
CHOOSE, TEST = 500_000, 0  # first scenes: of those that constants are chosen on, and of those that figures are taken on
LABELLED = 2_000_000  # first scene that labels of experiments are of
Figure = float | Sequence[float]
Row = Mapping[str, Figure]
Values = Mapping[str, Mapping[str, Sequence[float]]]
"""What a cell holds, by test: the IoU of each phrase, and its scene."""
Module = TypeVar("Module", bound=nn.Module)


def untrained(host: TinyHost) -> TinyHost:
    """The same models with a UNet that has learned nothing, always the same one."""
    with seeded(0):
        return TinyHost(host.models._replace(unet=world.fresh().unet.eval().requires_grad_(False)))


def judge() -> Namer:
    """The gates' judge of pictures."""
    return load_weights(Namer("pixels"), WEIGHTS / "classifier.safetensors").eval()


@contextlib.contextmanager
def real_comfyui() -> Iterator[Any]:
    """A ComfyUI server as the tests start it, ended after; without a ComfyUI the script ends, and says why."""
    sys.path.insert(0, str(ROOT / "tests"))
    from comfyui import host

    reason = host.reason_to_skip()
    if reason:
        sys.exit(f"Expected a ComfyUI, found {reason}.")
    with tempfile.TemporaryDirectory() as folder:
        server = host.Server(Path(folder))
        try:
            yield server
        finally:
            server.stop()


def drawn(test: str, count: int, start: int = TEST, one_each: bool = False) -> list[Item]:
    """`count` scenes of a test of the tiny world; `one_each` keeps one phrase a thing (colour and noun) and stuff."""
    scenes = TinyWorldTest(test, count, start=start)
    items = [scenes[i] for i in range(count)]
    return [with_one_each(item) for item in items] if one_each else items


def with_one_each(item: Item) -> Item:
    """The item with one phrase a thing, its colour and noun, all stuff, and nothing absent."""
    rows = [i for i, kind in enumerate(item.kinds) if kind == "stuff" or len(item.phrases[i].split()) == 3]
    return dataclasses.replace(
        item,
        phrases=tuple(item.phrases[i] for i in rows),
        masks=item.masks[rows],
        kinds=tuple(item.kinds[i] for i in rows),
        absent=(),
        distracted=tuple(item.distracted[i] for i in rows),
    )


def labelled(seed: int, count: int, host: TinyHost, work: Path) -> Cache:
    """`count` photo scenes with latents that heads of a benchmark learn from, other ones for each seed, in `work`."""
    data = TinyWorldDataset(count, start=LABELLED + seed * count, domain="photo")
    return add_latents(draw(data, work / f"labels-{seed}"), host.encode_image)


def trained(head: Any, host: TinyHost, cache: Cache, config: TrainConfig, folder: Path, **options: Any) -> Any:
    """`head`, with what it learned over `host` from labels that never name `UNTAUGHT` words; resumes in `folder`.

    `options` are `HeadTask`'s.
    """
    task = HeadTask(head, host, cache, UNTAUGHT, **options)
    learned = Run(task, config, folder).train()
    task.module.close()
    head.load_state_dict(part_of(learned, "head."))
    return head.eval().requires_grad_(False)


def slug(name: str, seed: int) -> str:
    """What the file of a cell, and the folder of its run, are called."""
    return f"{name}-{seed}".replace(" ", "-")


def of_cells(
    doc: str | None,
    cell: Callable[[str, int, int, int, int, Path], Values],
    names: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    folder: str,
    labels: int,
    steps: int,
) -> None:
    """A script whose figures come from cells, each a head that is trained and asked.

    `cell` makes one of a name, a seed, labels, steps, scenes, and the folder for its run. Those that lie in
    docs/figures/`folder` are not made again.
    """
    made = parser(doc)
    made.add_argument("--scenes", type=int, default=60, help="of the test")
    made.add_argument("--labels", type=int, default=labels, help="scenes that a head is trained on")
    made.add_argument("--steps", type=int, default=steps, help="of 16 rows")
    made.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    made.add_argument("--only", nargs="+", choices=names, default=names, help="of the heads")
    made.add_argument("--work", type=Path, default=Path("runs") / folder, help="folder of the runs")
    made.add_argument("--cells", type=Path, default=ROOT / "docs/figures" / folder, help="folder of the cells")
    given = made.parse_args()
    setting = {"labels": given.labels, "steps": given.steps, "batch": 16, "scenes": given.scenes, "first scene": TEST}
    cells: dict[tuple[str, int], Values] = {}
    for seed in given.seeds:
        for name in given.only:
            path = given.cells / f"{slug(name, seed)}.json"
            if not path.exists():
                values = cell(name, seed, given.labels, given.steps, given.scenes, given.work)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps({**setting, "values": values}) + "\n", encoding="utf-8")
            cells[name, seed] = json.loads(path.read_text(encoding="utf-8"))["values"]
    report(compared(cells, [pair for pair in pairs if {*pair} <= {*given.only}]), given.json)


def compared(cells: Mapping[tuple[str, int], Values], pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[str, Row]]:
    """mIoU of every head by its cells, which have its name and a seed, and of the first of each pair less the second.

    Intervals are over scenes and seeds: a scene of another seed is another one.
    """
    names, seeds = (list(dict.fromkeys(key[part] for key in cells)) for part in (0, 1))

    def together(name: str, test: str, what: str) -> np.ndarray:
        return np.concatenate([np.asarray(cells[name, seed][test][what], float) for seed in seeds])

    tests = list(next(iter(cells.values())))
    images = {
        test: np.concatenate([np.asarray(cells[names[0], s][test]["scene"], int) + s * 1_000_000 for s in seeds])
        for test in tests
    }
    asked = [test for test in tests if len(images[test])]
    for name in names:
        yield name, {test: mean(together(name, test, "iou"), images[test]) for test in asked}
    for one, other in pairs:
        less = {test: together(one, test, "iou") - together(other, test, "iou") for test in asked}
        yield f"{one} - {other}", {test: mean(less[test], images[test]) for test in asked}
    yield "n phrases", {test: len(images[test]) for test in tests}


def known(phrase: str) -> bool:
    """Whether a phrase has taught words alone."""
    return UNTAUGHT.isdisjoint(content_words(phrase))


def alone(predictor: Predictor) -> Segment:
    """Each phrase in a pass of its own."""

    def segment(item: Item, phrases: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        predictor.set_image(item.image)
        parts = [arrays(predictor.predict([phrase])) for phrase in phrases]
        return np.concatenate([soft for soft, _ in parts]), np.concatenate([scores for _, scores in parts])

    return segment


def pixels_of(image: np.ndarray) -> Tensor:
    """A picture h w 3, uint8, as pixels 1 3 h w in [-1, 1]."""
    return images_to_pixels(image[None])


def iou(masks: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """tp / (1 + tp + fp + fn) of each of n masks h w."""
    return (masks & truths).sum((1, 2)) / (1 + (masks | truths).sum((1, 2)))


def mean(values: np.ndarray, images: Sequence[int] | np.ndarray) -> list[float]:
    """[mean, low, high] of values whose pictures are `images`."""
    return list(bootstrap(np.asarray(values, float), images))


def ranged(values: Sequence[float]) -> list[float]:
    """[median, lowest, highest], for what is timed."""
    return [float(np.median(values)), min(values), max(values)]


def random_weights(make: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """The module that `make` builds, with small random weights, made where and as they are needed, for timing."""
    with torch.device("meta"):
        module = make()
    module = nn.Module.to(module, dtype=dtype).to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for parameter in module.parameters():
        parameter.normal_(std=0.02, generator=generator)
    return module


def shown(figure: Figure) -> str:
    """A count as it is, a figure with three digits, an interval in brackets."""
    if isinstance(figure, Sequence):
        return f"{figure[0]:.3f} ({figure[1]:.3f} .. {figure[2]:.3f})"
    return f"{figure:,}" if isinstance(figure, int) else f"{figure:.3f}"


def report(rows: Iterable[tuple[str, Row]], path: Path | None) -> dict[str, Row]:
    """Prints every row as it comes; writes all of them to `path`, if there is one, as they are at the end."""
    found: dict[str, Row] = {}
    for name, row in rows:
        found[name] = row
        print(f"{name:34}", "  ".join(f"{key} {shown(value)}" for key, value in row.items()), flush=True)
    if path is not None:
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Of a script whose docstring is its help; with --json."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, help="write the figures here")
    return made
