"""`ldznet train head`: a head over a Stable Diffusion of yours, from a dataset's phrases and masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..checkpoints import load_head
from ..contracts import Host
from ..data import TinyWorldDataset
from ..data.cache import Cache, add_latents, draw
from ..data.items import Dataset, Item
from ..errors import InputError
from ..evaluate import benchmark
from ..hosts import open_host
from ..models import Network
from ..models.known import unet_config
from ..predictor import Predictor
from ..train import tiers
from ..train.engine import Trial, accelerator
from .dataset import opened
from .progress import progress_bar

SIDE, SIDES = 384, {"tiny": 128, "sdxl": 1024}
GIGABYTE = 10**9


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the command line asked for. None keeps the recipe's own number; `check` is how many pictures of the
    dataset's usual split are segmented at each save."""

    tier: str
    model: str
    dataset: str
    folder: Path | None
    split: str
    out: Path
    runs: Path
    steps: int | None
    batch: int | None
    size: int | None
    rank: int | None
    images: int
    check: int
    recompute: bool
    teacher: Path | None
    seed: int


def train(setting: Setting, say: Callable[[str], None]) -> Path:
    """Trains, resuming where a run in `setting.runs` was stopped, and writes the head. Raises InputError before
    anything is computed for what cannot be."""
    if setting.out.suffix != ".safetensors" or setting.out.exists():
        raise InputError(f"Expected the name of a new .safetensors file, got {setting.out}. Give another one.")
    processes = accelerator()
    host = _opened_host(setting, processes.device)
    side = setting.size or SIDES.get(host.family, SIDE)
    config = tiers.tier_config(setting.tier, host.family, unet_config(host.unet), side, setting.rank)
    pictures = _pictures(setting, side)
    with processes.main_process_first():
        name = f"{setting.dataset}-{setting.split}-{side}-{Path(setting.model).stem}"
        cache = _cache(pictures, host, setting.runs / name)
    changes = {name: value for name in ("steps", "batch") if (value := getattr(setting, name)) is not None}
    precision = "bf16" if host.device.type == "cuda" else "no"
    training = dataclasses.replace(tiers.RECIPE, seed=setting.seed, precision=precision, **changes)
    teacher = load_head(setting.teacher, device=host.device) if setting.teacher else None
    tier = tiers.Tier(config, host, cache, training, setting.runs / f"{setting.tier}-{name}", teacher)
    trial = tier.run.trial()
    if processes.is_main_process:
        say(described(tier, trial))
    checked = _checked(setting, side)
    with progress_bar(f"Training {setting.tier}") as progress:
        examine = (lambda head: _figures(host, head, checked)) if checked else None
        tier.train(setting.out, {"what": f"{setting.tier} over {setting.model}"}, progress, examine)
    return setting.out


def described(tier: tiers.Tier, trial: Trial) -> str:
    """What will be trained, and what it takes from here on."""
    left = tier.run.config.steps - tier.run.step
    minutes = left * trial.seconds / 60
    lasting = f"{minutes / 60:.1f} hours" if minutes > 90 else f"{minutes:.0f} minutes"
    parameters = sum(p.numel() for p in tier.head.parameters())
    return (
        f"{parameters / 1e6:.2f} M parameters ({parameters * 2 / 1e6:.1f} MB in float16), {tier.count} pictures, "
        f"{left} steps of {tier.run.config.batch}: {trial.seconds:.2f} s each, about {lasting}; "
        f"{trial.memory / GIGABYTE:.1f} GB at the peak."
    )


def _opened_host(setting: Setting, device: torch.device) -> Any:
    """In bfloat16 on a CUDA device, where gradients pass through it."""
    host = open_host(setting.model, device=device, dtype=torch.bfloat16 if device.type == "cuda" else None)
    if setting.recompute:
        if not hasattr(host, "recompute"):
            raise InputError("Expected a Stable Diffusion for --recompute, got the tiny world. Leave it out.")
        host.recompute()
    return host


def _cache(pictures: Dataset, host: Host, folder: Path) -> Cache:
    with progress_bar("Reading pictures") as progress:
        cache = draw(pictures, folder, progress)
    with progress_bar("Encoding pictures") as progress:
        return add_latents(cache, lambda pixels: host.encode_image(pixels).cpu(), progress)


def _pictures(setting: Setting, side: int) -> Dataset:
    if setting.dataset == "tinyworld":
        return TinyWorldDataset(setting.images, size=side)
    return opened(setting.dataset, setting.folder, setting.split, side, setting.images)


def _checked(setting: Setting, side: int) -> list[Item]:
    """Pictures that are not trained on, of a dataset that has splits."""
    name = "T0" if setting.dataset == "tinyworld" else setting.dataset
    if name in ("folder", "aigi") or not setting.check:
        return []
    items = opened(name, setting.folder, None, side, setting.check)
    return [items[i] for i in range(min(setting.check, len(items)))]


def _figures(host: Host, head: Network, items: list[Item]) -> dict[str, float]:
    outcome = benchmark.run(benchmark.segment_with(Predictor(host, head)), items)
    found = {"mIoU": benchmark.figures(outcome, outcome.images >= 0).miou_50}
    return found | ({"AUROC": benchmark.presence(outcome)[0]} if len(outcome.absent_scores) else {})
