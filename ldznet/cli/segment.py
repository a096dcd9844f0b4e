"""`ldznet segment`: what it writes for a picture and its masks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..images import to_bytes
from ..segmentation import Segmentation
from .sheet import overlay, save_png


def write_masks(picture: Image.Image, result: Segmentation, threshold: float, out: Path) -> Iterator[str]:
    """Writes NN_phrase.png (white where the phrase is) for each phrase and overlay.png; yields a line for each file."""
    out.mkdir(parents=True, exist_ok=True)
    parts = [result.select([i]).masks(threshold)[0] for i in range(len(result.phrases))]  # bytes, where all take floats
    masks = torch.cat(parts).cpu().numpy()
    for i, phrase in enumerate(result.phrases):
        path = out / f"{i:02d}_{_file_name(phrase)}.png"
        save_png(Image.fromarray(masks[i].astype(np.uint8) * 255), path)
        state = "found" if result.found[0, i] else "not found"
        yield f"{path}: {phrase}, {state}, score {result.scores[0, i]:.2f}, {masks[i].mean():.1%} of the image"
    upright = to_bytes(picture)
    save_png(Image.fromarray(overlay(upright, masks)), out / "overlay.png")
    yield f"{out / 'overlay.png'}: all of them"


def _file_name(phrase: str) -> str:
    kept = "".join(c if c.isalnum() else "_" for c in phrase.lower())
    return kept.strip("_")[:40] or "phrase"
