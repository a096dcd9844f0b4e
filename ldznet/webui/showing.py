"""A look before a run: a picture under the masks of its phrases, drawn again from the same maps as settings move."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ..errors import InputError, LDZNetError
from ..segmentation import Segmentation
from . import painting
from .calls import Calls, Cancelled
from .looking import Looker, Question
from .painting import Mask
from .settings import TOGETHER, Settings

__all__ = ["Cancelled", "LDZNetError", "Look", "Seen", "look", "names_of", "parts", "save", "seen", "whole"]

LONGEST = 60  # characters of a phrase in a file's name


class Look(NamedTuple):
    """An RGB picture and the soft maps of its phrases: all that further settings need."""

    picture: Image.Image
    found: Segmentation


class Seen(NamedTuple):
    """A picture under masks with their legend, and what is said beside it."""

    overlay: Image.Image
    lines: list[str]


def look(picture: Image.Image, settings: Settings, looker: Looker, calls: Calls) -> Look:
    """Finds the phrases in an RGB picture. Raises LDZNetError as `Looker.look`, and InputError without a phrase."""
    if not settings.lines:
        raise InputError("Expected phrases, got none. Write what to look for, one a line.")
    question = Question(tuple(settings.lines), settings.head, calls.weights())
    with calls.without_networks():
        return Look(picture, looker.look(calls.sd_model(), picture, question, calls.check))


def seen(look: Look, settings: Settings, calls: Calls) -> Seen:
    """What would be repainted with `settings`, whose phrases and head no longer count."""
    lines = painting.lines_of(look.found, painting.present(look.found), settings)
    count = len(look.found.phrases)
    names = lines[:count]
    if settings.invert and settings.passes == TOGETHER:
        names = [f"everything but {', '.join(look.found.phrases)}"]
    return Seen(painting.with_masks(look.picture, parts(look, settings, calls), names), lines)


def parts(look: Look, settings: Settings, calls: Calls) -> list[Mask]:
    """A mask for each phrase; one of all where they are inverted together."""
    soft = painting.present(look.found)
    if settings.invert and settings.passes == TOGETHER:
        soft = soft.amax(dim=0, keepdim=True)
    return painting.masks_of(soft, look.picture, settings, calls.check)


def whole(look: Look, settings: Settings, calls: Calls) -> Mask:
    """The one mask of all phrases together. Raises InputError where it is blank: no host takes such a mask well."""
    together = dataclasses.replace(settings, passes=TOGETHER)
    masks = painting.painting(look.found, look.picture, together, None, calls.check).passes
    if not masks:
        raise InputError("Expected a mask with anything in it, got a blank one. Lower the threshold, or show others.")
    return masks[0]


def save(masks: Sequence[Mask], names: Sequence[str], folder: Path) -> list[Path]:
    """Writes each mask as a PNG of 8 bits, numbered on from what is in `folder`, with what it shows in its name."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [path.name.partition("-")[0] for path in folder.glob("*.png")]
    first = max((int(number) for number in numbers if number.isdecimal()), default=-1) + 1
    words = [re.sub(r"\W+", "_", name)[:LONGEST].strip("_") for name in names]
    paths = [folder / f"{number:05}-{word}.png" for number, word in enumerate(words, first)]
    for path, mask in zip(paths, masks, strict=True):
        mask.save(path)
    return paths


def names_of(look: Look, settings: Settings) -> list[str]:
    """What each of `parts` shows."""
    if settings.invert and settings.passes == TOGETHER:
        return ["not " + " ".join(look.found.phrases)]
    return [f"not {phrase}" if settings.invert else phrase for phrase in look.found.phrases]
