"""Operations on masks, against definitions written out pixel by pixel."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldznet import masks
from ldznet.errors import InputError


def square(side: int = 40, low: int = 10, high: int = 30) -> torch.Tensor:
    mask = torch.zeros(1, side, side)
    mask[:, low:high, low:high] = 1
    return mask


@pytest.mark.parametrize("pixels", [0, 1, 2, 7])
def test_growth_is_in_true_pixels(pixels: int) -> None:
    grown = masks.grow(square(), pixels)
    y, x = torch.meshgrid(torch.arange(40), torch.arange(40), indexing="ij")
    dy, dx = (torch.clamp(torch.maximum(10 - c, c - 29), min=0) for c in (y, x))
    assert torch.equal(grown[0] > 0, dy**2 + dx**2 <= pixels**2)


def test_shrinking_undoes_growth_of_a_square_and_spares_the_edge() -> None:
    assert torch.equal(masks.grow(masks.grow(square(), 4), -4), square())
    assert torch.equal(masks.grow(torch.ones(1, 9, 9), -3), torch.ones(1, 9, 9))


def test_feather_keeps_flat_parts_and_the_middle_of_an_edge() -> None:
    half = torch.zeros(1, 40, 40)
    half[:, :, 20:] = 1
    soft = masks.feather(half, 6)
    assert soft[0, 20, 19:21].sum() == pytest.approx(1, abs=1e-5)
    assert soft[0, 0, 0] < 1e-4
    assert soft[0, 39, 39] > 1 - 1e-4
    assert torch.equal(masks.feather(half, 0), half)


def test_holes_are_filled_and_bays_are_not() -> None:
    mask = square()
    mask[:, 15:20, 15:20] = 0  # a hole
    mask[:, 25:30, 20:22] = 0  # a bay, open to the outside
    filled = masks.fill_holes(mask)
    assert filled[0, 17, 17] == 1
    assert filled[0, 27, 21] == 0
    assert filled[0, 0, 0] == 0


def test_specks_go_by_area() -> None:
    mask = square()
    mask[:, 2:4, 2:4] = 1
    assert torch.equal(masks.drop_specks(mask, 5), square())
    assert torch.equal(masks.drop_specks(mask, 4), mask)


def flood(inside: torch.Tensor) -> int:
    """The number of 4-connected pieces, by a plain flood fill."""
    left = {(int(y), int(x)) for y, x in inside.nonzero()}
    pieces = 0
    while left:
        pieces += 1
        stack = [left.pop()]
        while stack:
            y, x = stack.pop()
            for near in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if near in left:
                    left.remove(near)
                    stack.append(near)
    return pieces


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 12))
def test_components_are_those_of_a_flood_fill(seed: int, height: int, width: int) -> None:
    inside = torch.rand(1, height, width, generator=torch.Generator().manual_seed(seed)) > 0.45
    labels = masks.components(inside)
    assert torch.equal(labels > 0, inside)
    assert len(labels[labels > 0].unique()) == flood(inside[0])


@pytest.mark.parametrize("refine", [masks.guided_filter, masks.pamr])
def test_refining_moves_a_coarse_edge_to_the_picture_s(refine) -> None:
    picture = torch.full((1, 3, 64, 64), 0.2)
    picture[:, 0, :, 30:] = 0.9
    truth = torch.zeros(1, 64, 64)
    truth[:, :, 30:] = 1
    coarse = masks.feather(torch.roll(truth, 2, dims=2), 6)
    coarse[:, :, :8] = 0
    before = ((coarse > 0.5) != (truth > 0.5)).sum()
    after = ((refine(coarse, picture) > 0.5) != (truth > 0.5)).sum()
    assert after < before


@pytest.mark.parametrize("refine", [masks.guided_filter, masks.pamr])
def test_refining_leaves_flat_masks_and_wants_the_right_picture(refine) -> None:
    picture = torch.rand(2, 3, 16, 20, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(refine(torch.ones(2, 16, 20), picture), torch.ones(2, 16, 20), atol=1e-3)
    with pytest.raises(InputError, match="Expected a picture"):
        refine(torch.ones(2, 16, 16), picture)


def test_label_map_takes_the_likeliest_over_the_background() -> None:
    probabilities = torch.tensor([[0.6, 0.2, 0.4], [0.7, 0.1, 0.9]])[None, :, None]
    assert masks.label_map(probabilities).tolist() == [[[2, 0, 2]]]
    with pytest.raises(InputError, match="at least one phrase"):
        masks.label_map(probabilities[:, :0])
