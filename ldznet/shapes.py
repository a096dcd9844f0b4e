"""Sizes, and a stand-in for jaxtyping so that signatures can state shapes without needing it. Imports only errors.

Sizes are (height, width). A latent pixel covers 8 x 8 image pixels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from .errors import InputError

PIXELS_PER_LATENT = 8

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Real, UInt8
else:
    try:
        from jaxtyping import Bool, Float, Int, Real, UInt8
    except ImportError:

        class _Shaped:
            def __getitem__(self, item: tuple[Any, str]) -> Any:
                return item[0]

        Bool = Float = Int = Real = UInt8 = _Shaped()

__all__ = [
    "PIXELS_PER_LATENT",
    "Bool",
    "Float",
    "Int",
    "Real",
    "Size",
    "UInt8",
    "fit_area",
    "round_to_multiple",
    "tap_size",
]

Size = tuple[int, int]


def round_to_multiple(length: float, multiple: int) -> int:
    """The positive multiple of `multiple` nearest to `length`."""
    return max(1, math.floor(length / multiple + 0.5)) * multiple


def fit_area(size: Size, area: float, multiple: int) -> Size:
    """The size of about `area` pixels with the aspect of `size`, each side the nearest multiple of `multiple`.

    The published code floors the sides, which turns 1000 x 999 into 384 x 320; rounding keeps it square. Where one side
    would be less than `multiple`, it is that, and the other is cut to keep the area.
    """
    height, width = size
    if height < 1 or width < 1:
        raise InputError(f"Expected a size of at least 1 x 1, got {height} x {width}. Give an image with pixels in it.")
    scale = math.sqrt(area / (height * width))
    longest = max(area / multiple, multiple)
    height, width = (round_to_multiple(min(side * scale, longest), multiple) for side in size)
    return height, width


def tap_size(latent_size: Size, stride: int) -> Size:
    """Size of a tap `stride` latent pixels apart: each halving rounds up, as a padded strided convolution does."""
    return math.ceil(latent_size[0] / stride), math.ceil(latent_size[1] / stride)
