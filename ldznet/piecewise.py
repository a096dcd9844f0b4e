"""A mask taken apart: its connected pieces by size, in order, as many as are wanted. Imports masks alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy import ndimage
from torch import Tensor

from .masks import Piece, pieces
from .shapes import Bool, Float

MOST_PIECES = 64  # masks that one image is taken apart into: each is as large as the picture


@dataclass(frozen=True)
class Wanted:
    """Which pieces: sizes as percentages of the picture, and how many at most (0: all of them)."""

    least: float = 0.0
    largest: float = 100.0
    most: int = 0

    @property
    def everything(self) -> bool:
        """Whether none is left out."""
        return self.least <= 0 and self.largest >= 100 and self.most <= 0

    def of(self, found: list[Piece], pixels: int, limit: int = 0) -> list[Piece]:
        """Those of `found`, in their order, out of a picture of so many `pixels`; `limit` if no `most` is given."""
        fitting = [piece for piece in found if self.least <= 100 * piece.area / pixels <= self.largest]
        return fitting[: self.most or limit or None]


def kept(mask: Float[Tensor, "b h w"], inside: Bool[Tensor, "b h w"], wanted: Wanted) -> Float[Tensor, "b h w"]:
    """`mask` with those pieces of `inside` alone that are wanted; what a soft one has around a piece goes with it."""
    if wanted.everything:
        return mask
    parts = [_apart(*pair, wanted, 0) for pair in zip(mask, inside, strict=True)]
    return torch.stack([torch.stack(each).sum(0) if each else torch.zeros_like(mask[0]) for each in parts])


def apart(mask: Float[Tensor, "b h w"], inside: Bool[Tensor, "b h w"], wanted: Wanted) -> Float[Tensor, "n h w"]:
    """A mask for each wanted piece of `inside`, 4-connected, image by image and largest first, at most `MOST_PIECES` of
    one image. A soft mask's pixels go to the piece that is nearest. One mask of zeros where there is no piece."""
    each = [part for pair in zip(mask, inside, strict=True) for part in _apart(*pair, wanted, MOST_PIECES)]
    return torch.stack(each) if each else mask.new_zeros((1, *mask.shape[1:]))


def _apart(
    mask: Float[Tensor, "h w"], inside: Bool[Tensor, "h w"], wanted: Wanted, limit: int
) -> list[Float[Tensor, "h w"]]:
    found = pieces(inside)
    numbers = torch.zeros(inside.shape, dtype=torch.int32, device="cpu")
    for number, piece in enumerate(found, start=1):
        numbers[piece.top : piece.bottom, piece.left : piece.right][piece.mask] = number
    if not found:
        return []
    rows, columns = ndimage.distance_transform_edt(numbers.numpy() == 0, return_distances=False, return_indices=True)
    nearest = numbers[torch.from_numpy(rows).long(), torch.from_numpy(columns).long()].to(mask.device)
    areas = [piece.area for piece in found]
    chosen = wanted.of(found, inside.numel(), limit)
    first = areas.index(chosen[0].area) if chosen else 0  # pieces are largest first, so those of a size are neighbours
    return [torch.where(nearest == first + i + 1, mask, 0) for i in range(len(chosen))]
