"""The engine on a task of toy size: what it resumes, averages, schedules, refuses and writes."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ldznet.errors import InputError, LDZNetError
from ldznet.train.engine import EMA, Run, TrainConfig, channels_last, learning_rate

CONFIG = TrainConfig(steps=12, batch=2, learning_rate=0.01, warmup=3, ema=0.9, log_every=2, save_every=4)

Loss = tuple[Tensor, dict[str, Tensor]]


class Toy:
    """Copies noise with two convolutions, whose kernels are channels-last as those of the real tasks."""

    def __init__(self, hidden: int = 5) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = nn.Sequential(nn.Conv2d(3, hidden, 3, padding=1), nn.SiLU(), nn.Conv2d(hidden, 3, 3, padding=1))
        self.module = channels_last(net)

    def batch(self, step: int, size: int, generator: torch.Generator) -> Tensor:
        return torch.randn(size, 3, 4, 4, generator=generator)

    def loss(self, module: nn.Module, batch: Tensor) -> Loss:
        error = module(batch) - batch
        return (error**2).mean(), {"largest": error.detach().abs().max()}


class Broken(Toy):
    """Its loss is NaN from step `since` on."""

    def __init__(self, since: int) -> None:
        super().__init__()
        self.since = since

    def batch(self, step: int, size: int, generator: torch.Generator) -> Tensor:
        return super().batch(step, size, generator) * (math.nan if step >= self.since else 1)


class Killed(BaseException):
    """What no handler expects, as a kill would be."""


def kill_at(step: int) -> Any:
    def progress(now: int, steps: int, figures: dict[str, float]) -> None:
        if now == step:
            raise Killed

    return progress


def parameters(run: Run) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in run.plain.named_parameters()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(autouse=True)
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take seconds; without matplotlib a run logs to CSV alone."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)


@pytest.mark.parametrize("step", [2, 6, 8, 10])
def test_a_killed_run_goes_on_to_the_same_bits(step: int, tmp_path: Path) -> None:
    whole = Run(Toy(), CONFIG, tmp_path / "whole")
    expected = whole.train()
    with pytest.raises(Killed):
        Run(Toy(), CONFIG, tmp_path / "killed").train(kill_at(step))
    resumed = Run(Toy(), CONFIG, tmp_path / "killed")
    assert resumed.step == (step - 1) // CONFIG.save_every * CONFIG.save_every
    assert equal(resumed.train(), expected)
    assert equal(parameters(resumed), parameters(whole))
    assert resumed.rows == whole.rows
    assert (tmp_path / "killed" / "log.csv").read_text() == (tmp_path / "whole" / "log.csv").read_text()


def test_a_kill_while_saving_leaves_the_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(Toy(), CONFIG, tmp_path)
    with pytest.raises(Killed):
        run.train(kill_at(6))

    def half(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise Killed

    monkeypatch.setattr("ldznet.train.engine.save_file", half)
    with pytest.raises(Killed):
        Run(Toy(), CONFIG, tmp_path).train()
    assert Run(Toy(), CONFIG, tmp_path).step == 4


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    done = Run(Toy(), CONFIG, tmp_path).train()
    assert equal(Run(Toy(), CONFIG, tmp_path).train(), done)


def test_the_seed_decides_the_batches(tmp_path: Path) -> None:
    one = Run(Toy(), CONFIG, tmp_path / "one").train()
    two = Run(Toy(), TrainConfig(**{**vars(CONFIG), "seed": 1}), tmp_path / "two").train()
    assert not equal(one, two)


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    run = Run(Toy(), TrainConfig(steps=60, batch=8, learning_rate=0.02, warmup=5, log_every=10), tmp_path)
    run.train()
    assert run.rows[-1]["loss"] < 0.7 * run.rows[0]["loss"]


@pytest.mark.parametrize("other", [Toy(hidden=7), Toy(hidden=1)], ids=["wider", "one channel"])
def test_the_state_of_another_model_is_refused(other: Toy, tmp_path: Path) -> None:
    Run(Toy(), CONFIG, tmp_path).train()
    with pytest.raises(InputError, match="another model"):
        Run(other, CONFIG, tmp_path)


def test_the_state_of_a_model_with_other_names_is_refused(tmp_path: Path) -> None:
    Run(Toy(), CONFIG, tmp_path).train()
    other = Toy()
    other.module = nn.Sequential(other.module)
    with pytest.raises(InputError, match="another model"):
        Run(other, CONFIG, tmp_path)


@pytest.mark.parametrize(("steps", "since"), [(12, 5), (12, 8), (11, 10), (3, 2)])
def test_a_loss_that_is_no_number_raises_and_is_never_saved(steps: int, since: int, tmp_path: Path) -> None:
    config = TrainConfig(**{**vars(CONFIG), "steps": steps, "save_every": 3})
    with pytest.raises(InputError, match="loss is nan at step"):
        Run(Broken(since), config, tmp_path).train()
    resumed = Run(Toy(), config, tmp_path)
    assert resumed.step <= since
    assert all(p.isfinite().all() for p in parameters(resumed).values())


def test_the_average_follows_at_once_and_then_slowly() -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 0)
    ema = EMA(module, decay=0.5)
    nn.init.constant_(module.weight, 1)
    values = []
    for step in range(12):
        ema.update(module, step)
        values.append(ema.parameters["weight"].item())
    missing = 1.0
    for step, value in enumerate(values):
        missing *= min(0.5, (1 + step) / (10 + step))  # 0.1, 2/11, 3/12, … up to the decay at step 8
        assert value == pytest.approx(1 - missing, abs=1e-6)
    assert values[0] == pytest.approx(0.9)


def test_the_learning_rate_rises_and_falls_to_a_tenth() -> None:
    config = TrainConfig(steps=110, learning_rate=1.0, warmup=10)
    rates = [learning_rate(config, step) for step in range(111)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(1)
    assert rates[60] == pytest.approx(0.55)  # half way down the cosine
    assert rates[110] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate(config, 1000) == pytest.approx(0.1)


def test_the_optimizer_gets_the_scheduled_rate_and_decays_kernels_alone(tmp_path: Path) -> None:
    run = Run(Toy(), CONFIG, tmp_path)
    run.train()
    kernels, biases = run.optimizer.param_groups
    assert [p.ndim for p in kernels["params"]] == [4, 4]
    assert [p.ndim for p in biases["params"]] == [1, 1]
    assert (kernels["weight_decay"], biases["weight_decay"]) == (CONFIG.weight_decay, 0)
    assert kernels["lr"] == biases["lr"] == learning_rate(CONFIG, 11)


def test_log_and_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    Run(Toy(), CONFIG, tmp_path).train()
    with (tmp_path / "log.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [2, 4, 6, 8, 10, 12]
    assert list(rows[0]) == ["step", "rate", "loss", "largest", "gradient"]
    assert all(math.isfinite(float(value)) for row in rows for value in row.values())
    with Image.open(tmp_path / "log.png") as plot:
        assert plot.width > 100
    assert not list(tmp_path.glob("*partial*"))


def test_the_last_step_is_logged_and_nothing_needs_a_plot(tmp_path: Path) -> None:
    run = Run(Toy(), TrainConfig(**{**vars(CONFIG), "steps": 5}), tmp_path)
    run.train()
    assert [row["step"] for row in run.rows] == [2, 4, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv", "state.json", "state.safetensors"]


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch": 0}])
def test_a_run_of_nothing_is_refused(wrong: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one step"):
        Run(Toy(), TrainConfig(**{**vars(CONFIG), **wrong}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_frozen_parameters_stay(tmp_path: Path) -> None:
    toy = Toy()
    toy.module[0].requires_grad_(False)
    before = [p.clone() for p in toy.module[0].parameters()]
    run = Run(toy, CONFIG, tmp_path)
    run.train()
    assert all(torch.equal(a, b) for a, b in zip(before, toy.module[0].parameters(), strict=True))
    assert Run(toy, CONFIG, tmp_path).step == CONFIG.steps


STATES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[:-9],
    "cut in its header": lambda content: content[:100],
    "empty": lambda content: b"",
    "of another kind": lambda content: b"PK\x03\x04" + content,
    "without its step": lambda content: content.replace(b'"step":', b'"stop":'),
    "with no number for a step": lambda content: content.replace(b'"step":"', b'"step":"x', 1)[:-1],
    "without an average": lambda content: content.replace(b'"ema.', b'"emm.', 1),
    "without a moment": lambda content: content.replace(b'"exp_avg.', b'"exp_avh.', 1),
    "with broken rows": lambda content: content.replace(b'"rows":"[', b'"rows":"{', 1),
}


@pytest.mark.parametrize("name", STATES)
def test_a_damaged_state_is_an_error_of_ours(name: str, tmp_path: Path) -> None:
    Run(Toy(), CONFIG, tmp_path).train()
    state = tmp_path / "state.safetensors"
    before = state.read_bytes()
    state.write_bytes(STATES[name](before))
    assert state.read_bytes() != before
    with pytest.raises(LDZNetError, match=r"Expected .*, got |another model"):
        Run(Toy(), CONFIG, tmp_path)
