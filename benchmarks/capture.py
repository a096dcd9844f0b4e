"""What captured features cost on the tiny world: masks from taps of the prompt's pass against the phrase's own.

    python benchmarks/capture.py --scenes 200

A sampler's pass near the head's t sees the prompt, not the phrase. Here rendered scenes, whose masks are known, are
noised to that t and passed under their caption, under another scene's (so that the phrase is not in the prompt), and
under the phrase itself. Mean IoU over present phrases at threshold 0.5; paired differences with 95 % intervals.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

import ldznet
from ldznet.evaluate.metrics import bootstrap
from ldznet.hosts.tiny import TinyHost
from ldznet.models import CapturedTaps, LDZNet
from ldznet.schedule import seeded_noise

FIRST_SEED = 700_000  # no training sees these
KINDS = ("phrase's own pass", "captured, phrase in the prompt", "captured, phrase not in the prompt")


def taps_under(host: TinyHost, head: LDZNet, latents: torch.Tensor, prompt: str) -> CapturedTaps:
    """Taps of latents noised to the head's t, from a pass under `prompt`."""
    config = head.head_config
    timesteps = torch.full((len(latents),), config.timestep)
    noisy = host.add_noise(latents, seeded_noise(tuple(latents.shape), 0), timesteps)
    return CapturedTaps(host.extract(noisy, timesteps, host.encode_text([prompt]), list(config.tap_specs)))


def ious(result: ldznet.Segmentation, truth: np.ndarray) -> np.ndarray:
    """Of each phrase: tp / (1 + tp + fp + fn)."""
    masks = result.masks()[0].numpy()
    inside = (masks & truth).sum((1, 2))
    return inside / (1 + (masks | truth).sum((1, 2)))


def measure(host: TinyHost, head: LDZNet, seed: int) -> np.ndarray:
    """IoU of each present phrase of a scene (rows) under each of `KINDS` (columns)."""
    scene = ldznet.tinyworld.scene(seed, "photo")
    phrases, truth = list(scene.phrases), np.stack([scene.masks[phrase] for phrase in scene.phrases])
    others = (ldznet.tinyworld.scene(seed + i, "photo") for i in range(1, 1000))
    other = next(o.caption for o in others if not any(phrase in o.caption for phrase in phrases))
    predictor = ldznet.Predictor(host, head)
    predictor.set_image(scene.image)
    columns = [ious(predictor.predict(phrases), truth)]
    latents = host.encode_image(torch.from_numpy(scene.image).permute(2, 0, 1)[None].float() / 127.5 - 1)
    for prompt in (scene.caption, other):
        predictor.set_latents(latents, captured=taps_under(host, head, latents, prompt))
        columns.append(ious(predictor.predict(phrases), truth))
    return np.stack(columns, axis=1)


def main() -> None:
    """Prints the three means and the two differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=200)
    scenes = parser.parse_args().scenes
    host, head = TinyHost.load(), ldznet.load_head("tiny")
    measured = [measure(host, head, FIRST_SEED + i) for i in range(scenes)]
    groups = np.repeat(np.arange(scenes), [len(scene) for scene in measured])
    rows = np.concatenate(measured)
    for kind, mean in zip(KINDS, rows.mean(0), strict=True):
        print(f"{kind}: mean IoU {mean:.3f} over {len(rows)} phrases")
    for i in (1, 2):
        mean, low, high = bootstrap(rows[:, i] - rows[:, 0], groups)
        print(f"{KINDS[i]}, less the phrase's own: {mean:+.3f} [{low:+.3f}, {high:+.3f}]")


if __name__ == "__main__":
    main()
