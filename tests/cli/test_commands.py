"""The command line as a person types it: what is written, and what wrong input answers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hosts import small
from PIL import Image

from ldznet import Segmentation, __version__, segmentation, tinyworld
from ldznet.cli import evaluate, main, train_app
from ldznet.cli.segment import write_masks
from ldznet.evaluate.gates import Gate
from ldznet.train import recipe


def ldznet(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    code = "from ldznet.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=cwd, capture_output=True, text=True)


def test_demo_writes_one_sheet(tmp_path: Path) -> None:
    done = ldznet("demo", "-o", "sheet.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 800
        assert sheet.height > 1000


def test_segment_writes_a_mask_per_phrase(tmp_path: Path) -> None:
    Image.fromarray(tinyworld.scene(3).image).resize((101, 77)).save(tmp_path / "photo.png")
    texts = [part for text in ("grass", "(a red star:1.2) - sky", "the zebra") for part in ("--text", text)]
    done = ldznet("segment", "photo.png", *texts, "--model", "tiny", "-o", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["00_grass.png", "01_a_red_star_sky.png", "02_the_zebra.png", "overlay.png", "result.json"]
    first, *others = done.stderr.splitlines()
    assert first.startswith("note: tiny is a toy model: it knows drawings of its own tiny world alone")
    assert any('is read as "a red star - sky" (weights do nothing here)' in line for line in others)
    assert any(line.startswith('note: "zebra": no word of this model') for line in others)
    assert len(done.stdout.splitlines()) == 4
    with Image.open(tmp_path / "out" / "00_grass.png") as mask:
        assert mask.size == (101, 77)


def test_a_stable_diffusion_s_scores_are_shown_as_what_they_are(tmp_path: Path) -> None:
    """Of random weights, so that nothing it says means anything: every face says so, and none says found."""
    (tmp_path / "model").mkdir()
    model = small.diffusers_folder(tmp_path / "model")
    Image.fromarray(tinyworld.scene(3).image).save(tmp_path / "photo.png")
    done = ldznet("segment", "photo.png", "--text", "the dog.", "--model", str(model), "-o", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    line = done.stdout.splitlines()[0]
    assert re.fullmatch(r"out.00_the_dog\.png: the dog\.: found\?, .*, score 0\.\d\d \(not calibrated\)", line), line
    assert done.stderr.splitlines()[-2:] == [
        f"note: {segmentation.UNCALIBRATED}",
        'note: "the dog." is read as "the dog"',
    ]
    assert "toy" not in done.stderr
    (said,) = json.loads((tmp_path / "out" / "result.json").read_text())["phrases"]
    assert (said["found"], said["calibrated"]) == (None, False)


def test_masks_that_are_too_many_at_once_are_written_one_by_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(segmentation, "MOST_BYTES", 4 * 16 * 16)
    logits = torch.stack([torch.full((8, 8), 5.0), torch.full((8, 8), -5.0)])[None]
    result = Segmentation(logits, ("all", "nothing"), (16, 16), torch.ones(1, 2))
    lines = write_masks(Image.new("RGB", (16, 16)), result, 0.5, tmp_path)
    assert ["found, 100.0 %" in lines[0], "nothing over the threshold" in lines[1]] == [True, True]
    assert len(list(tmp_path.iterdir())) == 4


def test_the_version_and_the_module(tmp_path: Path) -> None:
    done = ldznet("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"ldznet {__version__}\n")
    module = subprocess.run([sys.executable, "-m", "ldznet", "--version"], cwd=tmp_path, capture_output=True, text=True)
    assert (module.returncode, module.stdout) == (done.returncode, done.stdout)


def test_generate_says_which_words_it_does_not_know(tmp_path: Path) -> None:
    done = ldznet("generate", "A red zebra on grass!", "a blue cat", "--steps", "1", "-o", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith('note: the tiny world knows no "zebra", and draws something else. It knows: ')
    assert all(word in done.stderr for word in ("star", "purple", "striped", "grass"))
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["000.png", "001.png", "result.json"]
    assert json.loads((tmp_path / "out" / "result.json").read_text())["pictures"][1]["caption"] == "a blue cat"


def test_a_gate_that_fails_is_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    reached = [Gate("first", 0.9, 0.9), Gate("second", 0.5, 0.9)]
    monkeypatch.setattr(evaluate.gates, "gates", lambda host, weights, count, progress: reached)
    assert ended(("evaluate", "gates", "--scenes", "7"), monkeypatch, tmp_path) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any("second" in line and " 7 " in line and "NO" in line for line in lines)
    reached.pop()
    assert ended(("evaluate", "gates", "--scenes", "7"), monkeypatch, tmp_path) == 0


def test_every_stage_of_the_recipe_is_a_command() -> None:
    assert list(train_app.STAGES) == ["all", *recipe.STAGES]


def ended(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, folder: Path) -> int:
    """Runs the command line in this process; its exit code."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["ldznet", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("segment", "no.png", "--text", "grass"), "Expected a model, got none. Give --model a diffusers folder"),
        (("segment", "no.png", "--text", "grass", "--model", "tiny"), "Expected a picture"),
        (("segment", "https://a.org/b.png", "--text", "grass", "--model", "tiny"), "got a URL (https://a.org/b.png)"),
        (("segment", "taken", "--text", "grass", "--model", "https://a.org/b"), "a picture at taken"),
        (("info", "https://a.org/head.safetensors"), "got a URL (https://a.org/head.safetensors)"),
        (("convert", "https://a.org/head.ckpt", "head.safetensors"), "got a URL (https://a.org/head.ckpt)"),
        (("info", "no.safetensors"), "does not exist"),
        (("convert", "no.ckpt", "head.safetensors"), "could not open no.ckpt"),
        (("shrink", "no.ckpt", "small.safetensors", "--base", "sd.ckpt", "--rank", "8"), "could not open no.ckpt"),
        (("shrink", "no.ckpt", "small.safetensors", "--base", "sd.ckpt"), "a rank of at least 1 or a size in MB"),
        (("segment",), "Missing argument"),
        (("segment", "none.png", "--text", "grass", "-o", "taken"), "'taken' is a file"),
        (("demo", "--out", "taken/sheet.png"), "Could not read or write a file"),
        (("demo", "--out", "."), "is a directory"),
        (("generate", "a red star", "-o", "taken"), "'taken' is a file"),
        (("generate", "a red star", "--guidance", "nan"), "--guidance"),
        (("train", "unet"), "No such command 'unet'"),
        (("train", "head", "--model", "tiny", "-o", "taken"), "the name of a new .safetensors file, got taken"),
        (("train", "head", "--model", "tiny", "-o", "a.safetensors", "--tier", "three"), "a tier of light, one, two"),
        (("train", "head", "--model", "no", "-o", "a.safetensors"), '"no", which does not exist'),
        (("train", "head", "--model", "tiny", "-o", "a.safetensors", "--size", "100"), "multiples of 32 pixels"),
        (("train", "vae", "--data", "nowhere"), "Expected index.jsonl in nowhere"),
        (("evaluate", "everything"), "Expected tiny, taps, resolution, timestep, naming or gates"),
        (("evaluate", "tiny", "--head", "no.safetensors"), "does not exist"),
        (("evaluate", "gates", "--weights", "nowhere"), "Expected weights of the tiny world"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_input_exits_2_with_one_clear_line(
    arguments: tuple[str, ...],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    (tmp_path / "taken").touch()
    assert ended(arguments, monkeypatch, tmp_path) == 2
    complaint = capsys.readouterr().err
    assert says in " ".join(complaint.replace("│", " ").split())
    assert "Traceback" not in complaint
    assert complaint.startswith("ldznet: ") == (len(complaint.splitlines()) == 1), complaint  # typer's own have a frame
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["taken"]


ENDED = """
import os, signal
from pathlib import Path
import ldznet.cli.app
from ldznet.writing import replacing

def work():
    with replacing(Path("head.safetensors")) as file:
        file.write(b"half")
        os.kill(os.getpid(), signal.SIGTERM)

ldznet.cli.app.app = work
ldznet.cli.main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there a process is ended without a word")
def test_a_command_that_is_ended_leaves_no_half_of_a_file(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", ENDED], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (143, "")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command", ["demo", "segment", "generate", "convert", "shrink", "info", "train", "train head", "evaluate"]
)
def test_help_shows_an_example(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert ended((*command.split(), "--help"), monkeypatch, tmp_path) == 0
    assert "Example" in capsys.readouterr().out
