"""Guided filter against PAMR against none: what refining the edges of soft masks brings on the tiny world.

    python benchmarks/edges.py --scenes 200

Soft masks at 128 x 128 of photo scenes that no training saw: of the tiny head, of the head without a download, and the
true masks averaged over cells of 8 x 8 pixels, which is as much as a latent can hold. mIoU at 0.5, and boundary F
(`ldznet.evaluate.boundary`); gains are paired. Seconds are the processor's, for one mask of 512 x 512 on one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from helpers import Figure, Row, drawn, iou, mean, parser, report
from torch import Tensor

import ldznet
from ldznet import masks
from ldznet.data.items import Item
from ldznet.evaluate.boundary import boundary_f
from ldznet.hosts.tiny import TinyHost
from ldznet.images import resize

FIRST_SEED = 720_000  # no training sees these
THRESHOLD, CELL = 0.5, 8
REPEATS = 5
Refine = Callable[[Tensor, Tensor], Tensor]
METHODS: dict[str, Refine] = {
    "none": lambda mask, guide: mask,
    "guided filter": masks.guided_filter,
    "PAMR": masks.pamr,
}
HEADS = {"tiny head": "tiny", "attention": "attention"}


def sources(predictors: dict[str, ldznet.Predictor], item: Item) -> dict[str, Tensor]:
    """Soft masks p h w of a scene's phrases, by where they come from."""
    found = {}
    for name, predictor in predictors.items():
        predictor.set_image(item.image)
        found[name] = predictor.predict(item.phrases).probabilities[0]
    cells = torch.nn.functional.avg_pool2d(torch.from_numpy(item.masks).float()[None], CELL)
    return {**found, "cells of 8 px": resize(cells, item.image.shape[:2])[0].clamp(0, 1)}


def measure(predictors: dict[str, ldznet.Predictor], item: Item) -> dict[str, np.ndarray]:
    """Per source an array (phrase, method, IoU or F)."""
    guide = (torch.from_numpy(item.image).movedim(-1, 0).float() / 255).expand(len(item.masks), -1, -1, -1)
    measured = {}
    for name, soft in sources(predictors, item).items():
        refined = [(refine(soft, guide) > THRESHOLD).numpy() for refine in METHODS.values()]
        pairs = [np.stack([iou(mask, item.masks), boundary_f(mask, item.masks)], axis=1) for mask in refined]
        measured[name] = np.stack(pairs, axis=1)
    return measured


def rows(count: int) -> Iterator[tuple[str, Row]]:
    """A row for each source, kind and method."""
    host, items = TinyHost.load(), drawn("T0", count, FIRST_SEED)
    predictors = {name: ldznet.Predictor(host, ldznet.load_head(head)) for name, head in HEADS.items()}
    measured = [measure(predictors, item) for item in items]
    kinds = np.array([kind for item in items for kind in item.kinds])
    images = np.repeat(np.arange(count), [len(item.kinds) for item in items])
    for name in measured[0]:
        values = np.concatenate([found[name] for found in measured])
        for kind, title in {"thing": "things", "stuff": "stuff"}.items():
            for m, method in enumerate(METHODS):
                yield f"{name}, {title}: {method}", row(values[kinds == kind], images[kinds == kind], m)


def row(values: np.ndarray, images: np.ndarray, method: int) -> Row:
    """mIoU and boundary F of one method, and what it gains over none."""
    found: dict[str, Figure] = {}
    for i, figure in enumerate(("mIoU", "boundary F")):
        found[figure] = mean(values[:, method, i], images)
        if method:
            found[f"gain in {figure}"] = mean(values[:, method, i] - values[:, 0, i], images)
    return {**found, "n phrases": len(values), "images": len(np.unique(images))}


def seconds(refine: Refine, side: int) -> float:
    """Median time of one mask of `side` x `side`."""
    generator = torch.Generator().manual_seed(0)
    mask, guide = torch.rand(1, side, side, generator=generator), torch.rand(1, 3, side, side, generator=generator)
    spent = []
    for _ in range(REPEATS):
        start = time.process_time()
        refine(mask, guide)
        spent.append(time.process_time() - start)
    return float(np.median(spent))


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--scenes", type=int, default=200)
    made.add_argument("--side", type=int, default=512, help="of the mask that is timed, in pixels (default: 512)")
    given = made.parse_args()
    report(rows(given.scenes), given.json)
    torch.set_num_threads(1)
    for method, refine in METHODS.items():
        print(f"{method}: {seconds(refine, given.side):.3f} s for a mask of {given.side} x {given.side}")


if __name__ == "__main__":
    main()
