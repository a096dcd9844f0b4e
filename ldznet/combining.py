"""Masks of phrases from the maps of their terms: either, without, everything, background. Imports phrases and shapes.

Probabilities are combined as those of independent events, in logarithms, so that what is nearly sure keeps its
digits. What was not found takes nothing away and adds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .phrases import Phrase
from .shapes import Float

MOST = 80.0  # of a logit: beyond, float32 cannot tell a probability from 0 or 1
CELLS = 16  # cells along a side over which a map is averaged before its peak is taken, so that a lone pixel is none
TINY = 1e-6


class Maps(NamedTuple):
    """Of p terms or phrases: logits, scores in [0, 1], and of an ensemble the deviation of its probabilities."""

    logits: Float[Tensor, "b p h w"]
    scores: Float[Tensor, "b p"]
    deviation: Float[Tensor, "b p h w"] | None = None

    def take(self, columns: Sequence[int]) -> Maps:
        """Those of some of the terms."""
        deviation = None if self.deviation is None else self.deviation[:, columns]
        return Maps(self.logits[:, columns], self.scores[:, columns], deviation)


def combined(phrases: Sequence[Phrase], terms: Sequence[str], maps: Maps, found_from: float) -> Maps:
    """The maps of `phrases`, in their order, from those of their `terms`; scores from `found_from` on count as found.

    A phrase of one term alone is that term's, to the bit. Of "a - b" the probability is p(a) (1 - p(b)), of "a | b"
    1 - (1 - p(a)) (1 - p(b)), of "everything - a" 1 - p(a); "background" is everything without all other phrases. The
    score is the highest of the wanted terms', and at most the part of the mask's peak that is left.
    """
    rows = {term: row for row, term in enumerate(terms)}
    parts: dict[int, Maps] = {}
    for rest in (False, True):
        others = list(parts.values())
        for i, phrase in enumerate(phrases):
            if phrase.rest == rest:
                wanted = [rows[term] for term in phrase.wanted]
                start = either(maps.take(wanted), found_from) if wanted else everything(maps)
                unwanted = [maps.take([rows[term]]) for term in phrase.unwanted]
                parts[i] = without(start, [*others, *unwanted] if rest else unwanted, found_from)
    chosen = [parts[i] for i in range(len(phrases))]
    deviations = [part.deviation for part in chosen if part.deviation is not None]
    return Maps(
        torch.cat([part.logits for part in chosen], dim=1),
        torch.cat([part.scores for part in chosen], dim=1),
        torch.cat(deviations, dim=1) if deviations else None,
    )


def everything(maps: Maps) -> Maps:
    """One phrase that is everywhere for certain, at the size of `maps`."""
    deviation = None if maps.deviation is None else torch.zeros_like(maps.deviation[:, :1])
    return Maps(torch.full_like(maps.logits[:, :1], MOST), torch.ones_like(maps.scores[:, :1]), deviation)


def either(terms: Maps, found_from: float) -> Maps:
    """One phrase where any of the `terms` is that were found; of all of them where none was."""
    if terms.logits.shape[1] == 1:
        return terms
    found = terms.scores >= found_from
    used = (found | ~found.any(dim=1, keepdim=True))[:, :, None, None]
    log_absent = torch.where(used, F.logsigmoid(-terms.logits.double()), 0.0).sum(dim=1, keepdim=True)
    scores = terms.scores.amax(dim=1, keepdim=True)
    variance = (_relative(-terms.logits, terms.deviation) * used).sum(dim=1, keepdim=True)
    return Maps(_bounded(_log_not(log_absent) - log_absent), scores, _spread(log_absent, variance, terms))


def without(wanted: Maps, unwanted: Sequence[Maps], found_from: float) -> Maps:
    """`wanted` (one phrase) where none of the `unwanted` is that were found."""
    if not unwanted:
        return wanted
    log_left = F.logsigmoid(wanted.logits.double())
    variance = _relative(wanted.logits, wanted.deviation)
    for other in unwanted:
        found = (other.scores >= found_from)[:, :, None, None]
        log_left = log_left + torch.where(found, F.logsigmoid(-other.logits.double()), 0.0)
        variance = variance + _relative(-other.logits, other.deviation) * found
    logits = _bounded(log_left - _log_not(log_left))
    left = (_peak(logits) / _peak(wanted.logits).clamp(min=TINY)).clamp(max=1.0)
    return Maps(logits, torch.minimum(wanted.scores, left), _spread(log_left, variance, wanted))


def _relative(logits: Tensor, deviation: Tensor | None) -> Tensor:
    """Squared deviation of a probability as a part of it; 0 without an ensemble."""
    return torch.zeros_like(logits) if deviation is None else (deviation / logits.sigmoid().clamp(min=TINY)).square()


def _spread(log_product: Tensor, relative: Tensor, maps: Maps) -> Tensor | None:
    """Deviation of a product of independent factors, to first order: their relative variances add up."""
    return None if maps.deviation is None else (log_product.exp() * relative.sqrt()).float()


def _log_not(log_p: Tensor) -> Tensor:
    """log(1 - p) of log p."""
    return torch.log(-torch.expm1(log_p))


def _bounded(logits: Tensor) -> Tensor:
    return logits.clamp(-MOST, MOST).float()


def _peak(logits: Float[Tensor, "b p h w"]) -> Float[Tensor, "b p"]:
    """The highest probability after averaging over cells of a sixteenth of each side."""
    cell = tuple(max(1, side // CELLS) for side in logits.shape[2:])
    return F.avg_pool2d(logits.float().sigmoid(), cell).amax(dim=(2, 3))
