"""Crops around pieces: in the picture, around the piece, in the aspect that they are sampled at."""

from __future__ import annotations

import pytest
import torch

from ldznet import masks
from ldznet.cropping import Crop, crop_of


def crop(top: int, left: int, bottom: int, right: int, padding: int = 10, side: int = 512) -> Crop:
    """Around a rectangle in a picture of 400 x 600."""
    inside = torch.zeros(400, 600, dtype=torch.bool)
    inside[top:bottom, left:right] = True
    return crop_of(masks.pieces(inside)[0], (400, 600), padding, side)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((100, 200, 150, 250), Crop(190, 90, 70, 70, (512, 512))),
        ((0, 0, 50, 50), Crop(0, 0, 70, 70, (512, 512))),  # moved into the picture
        ((350, 550, 400, 600), Crop(530, 330, 70, 70, (512, 512))),
        ((100, 100, 120, 260), Crop(90, 89, 180, 42, (256, 1088))),
        ((0, 0, 400, 600), Crop(0, 0, 600, 400, (448, 640))),  # no larger than the picture
    ],
)
def test_place_and_size(box: tuple[int, int, int, int], expected: Crop) -> None:
    assert crop(*box) == expected


def test_small_sides_are_one_multiple() -> None:
    assert crop(100, 100, 102, 300, side=128).sampled == (64, 384)
