"""`POST /ldznet/segment`: a picture or latents and phrases in, a mask of each out, all as JSON."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..errors import InputError, LDZNetError
from ..shapes import PIXELS_PER_LATENT, Float
from . import painting
from .calls import Calls
from .looking import Looker, Question
from .settings import EACH, REFINES, Settings
from .showing import Look, look

LATENT_CHANNELS = 4
GIVEN = ("image", "latents")
SETTINGS = ("head", "threshold", "grow", "feather", "fill_holes", "drop_specks", "refine", "invert")
GREY = 127


def answer(body: Mapping[str, Any], looker: Looker, calls: Calls) -> dict[str, Any]:
    """The masks that `body` asks for.

    It has `image` (a PNG, JPEG or WebP in base64, as the host's API takes them) or `latents` (4 h w or 1 4 h w in model
    space, a `.npy` file in base64), `phrases` (a list, or lines of a text) and, by their names, the section's settings
    that make a mask. The answer has `masks`, one for each phrase in the order given: `phrase`, `mask` (a PNG of 8 bits
    in base64, at the picture's size), `score` in [0, 1], `found`; then `width`, `height`, `calibrated` and `notes`.
    A phrase is `found` where its soft map is over the threshold anywhere. Raises ValueError, one sentence.
    """
    try:
        return _answer(body, looker, calls)
    except LDZNetError as error:
        raise ValueError(str(error)) from error


def _answer(body: Mapping[str, Any], looker: Looker, calls: Calls) -> dict[str, Any]:
    settings = settings_of(body)
    seen = look(picture_of(body["image"], calls), settings, looker, calls) if "image" in body else None
    seen = seen or look_at(latents_of(body["latents"]), settings, looker, calls)
    found, (width, height) = seen.found, seen.picture.size
    masks = painting.masks_of(painting.present(found), seen.picture, settings, calls.check)
    there = [bool(soft.gt(settings.threshold).any()) for soft in painting.present(found)]
    parts = zip(found.phrases, masks, found.scores[0].tolist(), there, strict=True)
    return {
        "masks": [{"phrase": p, "mask": encoded(m), "score": round(s, 6), "found": f} for p, m, s, f in parts],
        "width": width,
        "height": height,
        "calibrated": found.calibrated,
        "notes": [*filter(None, [found.caveat]), *found.hints],
    }


def settings_of(body: Any) -> Settings:
    """The settings of `body`, whose names are checked; ValueError where they make no sense."""
    known = (*GIVEN, "phrases", *SETTINGS)
    if not isinstance(body, Mapping) or any(name not in known for name in body):
        got = ", ".join(map(str, body)) if isinstance(body, Mapping) else type(body).__name__
        raise InputError(f"Expected an object with names among {', '.join(known)}, got {got}.")
    if sum(name in body for name in GIVEN) != 1:
        raise InputError(f"Expected one of {' and '.join(GIVEN)}, got {'both' if 'image' in body else 'none'}.")
    phrases = body.get("phrases", "")
    if isinstance(phrases, list) and all(isinstance(phrase, str) for phrase in phrases):
        phrases = "\n".join(phrases)
    made = {name: body[name] for name in SETTINGS if name in body}
    settings = Settings.of([{"phrases": phrases, "passes": EACH, **made}])
    if "latents" in body and body.get("refine", REFINES[0]) != REFINES[0]:
        raise InputError(f'Expected "{REFINES[0]}" as refine with latents, which have no edges, got {body["refine"]}.')
    return dataclasses.replace(settings, refine=REFINES[0]) if "latents" in body else settings


def look_at(latents: Float[Tensor, "1 4 h w"], settings: Settings, looker: Looker, calls: Calls) -> Look:
    """As `showing.look`, of model-space latents; the picture is grey."""
    if not settings.lines:
        raise InputError("Expected phrases, got none. Write what to look for, one a line.")
    question = Question(tuple(settings.lines), settings.head, calls.weights())
    with calls.without_networks():
        host = looker.host(calls.sd_model())
        found = looker.look_at_latents(host, latents, question, [None], calls.check)[0]
    height, width = (PIXELS_PER_LATENT * side for side in latents.shape[2:])
    return Look(Image.new("RGB", (width, height), (GREY,) * 3), found)


def picture_of(text: Any, calls: Calls) -> Image.Image:
    """An RGB picture from base64, with or without what a data URL has before it."""
    try:
        return calls.flatten(Image.open(io.BytesIO(decoded(text, "image")))).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"Expected a picture in base64 as image, got something else ({error}).") from error


def latents_of(text: Any) -> Float[Tensor, "1 4 h w"]:
    """Latents from a `.npy` file in base64. No pickled object is read."""
    try:
        array = np.load(io.BytesIO(decoded(text, "latents")), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"Expected a .npy file in base64 as latents, got something else ({error}).") from error
    whole = array[None] if array.ndim == 3 else array
    if whole.ndim != 4 or whole.shape[:2] != (1, LATENT_CHANNELS) or whole.dtype.kind != "f":
        raise InputError(f"Expected floats 4 h w or 1 4 h w as latents, got {array.dtype} of {array.shape}.")
    return torch.from_numpy(whole.astype(np.float32))


def decoded(text: Any, name: str) -> bytes:
    """The bytes of base64."""
    if not isinstance(text, str):
        raise InputError(f"Expected base64 as {name}, got {type(text).__name__}.")
    try:
        return base64.b64decode(text.split(",", 1)[-1] if text.startswith("data:") else text, validate=True)
    except binascii.Error as error:
        raise InputError(f"Expected base64 as {name}, got something else ({error}).") from error


def encoded(mask: painting.Mask) -> str:
    """A PNG in base64."""
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
