"""The tiny world's recipe: the VAE, the gates' judges, the text encoder, the LDM on both, the heads on the LDM, and SD
3's transformer in small beside it.

A stage reads a cache of drawn images, resumes in its folder after a kill, goes on from the weights that lie in
`weights`, and writes float16 weights with metadata there. Knows hosts by their contract alone.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..checkpoints import load_head, load_weights, save_head, save_tensors
from ..contracts import Host
from ..data.cache import Cache, add_latents
from ..data.tinyworld import TinyWorldDataset
from ..models import LDZNet, LightHead, build_head
from ..tinyworld import joint, world
from ..tinyworld.namer import Namer
from .engine import Examine, Progress, Run, TrainConfig
from .head import HeadTask, start_from
from .joint import Drawing, JointTask
from .ldm import LDMTask, only_category
from .namer import NamerTask
from .text import TextTask
from .vae import VAETask, fold

Module = TypeVar("Module", bound=nn.Module)

STAGES: dict[str, TrainConfig] = {  # in the order in which `ldznet train all` runs them
    "vae": TrainConfig(2600, 16, 1.5e-3, warmup=100, weight_decay=0.0, ema=0.998, precision="bf16", compile=True),
    "classifier": TrainConfig(2_500, 32, 2e-3, ema=0.998),
    "probe": TrainConfig(4_500, 32, 2e-3, ema=0.998),
    "text": TrainConfig(1_500, 64, 1e-3, ema=0.99),
    "ldm": TrainConfig(25_000, 16, 1e-3, ema=0.999),
    "ldznet": TrainConfig(12_500, 16, 1e-3, ema=0.998),
    "light": TrainConfig(10_000, 32, 1e-3, ema=0.998),
    "sd3": TrainConfig(25_000, 16, 1.5e-3, ema=0.998),
}
WATCHED_SEED, WATCHED = 700_000, 70  # captions that sd3 draws when its state is saved


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage's setting: what it learns from, how, where the run lives and where its weights go."""

    name: str
    config: TrainConfig
    cache: Cache
    folder: Path
    weights: Path

    @property
    def metadata(self) -> dict[str, str]:
        """What every file of weights says of itself."""
        config, count = self.config, len(self.cache)
        how = f"{config.steps} steps of {config.batch}, {count} images, EMA {config.ema}, precision {config.precision}"
        return {"what": f"the tiny world's {self.name}", "how": how, "commit": commit(), "licence": "Apache-2.0"}

    def file(self, name: str = "") -> Path:
        """Where the weights called `name` (the stage's own name if empty) lie."""
        return self.weights / f"{name or self.name}.safetensors"

    def goes_on(self, module: Module, name: str = "") -> Module:
        """`module`, filled from its file where there is one, to be trained."""
        if self.file(name).exists():
            load_weights(module, self.file(name))
        return module.requires_grad_(True).train()


def train_vae(stage: Stage, progress: Progress) -> list[Path]:
    """Trains the VAE, then folds the statistics of its latents. Latents made with an older one go stale."""
    with seeded(stage.config.seed):
        vae = world.fresh().vae
    trained = Run(VAETask(stage.goes_on(vae), stage.cache), stage.config, stage.folder).train(progress)
    vae.load_state_dict(part_of(trained, "vae."))
    fold(vae, stage.cache)
    save_tensors(_half(vae.state_dict()), stage.file(), stage.metadata)
    return [stage.file()]


def train_text(stage: Stage, progress: Progress) -> list[Path]:
    """Trains the text encoder on the captions; one that goes on stays close to what it said."""
    with seeded(stage.config.seed):
        models = world.fresh()
        captions = [caption for record in stage.cache.records for caption in record["captions"]]
        task = TextTask(stage.goes_on(models.text), models.tokenizer, captions, stage.file().exists())
    trained = Run(task, stage.config, stage.folder).train(progress)
    save_tensors(_half(part_of(trained, "text.")), stage.file(), stage.metadata)
    return [stage.file()]


def train_ldm(stage: Stage, singles: Cache | None, progress: Progress, binding: float = 0.0) -> list[Path]:
    """Trains the UNet on latents of the VAE and captions read by the text encoder, both from `stage.weights`.

    With `singles`, scenes of one thing, half of the latents are theirs and the probe's eyes help to compare; with
    `binding`, they also say where each noun's attention belongs (`ldm.py`).
    """
    with seeded(stage.config.seed):
        models = world.fresh()
    vae = load_weights(models.vae, stage.file("vae"))
    caches = [add_latents(cache, vae.encode) for cache in (stage.cache, singles) if cache is not None]
    judge = load_weights(Namer("latents"), stage.file("probe")) if singles else None
    text = load_weights(models.text, stage.file("text"))
    task = LDMTask(stage.goes_on(models.unet, "unet"), text, models.tokenizer, caches, judge, binding)
    trained = Run(task, stage.config, stage.folder).train(progress)
    save_tensors(_half(part_of(trained, "unet.")), stage.file("unet"), stage.metadata)
    return [stage.file("unet")]


def train_joint(stage: Stage, singles: Cache | None, progress: Progress) -> list[Path]:
    """Trains SD 3's transformer in small, beside the UNet, on the same latents and the same text encoder.

    With `singles`, scenes of one thing, half of each batch is theirs and the probe's eyes help to compare. Where there
    is a classifier, the log says under "found" in which share of pictures of unseen captions it names their category.
    """
    with seeded(stage.config.seed):
        models, transformer = world.fresh(), joint.fresh()
    for part, name in ((models.vae, "vae"), (models.text, "text")):
        load_weights(part, stage.file(name))
    caches = [add_latents(cache, models.vae.encode) for cache in (singles, stage.cache) if cache is not None]
    judge = load_weights(Namer("latents"), stage.file("probe")) if singles else None
    task = JointTask(stage.goes_on(transformer), models.text, models.tokenizer, caches, judge)
    examine = _drawing(models, stage.file("classifier"), transformer)
    trained = part_of(Run(task, stage.config, stage.folder).train(progress, examine), "transformer.")
    tensors = {**transformer.state_dict(), **trained}  # with the table of positions, which nothing trains
    save_tensors(_half(tensors), stage.file(), stage.metadata)
    return [stage.file()]


def _drawing(models: world.Models, judge: Path, transformer: nn.Module) -> Examine | None:
    """In which share of pictures that averaged parameters draw of unseen captions the `judge` names their category."""
    if not judge.exists():
        return None
    scenes = TinyWorldDataset(WATCHED, start=WATCHED_SEED, things=1)
    captions = [scenes[i].captions[0] for i in range(WATCHED)]
    categories = [only_category([caption]) for caption in captions]
    drawing = Drawing(models, load_weights(Namer("pixels"), judge), captions, categories)
    averaged = copy.deepcopy(transformer).eval()

    def examine(parameters: Mapping[str, Tensor]) -> dict[str, float]:
        averaged.load_state_dict(part_of(parameters, "transformer."), strict=False)
        return {"found": float(drawing.found(averaged).float().mean())}

    return examine


def train_head(stage: Stage, host: Host, unet: nn.Module, progress: Progress) -> list[Path]:
    """Trains a head over `host`: on from its own file where there is one, else from what it shares with the `unet`."""
    cache = add_latents(stage.cache, host.encode_image)
    with seeded(stage.config.seed):
        head = build_head(world.head_config(stage.name))
    start_from(head, load_head(stage.file()) if stage.file().exists() else unet)
    assert isinstance(head, (LDZNet, LightHead))  # what the embedded heads are
    trained = Run(HeadTask(head, host, cache), stage.config, stage.folder).train(progress)
    head.load_state_dict(part_of(trained, "head."))
    save_head(head, stage.file(), {**stage.metadata, "trained_on": "the tiny world"})
    return [stage.file()]


def train_namer(stage: Stage, progress: Progress) -> list[Path]:
    """Trains a judge: "classifier" on pixels, "probe" on latents. `stage.cache` holds scenes of one thing."""
    pixels = stage.name == "classifier"
    with seeded(stage.config.seed):
        vae = load_weights(world.fresh().vae, stage.file("vae"))
        namer = Namer("pixels" if pixels else "latents")
    cache = add_latents(stage.cache, vae.encode)
    task = NamerTask(stage.goes_on(namer), cache, vae.decode if pixels else None)
    trained = Run(task, stage.config, stage.folder).train(progress)
    save_tensors(_half(part_of(trained, "namer.")), stage.file(), stage.metadata)
    return [stage.file()]


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Fresh weights inside are those of `seed`; the caller's random state is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        yield


def part_of(parameters: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The parameters whose names begin with `prefix`, without it."""
    return {name[len(prefix) :]: tensor for name, tensor in parameters.items() if name.startswith(prefix)}


def _half(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.half() for name, tensor in tensors.items()}


def commit() -> str:
    """That of this code, or "unknown" outside of a repository."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        return subprocess.check_output(command, cwd=Path(__file__).parent, text=True, stderr=subprocess.DEVNULL).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
