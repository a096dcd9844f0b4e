"""Several files take their places together or not at all; what was there stays."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from ldznet import load_head, open_host
from ldznet.errors import InputError
from ldznet.images import open_picture
from ldznet.sources import require_no_url
from ldznet.writing import replacing_together


def test_all_of_them_or_none(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("old")
    with replacing_together() as opening:
        for name in ("one", "two"):
            with opening(tmp_path / name) as file:
                file.write(name.encode())
            assert not (tmp_path / "two").exists()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"one": "one", "two": "two"}


def write(folder: Path, names: tuple[str, ...], end: BaseException | None = None) -> None:
    """Writes "new" to each; `end` comes while the last is open."""
    with replacing_together() as opening:
        for name in names:
            with opening(folder / name) as file:
                file.write(b"new")
                if end and name == names[-1]:
                    raise end


@pytest.mark.parametrize("names", [("one",), ("one", "two"), ("two", "one", "three")], ids=str)
def test_a_full_disk_leaves_what_was_there(names: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "one").write_text("old")
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(InputError, match=rf"Could not write .*{names[-1]}: .*No space left.*free space"):
        write(tmp_path, names, full)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"one": "old"}


def test_an_interrupt_and_a_folder_in_the_way_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, ("one", "two"), KeyboardInterrupt())
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        write(tmp_path, ("one", "folder"))
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("url", ["https://a.org/b.png", "http:/a.org/b", "s3://bucket/x", "file:///x.png", "hf://a/b"])
def test_a_url_is_called_a_url(url: str) -> None:
    with pytest.raises(InputError, match=r"a picture on this machine, got a URL \(\w+://"):
        require_no_url(url, "a picture")


@pytest.mark.parametrize("opens", [open_host, load_head, open_picture])
def test_all_that_opens_files_says_so(opens: Callable[[str], object]) -> None:
    with pytest.raises(InputError, match=r"got a URL \(https://a.org/b\). Download it first"):
        opens("https://a.org/b")


@pytest.mark.parametrize("path", ["a.png", "C:/a.png", "C:\\a.png", "/x/y", "a:b", "owner/name", Path("x") / "y:z"])
def test_a_path_is_no_url(path: str) -> None:
    require_no_url(path, "a picture")
