"""Reads a plain pickle, as annotations are published, without running anything that it asks for.

Lists, dicts, tuples, numbers and text of any protocol are read (Python 2 wrote 0 to 2); everything else in the file
becomes a `Placeholder`, which whoever reads the data must refuse where data was expected. May be imported by
everything after checkpoints.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import InputError, cause
from .unpickling import unpickle

MOST_BYTES = 2**29  # of a file, which is read whole


def read_pickle(path: Path) -> Any:
    """What the pickle in a file builds. Each of its steps takes a byte at least, so its size bounds its cost.

    Raises InputError that names the file, where it is no pickle, cut short, or over `MOST_BYTES`.
    """
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise ValueError(f"{size:,} bytes, over {MOST_BYTES:,}")
        return unpickle(path.read_bytes(), {}, size)
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise InputError(
            f"Expected a pickle of lists, dicts, numbers and text in {path}, got {type(error).__name__}: "
            f"{cause(error)}. Get the file again."
        ) from error
