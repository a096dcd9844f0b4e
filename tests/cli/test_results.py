"""A command's files: all or none, nobody else's touched, and what result.json says of them."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldznet import Segmentation
from ldznet.cli import results
from ldznet.cli.segment import box_of, write_masks
from ldznet.errors import InputError

PICTURE = Image.new("RGB", (16, 16))


def result(*phrases: str, **changes: Any) -> Segmentation:
    logits = torch.full((1, len(phrases), 16, 16), -9.0)
    logits[:, :, 4:12, 2:6] = 9.0
    settings = {"logits": logits, "phrases": phrases, "size": (16, 16), "scores": torch.ones(1, len(phrases))}
    return Segmentation(**{**settings, **changes})


def there(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_result_json_says(tmp_path: Path) -> None:
    found = result("a cat.", "the dog", scores=torch.tensor([[0.98, 0.125]]), hints=("a hint",))
    lines = write_masks(PICTURE, found, 0.5, tmp_path, {"model": "tiny"})
    assert lines[0] == f"{tmp_path / '00_a_cat.png'}: a cat.: found, 12.5 %, score 0.98"
    assert lines[1] == f"{tmp_path / '01_the_dog.png'}: the dog: not found, score 0.12"
    about = json.loads((tmp_path / "result.json").read_text())
    assert about["phrases"] == [
        {
            **{"phrase": "a cat.", "read_as": "a cat", "found": True, "score": 0.98, "calibrated": True},
            **{"area": 0.125, "box": {"x": 2, "y": 4, "width": 4, "height": 8}, "file": "00_a_cat.png"},
        },
        {
            **{"phrase": "the dog", "read_as": "the dog", "found": False, "score": 0.125, "calibrated": True},
            **{"area": 0.0, "box": None, "file": "01_the_dog.png"},
        },
    ]
    assert (about["model"], about["threshold"], about["hints"]) == ("tiny", 0.5, ["a hint"])
    assert sorted(about["files"]) == ["00_a_cat.png", "01_the_dog.png", "overlay.png"]
    with Image.open(tmp_path / "00_a_cat.png") as mask:
        assert np.asarray(mask)[4:12, 2:6].min() == np.asarray(mask).max() == 255


def test_scores_that_mean_nothing_are_shown_as_such(tmp_path: Path) -> None:
    lines = write_masks(PICTURE, result("a cat", found_threshold=0.0, calibrated=False), 0.5, tmp_path)
    assert lines[0].endswith("a cat: found?, 12.5 %, score 1.00 (not calibrated)")
    (said,) = json.loads((tmp_path / "result.json").read_text())["phrases"]
    assert (said["found"], said["calibrated"], said["score"]) == (None, False, 1.0)


def test_the_last_run_goes_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    (tmp_path / "holiday.png").write_bytes(b"mine")
    (tmp_path / "00_my_own.png").write_bytes(b"mine")
    write_masks(PICTURE, result("a cat", "grass"), 0.5, tmp_path)
    (tmp_path / "01_grass.png").write_bytes(b"painted over")
    write_masks(PICTURE, result("a dog"), 0.5, tmp_path)
    assert there(tmp_path) == ["00_a_dog.png", "00_my_own.png", "01_grass.png", "holiday.png", *there_of_a_run()]
    assert (tmp_path / "01_grass.png").read_bytes() == b"painted over"


def there_of_a_run() -> list[str]:
    return ["overlay.png", "result.json"]


@pytest.mark.parametrize("name", ["00_a_cat.png", "overlay.png"])
def test_a_file_of_somebody_else_is_never_replaced(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(InputError, match=f"room for {name}, got a file of that name that is not ours"):
        write_masks(PICTURE, result("a cat"), 0.5, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {name: b"mine"}


def test_a_mask_that_was_changed_is_not_replaced(tmp_path: Path) -> None:
    write_masks(PICTURE, result("a cat"), 0.5, tmp_path)
    write_masks(PICTURE, result("a cat"), 0.5, tmp_path)
    (tmp_path / "00_a_cat.png").write_bytes(b"painted over")
    with pytest.raises(InputError, match="was changed since"):
        write_masks(PICTURE, result("a cat"), 0.5, tmp_path)
    assert (tmp_path / "00_a_cat.png").read_bytes() == b"painted over"


OTHERS = ["{}", "[]", "nonsense", '{"made_by": "another", "files": {}}', '{"made_by": "ldznet", "files": 3}', "\xff"]


@pytest.mark.parametrize("text", OTHERS)
def test_a_result_json_of_another_program_is_left_alone(text: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"no result.json of another program"):
        write_masks(PICTURE, result("a cat"), 0.5, tmp_path)
    assert there(tmp_path) == ["result.json"]


def test_a_result_json_that_lies_takes_nothing_away(tmp_path: Path) -> None:
    """Names that lead out of the folder, links, and hashes that are not those of the files."""
    (outside := tmp_path / "outside.png").write_bytes(b"mine")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "photo.png").write_bytes(b"mine")
    (folder / "link.png").symlink_to(outside)
    digest = results.hashlib.sha256(b"mine").hexdigest()
    files = {"../outside.png": digest, str(outside): digest, "photo.png": "0" * 64, "link.png": digest, "gone.png": "1"}
    (folder / "result.json").write_text(json.dumps({"made_by": "ldznet 0.1.0", "files": files}))
    write_masks(PICTURE, result("a cat"), 0.5, folder)
    assert outside.read_bytes() == b"mine"
    assert there(folder) == ["00_a_cat.png", "link.png", "overlay.png", "photo.png", "result.json"]


@pytest.mark.parametrize("fails_at", [1, 2, 3, 4])
def test_a_full_disk_leaves_no_half_set(fails_at: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """At each of the four files: the run before is as it was, and nothing is beside it."""
    write_masks(PICTURE, result("a cat", "grass"), 0.5, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr("builtins.open", filling_up(fails_at))
    with pytest.raises(InputError, match="No space left on device"):
        write_masks(PICTURE, result("a dog", "sky"), 0.4, tmp_path)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def filling_up(fails_at: int) -> Any:
    """An `open` whose `fails_at`-th new file takes half of what is written, and then no more."""
    opened, real = 0, open

    def opening(path: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        nonlocal opened
        file = real(path, mode, *rest, **options)
        if mode != "wb":
            return file
        opened += 1
        return Full(file) if opened == fails_at else file

    return opening


class Full:
    def __init__(self, file: Any) -> None:
        self.file = file

    def __enter__(self) -> Full:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> int:
        self.file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")


def test_boxes() -> None:
    mask = np.zeros((5, 7), bool)
    assert box_of(mask) is None
    mask[1:3, 2:6] = True
    assert box_of(mask) == {"x": 2, "y": 1, "width": 4, "height": 2}
    assert box_of(np.ones((5, 7), bool)) == {"x": 0, "y": 0, "width": 7, "height": 5}
