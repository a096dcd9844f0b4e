"""What ending the feature pass early saves: truncated against full pass of a Stable Diffusion 1.x UNet, interleaved.

    python benchmarks/truncation.py --pairs 9 --size 384 --json truncation.json

Random weights: time does not depend on them. Each pair runs both passes, in an order that alternates, so that a machine
that slows down or speeds up does so for both. The target is a median ratio of 0.60, beside multiply-adds of 0.517
(tests/test_taps.py). docs/cost.md has the figures.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from helpers import random_weights, ranged, report

from ldznet.config import PUBLISHED_BLOCKS, UNetConfig
from ldznet.models import UNet
from ldznet.shapes import PIXELS_PER_LATENT
from ldznet.taps import extract_taps

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time of the truncated pass over that of the full pass.")
    parser.add_argument("--pairs", type=int, default=9, help="interleaved pairs, at least 7 (default: 9)")
    parser.add_argument("--size", type=int, default=384, help="side of the image in pixels (default: 384)")
    parser.add_argument("--batch", type=int, default=1, help="phrases at once (default: 1)")
    parser.add_argument("--channels", type=int, default=320, help="of the UNet's first level, SD 1.x's by default")
    parser.add_argument("--device", default="cpu", help="such as cuda (default: cpu)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--json", type=Path, help="write the seconds of every pass here")
    given = parser.parse_args()
    if given.pairs < 7:
        parser.error(f"expected at least 7 pairs, got {given.pairs}")
    if given.size < 64 or given.size % 64:
        parser.error(f"expected a size in multiples of 64, got {given.size}")
    if given.batch < 1:
        parser.error(f"expected a batch of at least 1, got {given.batch}")
    return given


def full_size_unet(device: torch.device, dtype: torch.dtype, channels: int) -> UNet:
    """SD 1.x's UNet with small random weights, made where and as they are needed."""
    unet: UNet = random_weights(lambda: UNet(UNetConfig(model_channels=channels)), device, dtype)
    return unet


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measure(unet: UNet, size: int, batch: int, pairs: int) -> dict[str, list[float]]:
    """Seconds of each pass, "full" and "truncated", after one of each that does not count."""
    weight = next(unet.parameters())
    device, side = weight.device, size // PIXELS_PER_LATENT
    latents, context = weight.new_zeros(batch, 4, side, side), weight.new_zeros(batch, 77, 768)
    generator = torch.Generator(device).manual_seed(1)
    for tensor in (latents, context):
        tensor.normal_(generator=generator)
    timesteps = torch.full((batch,), 400, device=device)

    def full() -> None:
        with torch.no_grad():
            unet(latents, timesteps, context)

    passes = {
        "full": full,
        "truncated": lambda: extract_taps(unet, PUBLISHED_BLOCKS, lambda: unet(latents, timesteps, context)),
    }
    times: dict[str, list[float]] = {name: [] for name in passes}
    for pair in range(-1, pairs):
        for name in sorted(passes, reverse=bool(pair % 2)):
            elapsed = seconds(passes[name], device)
            if pair >= 0:
                times[name].append(elapsed)
    return times


def main() -> None:
    given = arguments()
    device, dtype = torch.device(given.device), DTYPES[given.dtype]
    times = measure(full_size_unet(device, dtype, given.channels), given.size, given.batch, given.pairs)
    ratios = [short / long for short, long in zip(times["truncated"], times["full"], strict=True)]
    where = f"{given.dtype} on {device}, {torch.get_num_threads()} threads"
    print(f"{given.pairs} pairs at {given.size} px, batch {given.batch}, {where}")
    rows = {name: {"median s (range)": ranged(values)} for name, values in times.items()}
    report([*rows.items(), ("ratio", {"median (range)": ranged(ratios)})], given.json)


if __name__ == "__main__":
    main()
