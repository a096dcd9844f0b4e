"""What captured features cost on the tiny world: masks from taps of the prompt's pass against the phrase's own.

    python benchmarks/capture.py --scenes 200

A sampler's pass near the head's t sees the prompt, not the phrase. Here rendered scenes, whose masks are known, are
noised to that t and passed under their caption, under another scene's (so that the phrase is not in the prompt), and
under the phrase itself. mIoU over present phrases at threshold 0.5; paired differences. The embedded head that reads
its taps is measured, unless another is named.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from helpers import Row, drawn, iou, mean, parser, pixels_of, report

import ldznet
from ldznet.data.items import Item
from ldznet.hosts.tiny import TinyHost
from ldznet.models import CapturedTaps, Network
from ldznet.schedule import seeded_noise

FIRST_SEED = 700_000  # no training sees these
OWN = "the phrase's own pass"
KINDS = (OWN, "captured, phrase in the prompt", "captured, phrase not in the prompt")


def taps_under(host: TinyHost, head: Network, latents: torch.Tensor, prompt: str) -> CapturedTaps:
    """Taps of latents noised to the head's t, from a pass under `prompt`."""
    config = head.head_config
    timesteps = torch.full((len(latents),), config.timestep)
    noisy = host.add_noise(latents, seeded_noise(tuple(latents.shape), 0), timesteps)
    return CapturedTaps(host.extract(noisy, timesteps, host.encode_text([prompt]), list(config.tap_specs)))


def measure(host: TinyHost, head: Network, item: Item, seed: int) -> np.ndarray:
    """IoU of each present phrase of a scene (rows) under each of `KINDS` (columns)."""
    others = (ldznet.tinyworld.scene(seed + i, "photo") for i in range(1, 1000))
    other = next(o.caption for o in others if not any(phrase in o.caption for phrase in item.phrases))
    predictor, latents = ldznet.Predictor(host, head), host.encode_image(pixels_of(item.image))
    columns = []
    for prompt in (None, item.captions[0], other):
        captured = None if prompt is None else taps_under(host, head, latents, prompt)
        predictor.set_latents(latents, captured=captured)
        columns.append(iou(predictor.predict(item.phrases).masks()[0].numpy(), item.masks))
    return np.stack(columns, axis=1)


def rows(name: str, count: int) -> Iterator[tuple[str, Row]]:
    """mIoU of each kind, and what it is over a pass of the phrase's own."""
    host, head = TinyHost.load(), ldznet.load_head(name)
    items = drawn("T0", count, FIRST_SEED)
    measured = [measure(host, head, item, FIRST_SEED + i) for i, item in enumerate(items)]
    images, values = np.repeat(np.arange(count), [len(part) for part in measured]), np.concatenate(measured)
    for i, kind in enumerate(KINDS):
        less = {"over its own pass": mean(values[:, i] - values[:, 0], images)} if i else {}
        yield kind, {"mIoU": mean(values[:, i], images), **less, "n phrases": len(values), "images": count}


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--head", default="tiny-light", help="tiny, tiny-light or a .safetensors file of the tiny world")
    made.add_argument("--scenes", type=int, default=200)
    given = made.parse_args()
    report(rows(given.head, given.scenes), given.json)


if __name__ == "__main__":
    main()
