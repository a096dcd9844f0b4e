"""`ldznet train`: which data each stage of the recipe learns from, and what it starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from ..data import FolderDataset, TinyWorldDataset
from ..data.cache import Cache, draw
from ..data.items import Dataset
from ..errors import InputError
from ..hosts.tiny import TinyHost
from ..train import recipe
from .progress import progress_bar

JUDGES = ("classifier", "probe")
JUDGES_IMAGES = 40_000
JUDGES_SEED = 5_000_000  # one thing each; apart from every other scene that anything learns from


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the command line asked for. `data` is "tinyworld" or a folder; None keeps the recipe's own number."""

    data: str
    images: int
    steps: int | None
    batch: int | None
    out: Path
    weights: Path
    binding: float = 0.0


def stages(name: str) -> tuple[str, ...]:
    """The recipe's stages that `name` asks for; InputError for anything unknown."""
    if name == "all":
        return tuple(recipe.STAGES)
    if name not in recipe.STAGES:
        raise InputError(f'Expected a stage of {", ".join(recipe.STAGES)} or "all", got "{name}".')
    return (name,)


def train(name: str, setting: Setting) -> Iterator[Path]:
    """Runs the stages that `name` asks for; yields each file of weights when it is written."""
    changes = {key: value for key in ("steps", "batch") if (value := getattr(setting, key)) is not None}
    setting.weights.mkdir(parents=True, exist_ok=True)
    for stage in stages(name):
        config = dataclasses.replace(recipe.STAGES[stage], **changes)
        cache = _cache(setting, stage)
        singles = _cache(setting, "probe") if stage in ("ldm", "sd3") and setting.data == "tinyworld" else None
        yield from _run(
            recipe.Stage(stage, config, cache, setting.out / stage, setting.weights), singles, setting.binding
        )


def _run(stage: recipe.Stage, singles: Cache | None, binding: float) -> list[Path]:
    with progress_bar(f"Training {stage.name}") as progress:
        if stage.name == "vae":
            return recipe.train_vae(stage, progress)
        if stage.name in JUDGES:
            return recipe.train_namer(stage, progress)
        if stage.name == "text":
            return recipe.train_text(stage, progress)
        if stage.name == "ldm":
            return recipe.train_ldm(stage, singles, progress, binding)
        if stage.name == "sd3":
            return recipe.train_joint(stage, singles, progress)
        host = TinyHost.load(weights=stage.weights)
        return recipe.train_head(stage, host, host.models.unet, progress)


def _cache(setting: Setting, stage: str) -> Cache:
    """Images for a stage, drawn into a folder of the run that is named after what it holds."""
    dataset: Dataset
    if stage in JUDGES:
        name = f"one-thing-{JUDGES_IMAGES}"
        dataset = TinyWorldDataset(JUDGES_IMAGES, start=JUDGES_SEED, things=1)
    elif setting.data == "tinyworld":
        name, dataset = f"tinyworld-{setting.images}", TinyWorldDataset(setting.images)
    else:
        name, dataset = f"folder-{Path(setting.data).name}", FolderDataset(setting.data)
    with progress_bar("Drawing") as progress:
        return draw(dataset, setting.out / name, progress)
