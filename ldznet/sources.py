"""What people give in the place of a file. Imports errors alone; everything that opens files may import this."""

from __future__ import annotations

import re
from pathlib import Path

from .errors import InputError, shown

URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):/{1,2}")  # two letters at least, for Windows has drives; `Path` joins //


def require_no_url(source: str | Path, what: str) -> None:
    """Raises InputError where `source` is a URL: nothing here is ever downloaded. `what` is "a picture" or the like."""
    match = URL.match(str(source))
    if match:
        url = str(source).replace(match[0], f"{match[1]}://", 1)
        raise InputError(
            f"Expected {what} on this machine, got a URL ({shown(url)}). Download it first: nothing here does."
        )
