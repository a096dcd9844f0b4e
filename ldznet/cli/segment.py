"""`ldznet segment`: what it writes for a picture and its masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .. import drawing
from ..images import Picture
from ..phrases import Phrase
from ..segmentation import Segmentation
from ..shapes import Bool
from .results import results

OVERLAY = "overlay.png"
MOST_SIDE = 2048  # pixels of an overlay: it is there to be looked at
MODELS = "a diffusers folder (SD 3 and Flux.1 too), or a .safetensors or .ckpt of SD 1.x, SD 2.x or SDXL"
TOY = (
    "tiny is a toy model: it knows drawings of its own tiny world alone, and what it finds in any other picture means "
    f"nothing. For that, give --model {MODELS}."
)
NO_MODEL = (
    f"Expected a model, got none. Give --model {MODELS}; --model tiny is a toy that knows drawings of its own alone."
)


def names(phrases: Sequence[str]) -> list[str]:
    """The files that `write_masks` writes beside its record: NN_phrase.png for each, and the overlay."""
    return [*(f"{i:02d}_{_file_name(phrase)}.png" for i, phrase in enumerate(phrases)), OVERLAY]


def write_masks(
    picture: Image.Image, result: Segmentation, threshold: float, out: Path, about: Mapping[str, Any] | None = None
) -> list[str]:
    """Writes a mask (white where the phrase is) for each phrase, the overlay and result.json, all or none; a line for
    each. result.json holds `about` and, for each phrase, what `entry` gives."""
    masks = result.masks(threshold)[0].cpu().numpy()
    files = names(result.phrases)
    entries = [entry(result, i, mask, files[i]) for i, mask in enumerate(masks)]
    facts = {**(about or {}), "threshold": threshold, "phrases": entries, "hints": result.hints, "overlay": OVERLAY}
    with results(out, facts) as save:
        for name, mask in zip(files, masks, strict=False):
            save(name, Image.fromarray(mask.astype(np.uint8) * 255))
        save(OVERLAY, overlay(picture, masks, remarks(result, masks), result.caveat))
    said = remarks(result, masks)
    lines = [f"{out / name}: {remark}" for name, remark in zip(files, said, strict=False)]
    return [*lines, f"{out / OVERLAY}: all of them"]


def remarks(result: Segmentation, masks: Bool[np.ndarray, "p h w"]) -> list[str]:
    """A line for each phrase of the first image: is it there, how much of the picture, how sure."""
    return [
        f"{phrase}: {result.state(0, i, float(mask.mean()))}, {result.score_text(0, i)}"
        for i, (phrase, mask) in enumerate(zip(result.phrases, masks, strict=True))
    ]


def overlay(picture: Image.Image, masks: Bool[np.ndarray, "p h w"], lines: Sequence[str], note: str) -> Image.Image:
    """The picture with its masks in colours and their legend, `lines` and below them `note`; at most MOST_SIDE pixels a
    side."""
    height, width = masks.shape[1:]
    scale = min(1.0, MOST_SIDE / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    shown = Picture.of(picture).at(size).clamp(-1, 1) / 2 + 0.5
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size, (height, width), strict=True)
    )
    small = torch.from_numpy(masks[None, :, rows][..., columns])  # bytes, where interpolation takes floats
    hues = drawing.contrasting(shown, small)
    page = drawing.with_legend(drawing.overlay(shown, small, hues=hues)[0], lines, hues, [note] if note else [])
    return Image.fromarray((page.movedim(0, -1) * 255).round().byte().numpy())


def entry(result: Segmentation, phrase: int, mask: Bool[np.ndarray, "h w"], file: str) -> dict[str, Any]:
    """What result.json says of a phrase. `found` is null where scores are not calibrated; `area` is the mask's share
    of the picture; `box` is around the mask in pixels, null where that is empty."""
    return {
        "phrase": result.phrases[phrase],
        "read_as": Phrase.parse(result.phrases[phrase]).meaning,
        "found": bool(result.found[0, phrase]) if result.calibrated else None,
        "score": round(float(result.scores[0, phrase]), 4),
        "calibrated": result.calibrated,
        "area": round(float(mask.mean()), 6),
        "box": box_of(mask),
        "file": file,
    }


def box_of(mask: Bool[np.ndarray, "h w"]) -> dict[str, int] | None:
    """The least box around a mask, in pixels; None for an empty one."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return None
    size = {"width": int(columns[-1] - columns[0]) + 1, "height": int(rows[-1] - rows[0]) + 1}
    return {"x": int(columns[0]), "y": int(rows[0]), **size}


def _file_name(phrase: str) -> str:
    kept = "".join(c if c.isalnum() else " " for c in Phrase.parse(phrase).meaning.lower())
    return "_".join(kept.split())[:40] or "phrase"
