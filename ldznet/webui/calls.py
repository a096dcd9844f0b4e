"""What of the host is needed, as calls, so that nothing but the interface imports its modules; and a user's stop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from PIL import Image


class Cancelled(Exception):
    """The user has stopped or skipped."""


@dataclass(frozen=True)
class Calls:
    """The host."""

    sd_model: Callable[[], Any]
    weights: Callable[[], str]  # names the files whose weights `sd_model` holds
    flatten: Callable[[Image.Image], Image.Image]  # RGB, as the host does away with transparency
    resized: Callable[[Any, Image.Image], Image.Image]  # a picture as `p` would give it back, were nothing repainted
    without_networks: Callable[[], AbstractContextManager[None]]  # LoRAs out of the model
    texts: Callable[[Any, str], list[list[str]]]  # of each part of a prompt (AND) what editing makes of it, in order
    cancelled: Callable[[], bool]
    stop: Callable[[], None]  # no picture at all
    failed: Callable[[str], None]  # into the log, with the traceback

    def check(self) -> None:
        """Raises Cancelled if the user has."""
        if self.cancelled():
            raise Cancelled
