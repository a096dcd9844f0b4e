"""Files written whole or not at all. Imports errors alone; everything that writes may import this."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import InputError

Opening = Callable[[Path], AbstractContextManager[BinaryIO]]


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` once it is whole; after an error or an interrupt nothing of it is left.

    Raises InputError where it cannot be written.
    """
    with replacing_together() as opening, opening(path) as file:
        yield file


@contextmanager
def replacing_together() -> Iterator[Opening]:
    """Opens files that take their places one after the other once all of them are whole.

    After an error or an interrupt before that, on a full disk for one, nothing of any is left and what was there is
    as it was. Raises InputError that names the file that cannot be written.
    """
    parts: dict[Path, Path] = {}

    @contextmanager
    def opening(path: Path) -> Iterator[BinaryIO]:
        part = parts[path] = path.with_name(f"{path.name}.{os.getpid()}.part")
        with _said_of(path):
            if path.is_dir():  # before others take their places
                raise IsADirectoryError(f"{path} is a folder")
            with open(part, "wb") as file:
                yield file

    try:
        yield opening
        for path, part in parts.items():
            with _said_of(path):
                os.replace(part, path)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


@contextmanager
def _said_of(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"Could not write {path}: {error}. Check the folder and its free space.") from error
