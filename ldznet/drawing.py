"""Masks made visible: colours, overlays with a legend, colour maps. Imports shapes alone; needs Pillow for text."""

from __future__ import annotations

import colorsys
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .shapes import Float, Int

GOLDEN = 0.618034  # of the circle of hues: the next colour is never near the last
NARROWEST = 256  # pixels of a picture with a legend
LETTER, LEADING = 20, 1.5  # letters are a 20th of the width high, lines 1.5 letters: a node shows a page ever so small
LETTER_WIDTH = 0.55  # of its height
INK, PAPER = (32, 32, 32), (255, 255, 255)


def colours(count: int) -> Float[Tensor, "n 3"]:
    """`count` distinct colours in [0, 1], red first, the same at every call; none is black."""
    return torch.tensor([colorsys.hsv_to_rgb(i * GOLDEN % 1, 1 - 0.25 * (i // 8 % 2), 1) for i in range(count)])


def hexadecimal(colour: Float[Tensor, " 3"]) -> str:
    """ "#ff0000" for red."""
    return "#" + "".join(f"{round(255 * float(c)):02x}" for c in colour)


def colour_map(labels: Int[Tensor, "b h w"], count: int) -> Float[Tensor, "b 3 h w"]:
    """Black where the label is 0, else that label's colour."""
    table = torch.cat([torch.zeros(1, 3), colours(count)]).to(labels.device)
    return table[labels].movedim(-1, 1)


def overlay(
    pictures: Float[Tensor, "b 3 h w"], masks: Float[Tensor, "b p h w"], opacity: float = 0.6
) -> Float[Tensor, "b 3 h w"]:
    """Pictures in [0, 1] with each mask in its colour, later ones on top."""
    out = pictures.clone()
    for i, colour in enumerate(colours(masks.shape[1]).to(pictures)):
        alpha = opacity * masks[:, i, None].to(pictures)
        out = out * (1 - alpha) + colour[None, :, None, None] * alpha
    return out


def with_legend(picture: Float[Tensor, "3 h w"], lines: Sequence[str]) -> Float[Tensor, "3 H w"]:
    """`picture` with a strip below: a square of each colour and its text. Enlarged to at least 256 px wide."""
    pixels = (picture.movedim(0, -1).cpu().numpy() * 255).round().astype(np.uint8)
    image = Image.fromarray(pixels)
    scale = max(1, -(-NARROWEST // image.width))
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    letter = image.width // LETTER
    texts = [textwrap.wrap(line, int((image.width / letter - 3) / LETTER_WIDTH)) for line in lines]
    step = round(LEADING * letter)
    page = Image.new("RGB", (image.width, image.height + step * sum(map(len, texts)) + letter // 2), PAPER)
    page.paste(image)
    pen, font, top = ImageDraw.Draw(page), _font(letter), image.height + letter // 2
    for text, colour in zip(texts, colours(len(lines)), strict=True):
        pen.rectangle((letter // 2, top, 3 * letter // 2, top + letter), fill=hexadecimal(colour))
        for part in text:
            pen.text((2 * letter, top), part.encode("latin-1", "replace").decode("latin-1"), INK, font=font)
            top += step
    return torch.from_numpy(np.asarray(page).astype(np.float32) / 255).movedim(-1, 0)


def _font(size: int) -> Any:
    """Pillow's own font, which had one size alone before Pillow 10.1."""
    try:
        return ImageFont.load_default(size)
    except TypeError:
        return ImageFont.load_default()
