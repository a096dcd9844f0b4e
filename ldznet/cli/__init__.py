"""The command line. `main` is the entry point; each command is a file here and a line in `app.py`."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn


def main() -> None:
    """Runs `ldznet …`; wrong input ends with one clear line and exit code 2."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # of diffusers and transformers: a command shows its own
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # half-written files are removed
    try:
        from .app import app
    except ImportError as error:
        sys.exit(f'The command line needs typer and rich ({error}). pip install "ldznet[cli]"')
    from ..errors import LDZNetError

    try:
        app()
    except LDZNetError as error:
        refuse(str(error))
    except OSError as error:  # no such folder, no right to it, no space left
        refuse(f"Could not read or write a file: {error}. Check the path, its rights and the free space.")


def refuse(message: str) -> NoReturn:
    """Says why on standard error; 2 is the exit code for it."""
    print(f"ldznet: {message}", file=sys.stderr)
    sys.exit(2)
