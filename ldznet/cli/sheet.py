"""Contact sheets: a picture, one mask per phrase, an overlay with a legend. Used by `demo` and `segment`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from .. import drawing
from ..shapes import Bool, Float, UInt8
from ..writing import replacing

INK, PAPER, GREY = (32, 32, 32), (255, 255, 255), (120, 120, 120)
HUES = ((230, 25, 75), (0, 130, 200), (245, 130, 48), (145, 30, 180), (60, 180, 75), (0, 128, 128))
CELL, GAP, LINE = 192, 10, 16


@dataclass(frozen=True)
class Row:
    """One picture and what was found in it; `notes` stand under the masks."""

    picture: UInt8[np.ndarray, "h w 3"]
    title: str
    phrases: Sequence[str]
    probabilities: Float[np.ndarray, "p h w"]
    masks: Bool[np.ndarray, "p h w"]
    notes: Sequence[str]


def overlay(picture: UInt8[np.ndarray, "h w 3"], masks: Bool[np.ndarray, "p h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """The picture, greyed, with each mask in its own hue and outlined in it."""
    grey = picture.mean(axis=2, keepdims=True)
    canvas = 0.35 * picture + 0.45 * grey + 50
    for i, mask in enumerate(masks):
        hue = np.array(HUES[i % len(HUES)])
        canvas[mask] = 0.35 * canvas[mask] + 0.65 * hue
        canvas[_outline(mask)] = hue
    return canvas.clip(0, 255).astype(np.uint8)


def sheet(rows: Sequence[Row], heading: str) -> Image.Image:
    """All rows under a heading."""
    most = max(len(row.phrases) for row in rows)
    width = GAP + (most + 2) * (CELL + GAP)
    height = 40 + len(rows) * (CELL + 3 * LINE + GAP)
    page = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(page)
    _write(pen, (GAP, 10), heading, INK, 16)
    for i, row in enumerate(rows):
        _draw_row(page, pen, row, 40 + i * (CELL + 3 * LINE + GAP))
    return page


def save_png(image: Image.Image, path: Path) -> None:
    """Writes `image`, whole or not at all."""
    with replacing(path) as file:
        image.save(file, "PNG")


def _draw_row(page: Image.Image, pen: ImageDraw.ImageDraw, row: Row, top: int) -> None:
    _cell(page, pen, 0, top, row.picture, row.title, "")
    for i, phrase in enumerate(row.phrases):
        soft = (row.probabilities[i] * 255).astype(np.uint8)
        _cell(page, pen, i + 1, top, np.stack([soft] * 3, axis=2), phrase, row.notes[i], HUES[i % len(HUES)])
    _cell(page, pen, len(row.phrases) + 1, top, overlay(row.picture, row.masks), "overlay", "")


def _cell(
    page: Image.Image,
    pen: ImageDraw.ImageDraw,
    column: int,
    top: int,
    picture: np.ndarray,
    label: str,
    note: str,
    hue: tuple[int, int, int] = INK,
) -> None:
    left = GAP + column * (CELL + GAP)
    page.paste(Image.fromarray(picture).resize((CELL, CELL), Image.Resampling.NEAREST), (left, top))
    _write(pen, (left, top + CELL + 2), label, hue, 13, CELL)
    _write(pen, (left, top + CELL + 2 + 2 * LINE), note, GREY, 12)


def _write(
    pen: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    hue: tuple[int, int, int],
    size: int,
    room: float = math.inf,
) -> None:
    """`text` in a font that has its letters, in at most two lines of `room` pixels."""
    font, lines = drawing.wrapped(text, size, room)
    lines = lines if len(lines) <= 2 else [lines[0], f"{lines[1]} ..."]
    for i, line in enumerate(lines):
        pen.text((place[0], place[1] + i * LINE), line, hue, font=font)


def _outline(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside
