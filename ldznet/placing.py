"""Where weights go and as what: a device and a dtype as users name them, checked before anything is read.

Imports errors alone.
"""

from __future__ import annotations

from typing import Any

import torch

from .errors import InputError, cause, shown

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def device_of(device: Any) -> torch.device:
    """The device that `device` names; None is the CPU. Raises InputError for one that this machine does not have."""
    try:
        found = torch.device("cpu" if device is None else device)
        torch.empty(0, device=found, dtype=torch.float32)
    except Exception as error:  # each backend has its own for a device that is not there
        first = cause(error).partition("\\n")[0]  # escaped, as all that others say
        raise InputError(
            f"Expected a device of this machine, got {shown(repr(device))} ({first}). Leave it out for the CPU."
        ) from error
    return found


def dtype_of(dtype: Any) -> torch.dtype | None:
    """`dtype`, unless it is anything but None or a type in which layers run: InputError says what to write."""
    if dtype is None or any(dtype is known for known in DTYPES):
        return dtype
    raise InputError(
        f"Expected torch.float16, torch.bfloat16, torch.float32 or None as dtype, got {shown(repr(dtype))}."
    )
