"""`ldznet demo`: generate, segment from the latents, and segment scenes whose masks are known. One contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .. import tinyworld
from ..hosts.tiny import TinyHost
from ..images import to_pictures
from ..models import Network
from ..predictor import Predictor
from ..segmentation import Segmentation
from .sheet import Row, save_png, sheet

CAPTIONS = {
    "a photo of a blue house on sand": ("a blue house", "sand", "a blue cat"),
    "a cartoon of a red car on snow under sky": ("a red car", "snow", "sky"),
    "a painting of a yellow mushroom on grass": ("a yellow mushroom", "grass", "a yellow house"),
}
SCENES = ((7, "photo"), (22, "photo"), (4, "cartoon"))
MOST_PHRASES = 3


def demo(host: TinyHost, head: Network, seed: int, out: Path) -> Path:
    """Writes the sheet to `out` and returns its path."""
    predictor = Predictor(host, head, seed=seed)
    rows = [*_generated(host, predictor, seed), *(_rendered(predictor, *known) for known in SCENES)]
    heading = (
        "LD-ZNet on its tiny world: words in, mask out. Above, from fresh latents; below, rendered, with the truth."
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    save_png(sheet(rows, heading), out)
    return out


def _generated(host: TinyHost, predictor: Predictor, seed: int) -> list[Row]:
    latents = host.generate(list(CAPTIONS), seed)
    pictures = to_pictures(host.decode_latents(latents))
    rows = []
    for i, (caption, phrases) in enumerate(CAPTIONS.items()):
        predictor.set_latents(latents[i : i + 1])
        rows.append(row_of(pictures[i], f"generated: {caption}", predictor.predict(phrases)))
    return rows


def _rendered(predictor: Predictor, seed: int, domain: str) -> Row:
    scene = tinyworld.scene(seed, domain)
    narrow = [p for p in scene.phrases if scene.kinds[p] == "stuff" or len(p.split()) >= 3]
    phrases = narrow[:MOST_PHRASES]
    predictor.set_image(scene.image)
    truths = [scene.masks[phrase] for phrase in phrases]
    return row_of(scene.image, f"rendered: {scene.caption}", predictor.predict(phrases), truths)


def row_of(picture: np.ndarray, title: str, result: Segmentation, truths: Sequence[np.ndarray] | None = None) -> Row:
    """A sheet's row of the first image of `result`, with IoU against `truths` where they are known."""
    masks = result.masks()[0].cpu().numpy()
    notes = []
    for i in range(len(result.phrases)):
        note = f"{result.state(0, i)}, {result.score_text(0, i)}"
        if truths is not None:
            both, either = (masks[i] & truths[i]).sum(), (masks[i] | truths[i]).sum()
            note = f"IoU {both / max(1, either):.2f}, {note}"
        notes.append(note)
    return Row(picture, title, result.phrases, result.probabilities[0].cpu().numpy(), masks, notes)
