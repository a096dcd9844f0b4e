"""A batch of frames that is a video: soft maps that do not flicker. Imports segmentation and errors alone."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from .errors import InputError
from .segmentation import Segmentation
from .shapes import Float

MOST = 0.99  # of the strength: a mean over some hundred frames


def steadied(result: Segmentation, strength: float) -> Segmentation:
    """`result`, whose pictures are the frames of a video in their order, with logits and scores smoothed over time.

    The mean of an exponential mean that runs forwards and one that runs backwards, so that nothing lags behind: a frame
    at distance n weighs about `strength` ** n; 0 leaves everything as it is. What moves by more than its own width from
    frame to frame is blurred along its way. Raises InputError for a strength outside of 0 .. 0.99.
    """
    if not 0 <= strength <= MOST:
        raise InputError(f"Expected a strength from 0 to {MOST}, got {strength}.")
    if strength == 0:
        return result
    logits, scores = (_both_ways(part, strength) for part in (result.logits, result.scores))
    return dataclasses.replace(result, logits=logits, scores=scores)


def _both_ways(frames: Float[Tensor, "t ..."], strength: float) -> Float[Tensor, "t ..."]:
    forwards, backwards = _running(frames, strength), _running(frames.flip(0), strength).flip(0)
    return (forwards + backwards) / 2


def _running(frames: Float[Tensor, "t ..."], strength: float) -> Float[Tensor, "t ..."]:
    """Of each frame and those before it, with weights that add up to 1 from the first frame on."""
    total, weight, found = torch.zeros_like(frames[0]), 0.0, []
    for frame in frames:
        total, weight = total * strength + frame, weight * strength + 1
        found.append(total / weight)
    return torch.stack(found)
