"""Every script of benchmarks/ runs to its end, at its smallest, and prints figures that can be."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from comfyui import host

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
Run = Callable[..., str]
WITH_COMFYUI = {"capture_cost", "inpaint"}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """What a script prints."""
    threads = torch.get_num_threads()

    def run(name: str, *options: str) -> str:
        path = BENCHMARKS / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(path), *options])
        try:
            runpy.run_path(str(path), run_name="__main__")
        finally:
            torch.set_num_threads(threads)
        return capsys.readouterr().out

    return run


def figures(text: str, pattern: str) -> list[float]:
    """The numbers after every `pattern`; there has to be one, and each is a share."""
    found = [float(number) for number in re.findall(rf"{pattern}\s*(-?[\d.]+)", text)]
    assert found, text
    assert all(0 <= number <= 1 for number in found), text
    return found


def test_every_script_has_a_test() -> None:
    tested = re.findall(r'(?:run|with_comfyui)\(\s*"(\w+)"', Path(__file__).read_text(encoding="utf-8"))
    assert {path.stem for path in BENCHMARKS.glob("*.py")} == set(tested)


def test_attention_ablations(run: Run, tmp_path: Path) -> None:
    out = run("attention", "ablate", "--scenes", "2", "--only", "guided", "--json", str(tmp_path / "figures.json"))
    assert figures(out, "things best") == pytest.approx(
        [row["things best"] for row in json.loads((tmp_path / "figures.json").read_text()).values()], abs=1e-3
    )
    assert figures(out, "all 0.5")[0] > 0.1


def test_attention_presence(run: Run) -> None:
    out = run("attention", "presence", "--scenes", "2")
    assert max(figures(out, "AUROC")) > 0.5


def test_attention_beside_other_heads(run: Run) -> None:
    trained = figures(run("attention", "compare", "--scenes", "1", "--only", "LD-ZNet"), "all 0.5")
    blind = figures(run("attention", "compare", "--scenes", "1", "--only", "the whole image"), "all 0.5")
    assert len(trained) == len(blind) == 2  # photo scenes, and the other renderings
    assert trained[0] > 0.5 > blind[0]


def test_attention_s_cost(run: Run) -> None:
    out = run("attention_cost", "--model", "small", "--size", "64", "--pairs", "1")
    for job in ("one phrase", "eight phrases", "sampling step"):
        assert re.search(rf"{job}: median \d+\.\d+ s, \d+\.\d\d of a sampling step", out)


def test_captures(run: Run) -> None:
    own, same, other = figures(run("capture", "--scenes", "2"), ": mean IoU")
    assert min(own, same, other) > 0.3


def test_edges(run: Run) -> None:
    out = run("edges", "--scenes", "1", "--side", "32")
    assert len(figures(out, "mIoU (?![+-])")) == 3 * 2 * 3  # sources, kinds, methods
    assert out.count("s for a mask of 32 x 32") == 3


def test_truncation(run: Run, tmp_path: Path) -> None:
    options = ("--pairs", "7", "--size", "64", "--channels", "32")
    out = run("truncation", *options, "--json", str(tmp_path / "times.json"))
    assert re.search(r"ratio: median \d+\.\d+", out)
    assert len(json.loads((tmp_path / "times.json").read_text())["ratios"]) == 7


def with_comfyui(name: str, *options: str, python: str = sys.executable) -> str:
    """What a script prints that needs a ComfyUI."""
    command = [python, str(BENCHMARKS / f"{name}.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.host
@pytest.mark.skipif(host.reason_to_skip() is not None, reason=str(host.reason_to_skip()))
def test_a_capture_s_cost() -> None:
    comfyui = host.folder()
    assert comfyui is not None
    options = ("--comfyui", str(comfyui), "--size", "64", "--steps", "2", "--channels", "64")
    out = with_comfyui("capture_cost", *options, python=str(host.interpreter(comfyui)))
    assert len(re.findall(r"s of [\d.]+ s, [\d.]+ % \(target: 3\)", out)) == 2


@pytest.mark.host
@pytest.mark.skipif(host.reason_to_skip() is not None, reason=str(host.reason_to_skip()))
def test_inpainting() -> None:
    out = with_comfyui("inpaint", "--pictures", "1", "--renders", "8")
    assert "1 pictures in which it was found" in out
    assert "outside of the mask bit-equal: True" in out
