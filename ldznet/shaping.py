"""From soft maps to the mask that is handed on: edges, threshold, specks, holes, growth, feather."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from . import masks
from .shapes import Float

REFINES = ("none", "guided filter", "PAMR")


@dataclass(frozen=True)
class Shape:
    """How a mask is made of a soft map; lengths in pixels of the picture, steps in the order of the fields."""

    refine: str = REFINES[0]
    threshold: float = 0.5  # on probabilities
    drop_specks: int = 0  # pixels that a piece must have
    fill_holes: bool = False
    grow: int = 0
    feather: int = 0


def refined(
    soft: Float[Tensor, "b h w"], guide: Float[Tensor, "b 3 h w"], refine: str, check: masks.Check = masks.never
) -> Float[Tensor, "b h w"]:
    """`soft` with the edges of pictures in [0, 1] of its size, by a method of REFINES."""
    if refine == "PAMR":
        return masks.pamr(soft, guide, check=check)
    return soft if refine == "none" else masks.guided_filter(soft, guide, check=check)


def shaped(
    soft: Float[Tensor, "b h w"], guide: Float[Tensor, "b 3 h w"], shape: Shape, check: masks.Check = masks.never
) -> Float[Tensor, "b h w"]:
    """The mask in [0, 1] of soft maps, each with its picture in [0, 1]."""
    return finished((refined(soft, guide, shape.refine, check) > shape.threshold).to(soft), shape, check)


def finished(mask: Float[Tensor, "b h w"], shape: Shape, check: masks.Check = masks.never) -> Float[Tensor, "b h w"]:
    """What comes after the threshold, of a hard mask or a soft one."""
    mask = masks.drop_specks(mask, shape.drop_specks)
    mask = masks.fill_holes(mask) if shape.fill_holes else mask
    return masks.feather(masks.grow(mask, shape.grow, check), shape.feather, check)
