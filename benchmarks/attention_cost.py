"""What the training-free head costs at full size: one phrase, eight phrases, against one sampling step. Random weights.

    python benchmarks/attention_cost.py --model sd1 --size 512 --pairs 3
    python benchmarks/attention_cost.py --model sdxl --size 1024 --pairs 1 --dtype bfloat16

Each round runs all three, in an order that alternates. A sampling step is one UNet pass over a batch of two (with and
without the prompt). Text encoder and VAE are left out of all of them. Time does not depend on the weights. Peaks are
of the device's memory, or on a CPU of the process (Linux alone tells it), weights included. On one thread of a CPU
seconds are the processor's, which other programs do not lengthen.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from helpers import Row, random_weights, ranged, report
from torch import Tensor

from ldznet.attention import AttentionHead
from ldznet.clip_bpe import Tokenizer
from ldznet.contracts import Conditioning, Observer, T
from ldznet.hosts.hf_diffusers import tap_specs
from ldznet.shapes import PIXELS_PER_LATENT

MERGES = Path(__file__).parents[1] / "ldznet" / "hosts" / "sd1" / "clip_merges.txt.gz"
CLEAR_PEAK, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PHRASES = ["the dog", "grass", "a red car", "the sky", "a wooden bench", "the woman", "a tree", "the old house"]
MODELS: dict[str, dict[str, Any]] = {  # UNet2DConditionModel's arguments where they are not its defaults
    "small": {"cross_attention_dim": 768, "attention_head_dim": 8, "block_out_channels": (32, 64, 64, 64)},
    "sd1": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "use_linear_projection": True,
    },
}


class BareHost:
    """A UNet of random weights that shows its attention; texts are tokenized, and encoded as noise."""

    def __init__(self, model: str, device: torch.device, dtype: torch.dtype) -> None:
        from diffusers import UNet2DConditionModel

        self.unet: Any = random_weights(lambda: UNet2DConditionModel(**MODELS[model]), device, dtype)
        self.family, self.device, self.dtype = "sdxl" if model == "sdxl" else "sd1", device, dtype
        self.specs, self.context_dim = tap_specs(self.unet), MODELS[model]["cross_attention_dim"]
        self.tokenize = Tokenizer.from_merges(MERGES).ids

    def condition(self, prompts: Sequence[str]) -> Conditioning:
        return Conditioning(self.noise(len(prompts), 77, self.context_dim))

    def observe(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning, observer: Observer[T]) -> T:
        with observer(self.unet) as seen:
            self.run(latents, timesteps, conditioning.context)
        return seen

    def run(self, latents: Tensor, timesteps: Tensor, context: Tensor) -> None:
        extras = {}
        if self.family == "sdxl":
            times = torch.zeros(len(latents), 6, device=self.device, dtype=self.dtype)
            extras = {"added_cond_kwargs": {"text_embeds": self.noise(len(latents), 1280), "time_ids": times}}
        self.unet(latents, timesteps, context, return_dict=False, **extras)

    def noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self.device, self.dtype)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return latents + noise

    encode_image = decode_latents = encode_text = extract = noise  # what a host has too; none is called


def jobs(host: BareHost, side: int) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    head = AttentionHead().fitted_to(host)
    latents, step = host.noise(1, 4, side, side), torch.tensor([100], device=host.device)
    pair, context = latents.repeat(2, 1, 1, 1), host.noise(2, 77, host.context_dim)
    return {
        "one phrase": lambda: head.segment(host, latents, PHRASES[:1], timestep=100, seed=0),
        "eight phrases": lambda: head.segment(host, latents, PHRASES, timestep=100, seed=0),
        "sampling step": lambda: host.run(pair, step.repeat(2), context),
    }


class Measured(NamedTuple):
    """Of every job: seconds in every round, and the highest peak in GB."""

    seconds: dict[str, list[float]]
    peaks: dict[str, float]


@torch.no_grad()
def measure(host: BareHost, side: int, pairs: int) -> Measured:
    """Runs every job `pairs` times, after a round that does not count."""
    found = Measured({}, {})
    alone = host.device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    for number in range(-1, pairs):
        for name, job in sorted(jobs(host, side).items(), reverse=bool(number % 2)):
            forget_peak(host.device)
            start = clock()
            job()
            if host.device.type == "cuda":
                torch.cuda.synchronize(host.device)
            seconds = clock() - start
            found.peaks[name] = max(found.peaks.get(name, 0.0), peak(host.device))
            print(f"round {number + 1} of {pairs}: {name} {seconds:.2f} s, {found.peaks[name]:.2f} GB", flush=True)
            if number >= 0:
                found.seconds.setdefault(name, []).append(seconds)
    return found


def forget_peak(device: torch.device) -> None:
    """From here on `peak` counts anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif CLEAR_PEAK.exists():
        CLEAR_PEAK.write_text("5")


def peak(device: torch.device) -> float:
    """GB at the peak since `forget_peak`; 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1024**3
    lines = STATUS.read_text().splitlines() if STATUS.exists() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024**2


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of the training-free head.")
    parser.add_argument("--model", choices=MODELS, default="sd1")
    parser.add_argument("--size", type=int, default=512, help="side of the image in pixels (default: 512)")
    parser.add_argument("--pairs", type=int, default=5, help="rounds that count (default: 5)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--json", type=Path, help="write the seconds of every run here")
    given = parser.parse_args()
    if given.pairs < 1 or given.size < 64 or given.size % 64:
        parser.error(f"expected at least one round and a size in multiples of 64, got {given.pairs} and {given.size}")
    host = BareHost(given.model, torch.device(given.device), DTYPES[given.dtype])
    side = given.size // PIXELS_PER_LATENT
    measured = measure(host, side, given.pairs)
    print(f"{given.model} at {given.size} px, {given.dtype} on {given.device}, {torch.get_num_threads()} threads")
    rows = dict[str, Row]()
    for name, values in measured.seconds.items():
        shares = [a / b for a, b in zip(values, measured.seconds["sampling step"], strict=True)]
        figures = {"median s (range)": ranged(values), "of a sampling step": ranged(shares)}
        rows[name] = {**figures, "peak GB": measured.peaks[name]}
    pairs = zip(measured.seconds["eight phrases"], measured.seconds["one phrase"], strict=True)
    rows["eight phrases over one"] = {"ratio (target: 1.15)": ranged([a / b for a, b in pairs])}
    report(rows.items(), given.json)


if __name__ == "__main__":
    main()
