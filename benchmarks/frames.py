"""Masks of a video on the tiny world: how much they flicker, and what smoothing over frames does to that.

    python benchmarks/frames.py --scenes 20

A window of 128 pixels moves over a larger scene, each frame with grain of its own; the truth moves with it, so two
neighbouring frames' masks, one moved back, are equal where nothing flickers: their IoU is given, over all things that
stay in the window. Beside it stands the IoU with the truth, which smoothing must not spend. Photo scenes from 700,000
on, which no training saw.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from helpers import Row, iou, mean, parser, report

from ldznet import Predictor, load_head
from ldznet.frames import steadied
from ldznet.hosts.tiny import TinyHost
from ldznet.segmentation import Segmentation
from ldznet.tinyworld import scene

FIRST, LARGE, SIDE = 700_000, 192, 128
SPEEDS = (0, 1, 4)  # pixels a frame, to the right
STRENGTHS = (0.3, 0.5, 0.8)
LEAST = 64  # pixels of a thing in every frame
GRAIN = 4.0  # deviation of each frame's own grain, of 255: a camera's


class Video(NamedTuple):
    """Frames t h w 3, uint8; phrases; and where each is, t p h w."""

    frames: np.ndarray
    phrases: list[str]
    truths: np.ndarray


def video_of(seed: int, speed: int, count: int) -> Video | None:
    """A scene's window at each of `count` frames; None where no thing stays in it."""
    drawn, grain = scene(seed, "photo", size=LARGE), np.random.default_rng(seed)
    phrases = [f"a {thing.colour} {thing.category}" for thing in drawn.things]
    places = [(speed * t, speed * t + SIDE) for t in range(count)]
    top = (LARGE - SIDE) // 2
    picture = drawn.image[top : top + SIDE].astype(float)
    frames = np.stack([picture[:, left:right] for left, right in places])
    frames = (frames + grain.normal(0, GRAIN, frames.shape)).clip(0, 255).round().astype(np.uint8)
    truths = np.stack([[thing.mask[top : top + SIDE, a:b] for thing in drawn.things] for a, b in places])
    kept = [i for i in range(len(phrases)) if truths[:, i].sum((1, 2)).min() >= LEAST]
    return Video(frames, [phrases[i] for i in kept], truths[:, kept]) if kept else None


def segmented(video: Video, same_noise: bool) -> Segmentation:
    """Every frame by itself, under the same noise or each under its own."""
    host, head, parts = TinyHost.load(), load_head("tiny"), []
    for t, frame in enumerate(video.frames):
        predictor = Predictor(host, head, seed=0 if same_noise else t)
        predictor.set_image(frame)
        parts.append(predictor.predict(video.phrases))
    logits, scores = (torch.cat([getattr(part, name) for part in parts]) for name in ("logits", "scores"))
    return dataclasses.replace(parts[0], logits=logits, scores=scores)


def measured(result: Segmentation, video: Video, speed: int) -> tuple[list[float], list[float]]:
    """IoU of neighbouring frames, of all phrases, and IoU with the truth."""
    masks = (result.probabilities > 0.5).numpy()
    steady, right = [], []
    for p in range(masks.shape[1]):
        right += list(iou(masks[:, p], video.truths[:, p]))
        before, after = masks[:-1, p, :, speed:], masks[1:, p, :, : SIDE - speed]
        steady += list(np.where((before | after).any((1, 2)), iou(before, after), 1.0))  # nothing twice is no flicker
    return steady, right


def rows(count: int, frames: int, speeds: Sequence[int]) -> Iterator[tuple[str, Row]]:
    """A row for each speed and way."""
    for speed in speeds:
        found: dict[str, list[tuple[list[float], list[float]]]] = {}
        for seed in range(FIRST, FIRST + count):
            video = video_of(seed, speed, frames)
            if video is None:
                continue
            each, same = segmented(video, False), segmented(video, True)
            ways = {"a noise for each frame": each, "the same noise": same}
            ways |= {f"smoothed, {strength}": steadied(same, strength) for strength in STRENGTHS}
            for name, result in ways.items():
                found.setdefault(name, []).append(measured(result, video, speed))
        for name, pairs in found.items():
            videos = len(pairs)
            both = [[float(np.mean(pair[part])) for pair in pairs] for part in (0, 1)]
            figures = {
                "neighbours": mean(np.array(both[0]), range(videos)),
                "truth": mean(np.array(both[1]), range(videos)),
            }
            yield f"{speed} px a frame: {name}", {**figures, "videos": videos}


def main() -> None:
    """Prints them."""
    made = parser(__doc__)
    made.add_argument("--scenes", type=int, default=20)
    made.add_argument("--frames", type=int, default=12)
    made.add_argument(
        "--speed", type=int, action="append", help="pixels a frame; may be given again (default: 0, 1, 4)"
    )
    given = made.parse_args()
    report(rows(given.scenes, given.frames, given.speed or SPEEDS), given.json)


if __name__ == "__main__":
    main()
