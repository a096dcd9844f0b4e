"""One evaluation over several processes, as `accelerate launch` starts them: who does what, and how it comes together.

Each process takes every n-th item and keeps counts alone, so that the whole is the same whatever the number of
processes (given the same number of torch's threads: see `predictor`). Alone in the field it imports accelerate.
"""

from __future__ import annotations

import os
from typing import Any

from ..errors import InputError
from .benchmark import Outcome, merged


def shard() -> tuple[int, int]:
    """(k, n): this is process k of n; (0, 1) where nothing launched several."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    state = _accelerate().PartialState()
    return state.process_index, state.num_processes


def gathered(part: Outcome) -> Outcome:
    """The outcome of all processes, the same in each, of what each one found."""
    if shard()[1] == 1:
        return part
    return merged(_accelerate().utils.gather_object([part]))


def _accelerate() -> Any:
    try:
        import accelerate
        import accelerate.utils
    except ImportError as error:
        install = 'pip install "ldznet[train]"'
        raise InputError(f"Expected accelerate, which joins several processes, got: {error}. {install}") from error
    return accelerate
