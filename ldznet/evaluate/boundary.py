"""How well a mask's edge lies: the boundary F of DAVIS (Perazzi et al., CVPR 2016). Imports masks and shapes."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..masks import grow
from ..shapes import Bool, Float

NEAR = 0.008  # of a picture's diagonal: so far may an edge lie from the true one (DAVIS' own evaluation code)


def boundary_f(masks: Bool[np.ndarray, "n h w"], truths: Bool[np.ndarray, "n h w"]) -> Float[np.ndarray, " n"]:
    """F of each mask's edge: of the share of it near the true edge, and of the share of that near it, each in [0, 1].

    Near is within 0.008 of the diagonal, rounded up: 2 pixels at 128 x 128, 5 at 384 x 384. An empty mask has 0.
    """
    found, true = (_edge(torch.from_numpy(x).float()) for x in (masks, truths))
    tolerance = math.ceil(NEAR * math.hypot(*masks.shape[1:]))
    precision, recall = _share(found, grow(true, tolerance)), _share(true, grow(found, tolerance))
    return (2 * precision * recall / (precision + recall).clamp(min=1e-9)).numpy()


def _edge(masks: Tensor) -> Tensor:
    """The pixels of masks n h w, 0 or 1, at their own edge."""
    return masks - grow(masks, -1)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """How much of each of n `part` lies in `whole`."""
    return (part * whole).sum((1, 2)) / part.sum((1, 2)).clamp(min=1)
