"""One training loop for everything: the VAE, the LDM and any head. On accelerate; knows not what it trains.

A `Task` gives batches by step number, so that a run that was killed goes on exactly where its last state was saved.
In `folder` it keeps state.safetensors (to resume), state.json (to read), log.csv and log.png. On a CUDA device a step
is captured once and replayed: networks as small as the tiny world's wait for launches there, not for arithmetic.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..checkpoints.files import open_safetensors
from ..errors import InputError, cause
from .graphs import Graphed

STATE = "state.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's, laid out in memory as their parameter is: its fused step relies on that

Module = TypeVar("Module", bound=nn.Module)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How to train. Learning rate: linear warm-up, then a cosine to a tenth."""

    steps: int
    batch: int = 16
    learning_rate: float = 5e-4
    warmup: int = 200
    weight_decay: float = 0.01
    clip: float = 1.0  # of the gradient's norm
    ema: float = 0.9995
    seed: int = 0
    log_every: int = 50
    save_every: int = 500
    precision: str = "no"  # "bf16" runs the forward pass under autocast
    compile: bool = False
    graphs: bool = True  # on a CUDA device; large networks do not wait for launches


Progress = Callable[[int, int, dict[str, float]], None]
Examine = Callable[[Mapping[str, Tensor]], dict[str, float]]


class Trial(NamedTuple):
    """What a step takes."""

    seconds: float
    memory: int  # bytes at the peak: of the device, or of the process on a CPU


class Task(Protocol):
    """What is trained: a module, batches by step, and a loss with figures worth logging."""

    @property
    def module(self) -> nn.Module: ...

    def batch(self, step: int, size: int, generator: torch.Generator) -> Any: ...

    def loss(self, module: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]: ...


class EMA:
    """Exponential moving average of a module's parameters, with a warm-up so that the first garbage dies out."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters: dict[str, Tensor] = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """After optimizer step number `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current: list[Tensor] = list(module.parameters())
        torch._foreach_lerp_(list(self.parameters.values()), current, 1 - decay)


def channels_last(module: Module) -> Module:
    """`module` with its kernels channels-last in memory, which convolutions on a CPU are faster on; in place."""
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return module


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then a cosine down to a tenth."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, progress))))


def accelerator() -> Any:
    """accelerate's view of the processes and the device. Raises InputError where it is not installed."""
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise InputError(f'Training needs accelerate ({error}). pip install "ldznet[train]"') from error
    return Accelerator()


class Run:
    """A training run in a folder: optimizer, EMA, log, and the state to resume from."""

    def __init__(self, task: Task, config: TrainConfig, folder: Path) -> None:
        if config.steps < 1 or config.batch < 1:
            raise InputError(f"Expected at least one step and a batch of one, got {config.steps} and {config.batch}.")
        folder.mkdir(parents=True, exist_ok=True)
        self.task, self.config, self.folder = task, config, folder
        self.accelerator = accelerator()
        self.device = self.accelerator.device
        self.module, self.optimizer = self.accelerator.prepare(task.module, _adamw(task.module.to(self.device), config))
        self.plain: nn.Module = self.accelerator.unwrap_model(self.module)
        self.ema = EMA(self.plain, config.ema)
        self.step = 0
        self.rows: list[dict[str, float]] = []
        if (folder / STATE).exists():
            self._resume()
        if config.compile:
            self.module = torch.compile(self.module)
        graphed = config.graphs and self.device.type == "cuda"
        self._step = Graphed(self._eager_step) if graphed else self._eager_step

    def trial(self) -> Trial:
        """What one step takes, without the optimizer's part, by doing it twice; nothing is changed by it."""
        self.module.train()
        for _ in range(2):
            start = time.perf_counter()
            batch = moved(self._batch(self.step), self.device)
            self._loss(self.plain, batch)[0].backward()
            self.optimizer.zero_grad(set_to_none=True)
            if self.device.type == "cuda":
                torch.cuda.synchronize()
        return Trial(time.perf_counter() - start, _peak(self.device))

    def _batch(self, step: int) -> Any:
        """The share of a step's batch that is this process's own."""
        seed = self.config.seed * 1_000_003 + step + (self.accelerator.process_index << 40)
        return self.task.batch(step, self.config.batch, torch.Generator().manual_seed(seed))

    def train(self, progress: Progress | None = None, examine: Examine | None = None) -> dict[str, Tensor]:
        """Runs to the end; returns the EMA parameters by name. `progress(step, steps, figures)` may raise to stop.

        `examine`, given the EMA parameters, adds figures to the log whenever the state is saved.
        """
        config = self.config
        self.module.train()
        while self.step < config.steps:
            batch = self._batch(self.step)
            self._set_rate(learning_rate(config, self.step))
            figures = self._step(moved(batch, self.device))
            self.ema.update(self.plain, self.step)
            self.step += 1
            last = self.step == config.steps
            if last or self.step % config.log_every == 0:
                self._log({name: float(value) for name, value in figures.items()})
                if progress:
                    progress(self.step, config.steps, self.rows[-1])
            if last or self.step % config.save_every == 0:
                self._require_finite(float(figures["loss"]))
                if examine and self.rows and self.accelerator.is_main_process:
                    self.rows[-1] |= examine(self.ema.parameters)
                self.save()
        return self.ema.parameters

    def _set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _loss(self, module: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            return self.task.loss(module, batch)

    def _eager_step(self, batch: Any) -> dict[str, Tensor]:
        self.optimizer.zero_grad(set_to_none=True)
        loss, figures = self._loss(self.module, batch)
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.plain.parameters(), self.config.clip)
        self.optimizer.step()
        return {"loss": loss.detach(), **figures, "gradient": norm}

    def save(self) -> None:
        """State and log; the state appears whole or not at all."""
        if not self.accelerator.is_main_process:
            return
        names = {p: name for name, p in self.plain.named_parameters()}
        tensors = {f"model.{name}": p.detach() for name, p in self.plain.named_parameters()}
        tensors |= {f"ema.{name}": p for name, p in self.ema.parameters.items()}
        for parameter, state in self.optimizer.state.items():
            tensors |= {f"{key}.{names[parameter]}": value for key, value in state.items()}
        partial = self.folder / "state.partial"
        contiguous = {name: t.cpu().contiguous() for name, t in tensors.items()}
        save_file(contiguous, partial, {"step": str(self.step), "rows": json.dumps(self.rows)})
        os.replace(partial, self.folder / STATE)
        record = {"step": self.step, "config": dataclasses.asdict(self.config)}
        (self.folder / "state.json").write_text(json.dumps(record), encoding="utf-8")
        write_log(self.rows, self.folder)

    def _resume(self) -> None:
        with open_safetensors(self.folder / STATE) as file:
            held = {name[len("model.") :]: info.shape for name, info in file.tensors.items() if name[:6] == "model."}
            if held != {name: tuple(parameter.shape) for name, parameter in self.plain.named_parameters()}:
                raise InputError(
                    f"{self.folder} holds the run of another model. Take another folder, or delete this one."
                )
            try:
                self.step, self.rows = int(file.metadata["step"]), json.loads(file.metadata["rows"])
                self._restore({name: file.read(name) for name in file.tensors})
            except (LookupError, TypeError, ValueError, RuntimeError) as error:
                raise InputError(
                    f"Expected the state of a run in {self.folder / STATE}, got one that lacks a part or is damaged "
                    f"({type(error).__name__}: {cause(error)}). Delete the file to begin anew."
                ) from error

    @torch.no_grad()
    def _restore(self, tensors: dict[str, Tensor]) -> None:
        for name, parameter in self.plain.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
            self.ema.parameters[name].copy_(tensors[f"ema.{name}"])
            if f"step.{name}" in tensors:
                state = {key: torch.empty_like(parameter).copy_(tensors[f"{key}.{name}"]) for key in MOMENTS}
                step = tensors[f"step.{name}"]
                self.optimizer.state[parameter] = {"step": step.to(parameter.device), **state}

    def _log(self, figures: dict[str, float]) -> None:
        self._require_finite(figures["loss"])
        self.rows.append({"step": self.step, "rate": learning_rate(self.config, self.step), **figures})

    def _require_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise InputError(f"The loss is {loss} at step {self.step}. Lower the learning rate and resume.")


def _peak(device: torch.device) -> int:
    """The most memory that was taken so far, in bytes; 0 where that is not known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def moved(batch: Any, device: torch.device) -> Any:
    """`batch`, a tensor or tensors in tuples and dicts, on `device`."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {name: moved(part, device) for name, part in batch.items()}
    return tuple(moved(part, device) for part in batch)


def _adamw(module: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Fused where this torch can (on a CPU from 2.4 on); fit to be captured on a CUDA device."""
    device = next(module.parameters()).device
    graphed = device.type == "cuda"
    rate: Any = torch.tensor(config.learning_rate, dtype=torch.float32, device=device) if graphed else None

    def optimizer(fused: bool) -> torch.optim.Optimizer:
        groups = _weight_decay_groups(module, config.weight_decay)  # AdamW writes its settings into them
        lr = config.learning_rate if rate is None else rate
        return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), fused=fused, capturable=graphed)

    try:
        return optimizer(fused=True)
    except RuntimeError:
        return optimizer(fused=False)


def _weight_decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices and kernels, none for biases, norms and embeddings of one dimension."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]


def write_log(rows: list[dict[str, float]], folder: Path) -> None:
    """log.csv and, where matplotlib is installed, log.png with one panel a figure."""
    if not rows:
        return
    with (folder / "log.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=_names(rows))
        writer.writeheader()
        writer.writerows(rows)
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    names = [name for name in _names(rows) if name != "step"]
    figure = Figure(figsize=(8, 2 * len(names)), layout="constrained")
    for axis, name in zip(figure.subplots(len(names), squeeze=False)[:, 0], names, strict=True):
        there = [row for row in rows if name in row]
        axis.plot([row["step"] for row in there], [row[name] for row in there])
        axis.set_ylabel(name)
    figure.savefig(folder / "log.png")


def _names(rows: list[dict[str, float]]) -> list[str]:
    """Of all figures; some stand in some rows alone."""
    return list(dict.fromkeys(name for row in rows for name in row))
