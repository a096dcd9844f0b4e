"""Guided filter against PAMR against none: what refining the edges of soft masks brings on the tiny world.

    python benchmarks/edges.py --scenes 200

Soft masks at 128 x 128 of photo scenes that no training saw: of the tiny head, of the head without a download, and the
true masks averaged over cells of 8 x 8 pixels, which is as much as a latent can hold. Mean IoU at 0.5, and boundary F:
how much of either edge lies within 2 pixels of the other (Perazzi et al., CVPR 2016). Differences are paired, with 95 %
intervals over images. Seconds are the processor's, for one mask of 512 x 512 on one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import ldznet
from ldznet import masks
from ldznet.evaluate.metrics import bootstrap
from ldznet.hosts.tiny import TinyHost
from ldznet.images import resize

FIRST_SEED = 720_000  # no training sees these
THRESHOLD, TOLERANCE, CELL = 0.5, 2, 8
REPEATS = 5
Refine = Callable[[Tensor, Tensor], Tensor]
METHODS: dict[str, Refine] = {
    "none": lambda mask, guide: mask,
    "guided filter": masks.guided_filter,
    "PAMR": masks.pamr,
}


def edge(mask: Tensor) -> Tensor:
    """The pixels b h w, 0 or 1, of a mask at its own edge."""
    return mask - masks.grow(mask, -1)


def boundary_f(mask: Tensor, truth: Tensor) -> np.ndarray:
    """F of each of b masks against its truth: both 0 or 1, b h w."""
    found, true = edge(mask), edge(truth)
    shares = []
    for one, other in ((found, true), (true, found)):
        near = (one * masks.grow(other, TOLERANCE)).sum((1, 2))
        shares.append(near / one.sum((1, 2)).clamp(min=1))
    precision, recall = shares
    return (2 * precision * recall / (precision + recall).clamp(min=1e-9)).numpy()


def iou(mask: Tensor, truth: Tensor) -> np.ndarray:
    """tp / (1 + tp + fp + fn) of each."""
    return ((mask * truth).sum((1, 2)) / (1 + mask.maximum(truth).sum((1, 2)))).numpy()


def sources(predictors: dict[str, ldznet.Predictor], scene: ldznet.tinyworld.Scene, truth: Tensor) -> dict[str, Tensor]:
    """Soft masks p h w of a scene's phrases, by where they come from."""
    found = {}
    for name, predictor in predictors.items():
        predictor.set_image(scene.image)
        found[name] = predictor.predict(scene.phrases).probabilities[0]
    cells = torch.nn.functional.avg_pool2d(truth[None], CELL)
    return {**found, "cells of 8 px": resize(cells, (truth.shape[1], truth.shape[2]))[0].clamp(0, 1)}


def measure(predictors: dict[str, ldznet.Predictor], seed: int) -> tuple[list[str], dict[str, np.ndarray]]:
    """The kind of each phrase of a scene; and per source an array (phrase, method, IoU or F)."""
    scene = ldznet.tinyworld.scene(seed, "photo")
    truth = torch.stack([torch.from_numpy(scene.masks[phrase]).float() for phrase in scene.phrases])
    guide = (torch.from_numpy(scene.image).movedim(-1, 0).float() / 255).expand(len(truth), -1, -1, -1)
    measured = {}
    for name, soft in sources(predictors, scene, truth).items():
        refined = [(refine(soft, guide) > THRESHOLD).float() for refine in METHODS.values()]
        pairs = [np.stack([iou(mask, truth), boundary_f(mask, truth)], axis=1) for mask in refined]
        measured[name] = np.stack(pairs, axis=1)
    return [scene.kinds[phrase] for phrase in scene.phrases], measured


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


def report(name: str, kind: str, values: np.ndarray, groups: np.ndarray) -> None:
    """Prints means of (phrase, method, IoU or F), and what each method changes."""
    means = values.mean(axis=0)
    print(f"{name}, {len(values)} {kind}s:")
    for m, method in enumerate(METHODS):
        line = f"  {method}: mIoU {means[m, 0]:.3f}, boundary F {means[m, 1]:.3f}"
        for i, figure in enumerate(("mIoU", "F") if m else ()):
            change = bootstrap(values[:, m, i] - values[:, 0, i], groups)
            line += "; {} {:+.3f} ({:+.3f} .. {:+.3f})".format(figure, *change)
        print(line)


def main() -> None:
    """Prints a table for each source and kind, then the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--side", type=int, default=512, help="of the mask that is timed, in pixels (default: 512)")
    given = parser.parse_args()
    scenes, side = given.scenes, given.side
    host = TinyHost.load()
    heads = {"tiny head": "tiny", "attention": "attention"}
    predictors = {name: ldznet.Predictor(host, ldznet.load_head(head)) for name, head in heads.items()}
    measured = [measure(predictors, FIRST_SEED + i) for i in range(scenes)]
    kinds = np.concatenate([kinds for kinds, _ in measured])
    groups = np.repeat(np.arange(scenes), [len(kinds) for kinds, _ in measured])
    for name in measured[0][1]:
        values = np.concatenate([found[name] for _, found in measured])
        for kind in ("thing", "stuff"):
            report(name, kind, values[kinds == kind], groups[kinds == kind])
    torch.set_num_threads(1)
    for method, refine in METHODS.items():
        print(f"{method}: {seconds(refine, side):.3f} s for a mask of {side} x {side}")


if __name__ == "__main__":
    main()
