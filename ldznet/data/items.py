"""What every dataset yields. Imports shapes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..shapes import Bool, UInt8


@dataclass(frozen=True)
class Item:
    """An image, what can be said of it, and where each phrase is.

    `masks` has one plane per phrase, in order; `kinds` says "thing" or "stuff" of each ("thing" where nothing is
    known); `absent` are phrases that are not in the image; `distracted` marks phrases with a distractor.
    """

    image: UInt8[np.ndarray, "h w 3"]
    captions: tuple[str, ...]
    phrases: tuple[str, ...]
    masks: Bool[np.ndarray, "p h w"]
    kinds: tuple[str, ...]
    absent: tuple[str, ...] = ()
    distracted: tuple[bool, ...] = ()


class Dataset(Protocol):
    """Items by index; equal-sized images, but where a dataset was made with size None."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Item: ...
