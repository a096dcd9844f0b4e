"""Is the phrase there at all? Measures taken before any min-max, which would make a mask of nothing. Imports no host.

benchmarks/attention.py compares them by AUROC on the tiny world, and fits the `Presence` of its configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..shapes import Float
from .config import Presence
from .maps import TINIEST


class Evidence(NamedTuple):
    """What one pass says of its phrases, at the propagation's size, p phrases and k background words.

    `attention`: how much each pixel attends to a phrase, as the softmax gave it; `shares`: the phrase's part of the
    attention to all content tokens, each token's map summing to 1; `filled`: the shares after propagation on one common
    scale. `..._background`: the same of the background words.
    """

    attention: Float[Tensor, "b p h w"]
    shares: Float[Tensor, "b p h w"]
    filled: Float[Tensor, "b p h w"]
    attention_background: Float[Tensor, "b k h w"]
    filled_background: Float[Tensor, "b k h w"]


def peak(evidence: Evidence) -> Float[Tensor, "b p"]:
    """The largest share anywhere, after propagation."""
    return evidence.filled.amax(dim=(2, 3))


def margin(evidence: Evidence) -> Float[Tensor, "b p"]:
    """By how much a phrase leads the best background word where it leads most."""
    if not evidence.filled_background.shape[1]:
        return peak(evidence)
    return (evidence.filled - evidence.filled_background.amax(dim=1, keepdim=True)).amax(dim=(2, 3))


def ratio(evidence: Evidence) -> Float[Tensor, "b p"]:
    """log of a phrase's attention over that to all background words, where it is largest."""
    rest = evidence.attention_background.sum(dim=1, keepdim=True)
    return _log(evidence.attention / rest.clamp(min=TINIEST)).amax(dim=(2, 3))


def attention_peak(evidence: Evidence) -> Float[Tensor, "b p"]:
    """log of the largest attention of any pixel to the phrase, as the softmax gave it."""
    return _log(evidence.attention).amax(dim=(2, 3))


def attention_mean(evidence: Evidence) -> Float[Tensor, "b p"]:
    """log of the mean attention of all pixels to the phrase."""
    return _log(evidence.attention.mean(dim=(2, 3)))


def contrast(evidence: Evidence) -> Float[Tensor, "b p"]:
    """log of the largest share over the mean share: how gathered the map is."""
    return _log(evidence.filled.amax(dim=(2, 3)) / evidence.filled.mean(dim=(2, 3)).clamp(min=TINIEST))


MEASURES: dict[str, Callable[[Evidence], Tensor]] = {
    "peak": peak,
    "margin": margin,
    "ratio": ratio,
    "attention_peak": attention_peak,
    "attention_mean": attention_mean,
    "contrast": contrast,
}


def agreement(maps: Sequence[Float[Tensor, "b p h w"]]) -> Float[Tensor, "b p"]:
    """Mean correlation between the maps of several passes: what is there is found again at another t, or noise."""
    flat = torch.stack(list(maps)).flatten(3)
    centred = flat - flat.mean(dim=3, keepdim=True)
    unit = centred / centred.norm(dim=3, keepdim=True).clamp(min=TINIEST)
    count = len(unit)
    of_all = unit.sum(dim=0).square().sum(dim=2)  # the sum over all pairs, each with itself included
    return (of_all - unit.square().sum(dim=3).sum(dim=0)) / max(1, count * (count - 1))


def score(measured: Float[Tensor, "b p"], presence: Presence) -> Float[Tensor, "b p"]:
    """Scores in [0, 1]. Without a calibration they are the measure's own logistic: comparable, but no probability."""
    return torch.sigmoid(presence.slope * (measured - (presence.middle or 0.0)))


def _log(values: Tensor) -> Tensor:
    return values.clamp(min=TINIEST).log()
