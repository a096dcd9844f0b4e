"""The check of annotated shapes that conftest.py switches on."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from ldznet import Segmentation, masks
from ldznet.shapes import Float

shapes_hold = pytest.importorskip("shapes_hold", reason="jaxtyping is not installed")


@shapes_hold.holding
def summed(x: Float[Tensor, "b c"], y: Float[Tensor, " c"] | None = None, dim: int = 1) -> Float[Tensor, " b"]:
    if x.ndim != 2:
        raise ValueError("Expected b c")
    return x.sum(dim)


@shapes_hold.holding
def pair(x: Float[Tensor, "b c"]) -> tuple[Float[Tensor, "b c"], dict[str, Float[Tensor, "c b"]]]:
    return x, {"turned": x}


def test_what_holds_passes() -> None:
    assert summed(torch.zeros(2, 3)).shape == (2,)
    assert summed(torch.zeros(2, 3), torch.zeros(3)).shape == (2,)
    pair(torch.zeros(2, 2))


def test_what_does_not_hold_is_said() -> None:
    with pytest.raises(shapes_hold.ShapeError, match=r'summed: return: expected Float "b", got torch.float32 \(3,\)'):
        summed(torch.zeros(2, 3), dim=0)
    with pytest.raises(shapes_hold.ShapeError, match="summed: y"):
        summed(torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(shapes_hold.ShapeError, match="pair: return"):
        pair(torch.zeros(2, 3))
    with pytest.raises(shapes_hold.ShapeError, match=r"torch\.int64"):
        summed(torch.zeros(2, 3, dtype=torch.int64))


def test_an_error_of_its_own_comes_first() -> None:
    with pytest.raises(ValueError, match="Expected b c"):
        summed(torch.zeros(3))


def test_the_library_is_checked() -> None:
    with pytest.raises(shapes_hold.ShapeError, match=r"ldznet\.masks\.ends_pulled: soft"):
        masks.ends_pulled(torch.zeros(4, 4))


def test_fields_of_the_library_s_types_are_checked() -> None:
    class Own(NamedTuple):
        x: Float[Tensor, "b c"]

    assert not shapes_hold._fields(Own)

    @shapes_hold.holding
    def made(count: int) -> Segmentation:
        return Segmentation(torch.zeros(1, 2, 4, 4), ("a", "b"), (4, 4), torch.zeros(1, count))

    made(2)
    with pytest.raises(shapes_hold.ShapeError, match="made: return"):
        made(3)
