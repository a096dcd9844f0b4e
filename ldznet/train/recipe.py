"""The tiny world's recipe, stage by stage: `ldznet train vae`, then `ldm`, then `znet` and `ldznet`.

Each stage reads a cache of drawn images, resumes in its folder after a kill, starts from the committed weights where
there are some, and writes float16 weights with metadata. Knows hosts by their contract alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints import load_head, load_weights, save_head, save_tensors
from ..contracts import Host
from ..data.cache import Cache, Progress, add_latents
from ..models import UNet, build_head
from ..tinyworld import world
from .engine import Run, TrainConfig
from .head import HeadTask, start_from_unet
from .ldm import LDMTask
from .vae import VAETask, fold

STAGES: dict[str, TrainConfig] = {
    "vae": TrainConfig(2600, 16, 1.5e-3, warmup=100, weight_decay=0.0, ema=0.998, precision="bf16", compile=True),
    "ldm": TrainConfig(20_000, 16, 1e-3, ema=0.9995),
    "znet": TrainConfig(8_000, 16, 1e-3, ema=0.999),
    "ldznet": TrainConfig(8_000, 16, 1e-3, ema=0.999),
}


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage's setting: what is drawn, how to train, where the run lives and where its weights go."""

    name: str
    config: TrainConfig
    cache: Cache
    folder: Path
    weights: Path = world.WEIGHTS

    @property
    def file(self) -> Path:
        return self.weights / f"{self.name}.safetensors"

    @property
    def metadata(self) -> dict[str, str]:
        """What every file of weights says of itself."""
        config, count = self.config, len(self.cache)
        how = f"{config.steps} steps of {config.batch}, {count} images, EMA {config.ema}, precision {config.precision}"
        return {"what": f"the tiny world's {self.name}", "how": how, "commit": _commit(), "licence": "Apache-2.0"}


def train_vae(stage: Stage, progress: Progress) -> Path:
    """Trains the VAE, folds the statistics of its latents, writes it. Latents made with an older one go stale."""
    with seeded(stage.config.seed):
        vae = world.fresh().vae
    trained = Run(VAETask(vae, stage.cache), stage.config, stage.folder).train(progress)
    vae.load_state_dict(_part(trained, "vae."))
    fold(vae, stage.cache)
    save_tensors(_half(vae.state_dict()), stage.file, stage.metadata)
    return stage.file


def train_ldm(stage: Stage, progress: Progress) -> list[Path]:
    """Trains UNet and text encoder on latents of the embedded VAE; goes on from the embedded weights."""
    with seeded(stage.config.seed):
        models = world.fresh()
    load_weights(models.vae, world.WEIGHTS / "vae.safetensors")
    cache = add_latents(stage.cache, models.vae.encode)
    for name, module in (("unet", models.unet), ("text", models.text)):
        if (stage.weights / f"{name}.safetensors").exists():
            load_weights(module, stage.weights / f"{name}.safetensors").requires_grad_(True)
    task = LDMTask(models.unet, models.text, models.tokenizer, cache)
    trained = Run(task, stage.config, stage.folder).train(progress)
    files = [stage.weights / f"{name}.safetensors" for name in ("unet", "text")]
    for file in files:
        save_tensors(_half(_part(trained, f"{file.stem}.")), file, {**stage.metadata, "what": f"tiny {file.stem}"})
    return files


def train_head(stage: Stage, host: Host, unet: UNet, progress: Progress) -> Path:
    """Trains a head over `host`, from the embedded head where there is one, else from the LDM's `unet`."""
    cache = add_latents(stage.cache, host.encode_image)
    with seeded(stage.config.seed):
        head = build_head(world.head_config(stage.name))
    if stage.file.exists():
        head.load_state_dict(load_head(stage.file).state_dict())
    else:
        start_from_unet(head, unet)
    trained = Run(HeadTask(head, host, cache), stage.config, stage.folder).train(progress)
    head.load_state_dict(_part(trained, "head."))
    save_head(head, stage.file, {**stage.metadata, "trained_on": "the tiny world"})
    return stage.file


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Fresh weights inside are those of `seed`; the caller's random state is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        yield


def _part(parameters: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in parameters.items() if name.startswith(prefix)}


def _half(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.half() for name, tensor in tensors.items()}


def _commit() -> str:
    command = ["git", "rev-parse", "HEAD"]
    try:
        return subprocess.check_output(command, cwd=Path(__file__).parent, text=True, stderr=subprocess.DEVNULL).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
