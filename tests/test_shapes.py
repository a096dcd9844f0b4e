"""Sizes, for any picture: multiples, areas, aspects."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ldznet.errors import InputError
from ldznet.models.layers import Downsample
from ldznet.schedule import seeded_noise
from ldznet.shapes import fit_area, round_to_multiple, tap_size

SIDES = st.integers(1, 20_000)
SIZES = st.tuples(SIDES, SIDES)
GRIDS = st.tuples(st.sampled_from([8, 32, 64]), st.integers(2, 12))  # a multiple, and the side of the area in it


@given(length=st.floats(0, 1e6), multiple=st.integers(1, 64))
def test_the_nearest_positive_multiple(length: float, multiple: int) -> None:
    rounded = round_to_multiple(length, multiple)
    assert rounded > 0
    assert rounded % multiple == 0
    assert abs(rounded - length) <= multiple / 2 or rounded == multiple > length


@given(size=SIZES, grid=GRIDS)
def test_about_the_area_in_multiples(size: tuple[int, int], grid: tuple[int, int]) -> None:
    multiple, sides = grid
    area = (multiple * sides) ** 2
    height, width = fit_area(size, area, multiple)
    assert height % multiple == width % multiple == 0
    assert 0.4 * area <= height * width <= 1.8 * area  # rounding takes or gives at most a third of a side


@given(size=SIZES, grid=GRIDS)
def test_the_aspect_is_kept_up_to_rounding(size: tuple[int, int], grid: tuple[int, int]) -> None:
    multiple, sides = grid
    area = (multiple * sides) ** 2
    scale = math.sqrt(area / (size[0] * size[1]))
    if min(size) * scale >= multiple:
        for fitted, side in zip(fit_area(size, area, multiple), size, strict=True):
            assert abs(fitted - side * scale) <= multiple / 2 * (1 + 1e-9)


@given(size=SIZES, grid=GRIDS)
def test_a_turned_picture_gets_a_turned_size(size: tuple[int, int], grid: tuple[int, int]) -> None:
    multiple, sides = grid
    area = (multiple * sides) ** 2
    assert fit_area(size[::-1], area, multiple) == fit_area(size, area, multiple)[::-1]


@given(height=st.integers(1, 30), width=st.integers(1, 30), multiple=st.sampled_from([8, 32, 64]))
def test_what_fits_already_stays(height: int, width: int, multiple: int) -> None:
    size = height * multiple, width * multiple
    assert fit_area(size, size[0] * size[1], multiple) == size


def test_by_hand() -> None:
    assert fit_area((1000, 999), 384 * 384, 64) == (384, 384)  # the published code: 384 x 320
    assert fit_area((512, 768), 128 * 128, 32) == (96, 160)
    assert fit_area((1, 8000), 128 * 128, 32) == (32, 512)  # and not 32 x 11456


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5)])
def test_no_pixels_is_an_error(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="at least 1 x 1"):
        fit_area(size, 100, 8)


@given(size=st.tuples(st.integers(1, 40), st.integers(1, 40)), halvings=st.integers(0, 4))
def test_taps_have_the_size_that_convolutions_leave(size: tuple[int, int], halvings: int) -> None:
    x = torch.zeros(1, 1, *size)
    halve = Downsample(1)
    for _ in range(halvings):
        x = halve(x)
    assert tap_size(size, 2**halvings) == tuple(x.shape[2:])


def test_every_seed_of_32_bits_is_a_noise_of_its_own() -> None:
    """As many as torch's generator on the CPU tells apart, and ComfyUI's widget has; no whole number is refused."""
    seeds = (0, 1, 2**31, 2**32 - 1)
    noises = [seeded_noise((4,), seed) for seed in seeds]
    assert len({tuple(noise.tolist()) for noise in noises}) == len(seeds)
    assert torch.equal(noises[1], torch.randn(4, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(seeded_noise((4,), -1), noises[-1])
