"""A progress bar as the callback that the library takes. Used by commands alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(stderr=True)


@contextlib.contextmanager
def progress_bar(label: str) -> Iterator[Callable[..., None]]:
    """A bar that pulses until the yielded function is called: (done, total, figures=None). Gone when all is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=None)

        def report(done: int, total: int, figures: dict[str, float] | None = None) -> None:
            text = " ".join(f"{name} {value:.3f}" for name, value in (figures or {}).items() if name == "loss")
            bar.update(task, completed=done, total=total, description=f"{label} {text}".strip())

        yield report
