"""Crops around pieces of a mask: where they lie, and the size that a model samples them at. Imports masks alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .masks import Piece
from .shapes import Size

MULTIPLE = 64  # pixels: a Stable Diffusion halves latents of an eighth three times


@dataclass(frozen=True)
class Crop:
    """A box in a picture (left, top, width, height), and the size (height, width) that it is sampled at."""

    left: int
    top: int
    width: int
    height: int
    sampled: Size


def crop_of(piece: Piece, size: Size, padding: int, side: int) -> Crop:
    """The crop around `piece` in a picture of `size` (height, width), with `padding` pixels on each hand.

    It is sampled at about `side` x `side` pixels in its own aspect, and as wide or high as that aspect asks, as far as
    the picture reaches.
    """
    height, width = piece.bottom - piece.top + 2 * padding, piece.right - piece.left + 2 * padding
    aspect = math.sqrt(width / height)
    high, wide = (max(MULTIPLE, round(length / MULTIPLE) * MULTIPLE) for length in (side / aspect, side * aspect))
    height, width = max(height, round(width * high / wide)), max(width, round(height * wide / high))
    top, height = _within((piece.top + piece.bottom) // 2, height, size[0])
    left, width = _within((piece.left + piece.right) // 2, width, size[1])
    return Crop(left, top, width, height, (high, wide))


def _within(middle: int, length: int, whole: int) -> tuple[int, int]:
    """Start and length of a span about `middle`, moved and cut to lie within `whole` pixels."""
    length = min(length, whole)
    return min(max(0, middle - length // 2), whole - length), length
