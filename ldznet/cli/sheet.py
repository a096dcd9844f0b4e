"""Contact sheets: a picture, one mask per phrase, an overlay with a legend. Used by `demo` and `segment`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

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
    pen.text((GAP, 10), heading, INK, font=_font(16))
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
    for line, text in enumerate(_wrap(label, CELL)):
        pen.text((left, top + CELL + 2 + line * LINE), text, hue, font=_font(13))
    pen.text((left, top + CELL + 2 + 2 * LINE), note, GREY, font=_font(12))


def _wrap(text: str, width: int) -> list[str]:
    """At most two lines of `text`."""
    words, lines = text.split(), [""]
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if _font(13).getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines if len(lines) <= 2 else [lines[0], lines[1] + " …"]


def _outline(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
