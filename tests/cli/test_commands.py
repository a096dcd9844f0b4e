"""The command line as a person types it: what is written, and what wrong input answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from ldznet import Segmentation, segmentation, tinyworld
from ldznet.cli import main
from ldznet.cli.segment import write_masks


def ldznet(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    code = "from ldznet.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=cwd, capture_output=True, text=True)


def test_demo_writes_one_sheet(tmp_path: Path) -> None:
    done = ldznet("demo", "--out", "sheet.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 800
        assert sheet.height > 1000


def test_segment_writes_a_mask_per_phrase(tmp_path: Path) -> None:
    Image.fromarray(tinyworld.scene(3).image).resize((101, 77)).save(tmp_path / "photo.png")
    done = ldznet("segment", "photo.png", "--text", "grass", "--text", "a red star - sky", "-o", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["00_grass.png", "01_a_red_star___sky.png", "overlay.png"]
    with Image.open(tmp_path / "out" / "00_grass.png") as mask:
        assert mask.size == (101, 77)


def test_masks_that_are_too_many_at_once_are_written_one_by_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(segmentation, "MOST_BYTES", 4 * 16 * 16)
    logits = torch.stack([torch.full((8, 8), 5.0), torch.full((8, 8), -5.0)])[None]
    result = Segmentation(logits, ("all", "nothing"), (16, 16), torch.ones(1, 2))
    lines = list(write_masks(Image.new("RGB", (16, 16)), result, 0.5, tmp_path))
    assert ["100.0% of" in lines[0], "0.0% of" in lines[1]] == [True, True]
    assert len(list(tmp_path.iterdir())) == 3


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
        (("segment", "no.png", "--text", "grass"), "Expected a picture"),
        (("info", "no.safetensors"), "does not exist"),
        (("convert", "no.ckpt", "head.safetensors"), "could not open no.ckpt"),
        (("segment",), "Missing argument"),
        (("segment", "none.png", "--text", "grass", "-o", "taken"), "'taken' is a file"),
        (("demo", "--out", "taken/sheet.png"), "Could not read or write a file"),
        (("demo", "--out", "."), "is a directory"),
        (("generate", "a red star", "-o", "taken"), "'taken' is a file"),
        (("generate", "a red star", "--guidance", "nan"), "--guidance"),
        (("train", "unet"), "Expected a stage of vae, classifier"),
        (("train", "vae", "--data", "nowhere"), "Expected index.jsonl in nowhere"),
        (("evaluate", "everything"), "Expected tiny, resolution, timestep or gates"),
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


@pytest.mark.parametrize("command", ["demo", "segment", "generate", "convert", "info", "train", "evaluate"])
def test_help_shows_an_example(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert ended((command, "--help"), monkeypatch, tmp_path) == 0
    assert "Example" in capsys.readouterr().out
