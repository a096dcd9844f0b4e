"""Files written whole or not at all. Imports errors alone; everything that writes may import this."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` once it is whole; after an error or an interrupt nothing of it is left.

    Raises InputError where it cannot be written.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            yield file
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"Could not write {path}: {error}. Check the folder and its free space.") from error
    finally:
        part.unlink(missing_ok=True)
