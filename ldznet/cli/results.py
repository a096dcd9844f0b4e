"""A command's files in a folder: all of them or none, and nobody else's touched. `result.json` says what they are.

It lists every file with its SHA-256, so that the next run knows which ones it may replace or take away: those that a
run of ours wrote and nobody has changed since.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from ..errors import InputError
from ..writing import replacing_together

RESULT = "result.json"
MADE_BY = "ldznet"  # "made_by" of a result of ours begins with it


class Save(Protocol):
    """Keeps a picture under a plain name in the folder, as a PNG."""

    def __call__(self, name: str, picture: Image.Image) -> None: ...


def require_room(folder: Path, names: Sequence[str]) -> None:
    """Raises InputError where a file that no run of ours left as it is stands in the way of `names` or of RESULT."""
    known = _known(folder)
    taken = [name for name in names if (folder / name).exists() and not _unchanged(folder, name, known)]
    if taken:
        raise InputError(
            f"Expected {folder} to have room for {taken[0]}, got a file of that name that is not ours or was changed "
            "since. Give another folder with -o."
        )


@contextmanager
def results(folder: Path, facts: Mapping[str, Any]) -> Iterator[Save]:
    """Yields what saves the pictures of one run; they and RESULT, which holds `facts` as JSON as they are at the end,
    take their places together.

    What the run before left there goes, unless it was changed. Raises InputError as `require_room` does, before
    anything is written, and where a file cannot be written: then the folder is as it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known, files = _known(folder), dict[str, str]()
    with replacing_together() as opening:

        def write(name: str, data: bytes) -> None:
            require_room(folder, [name])
            files[name] = hashlib.sha256(data).hexdigest()
            with opening(folder / name) as file:
                file.write(data)

        def save(name: str, picture: Image.Image) -> None:
            buffer = io.BytesIO()
            picture.save(buffer, "PNG")
            write(name, buffer.getvalue())

        yield save
        with opening(folder / RESULT) as file:
            about = {"made_by": f"{MADE_BY} {_version()}", **facts, "files": files}
            file.write(json.dumps(about, indent=1, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace"))
        stale = [name for name in known if name not in files and _unchanged(folder, name, known)]
    for name in stale:
        (folder / name).unlink(missing_ok=True)


def _known(folder: Path) -> dict[str, str]:
    """The files that the last run recorded, with their hashes; InputError for a RESULT of somebody else's."""
    path = folder / RESULT
    if not path.exists():
        return {}
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        ours, files = str(about["made_by"]).startswith(MADE_BY), dict(about["files"])
    except (OSError, ValueError, TypeError, KeyError):
        ours, files = False, {}
    if not ours:
        raise InputError(f"Expected no {RESULT} of another program in {folder}, got one. Give another folder with -o.")
    return {name: digest for name, digest in files.items() if Path(name).name == name}


def _unchanged(folder: Path, name: str, known: Mapping[str, str]) -> bool:
    """Whether a file is there as a run of ours wrote it."""
    path = folder / name
    if name not in known or path.is_symlink() or not path.is_file():
        return False
    return hashlib.sha256(path.read_bytes()).hexdigest() == known[name]


def _version() -> str:
    from .. import __version__

    return __version__
