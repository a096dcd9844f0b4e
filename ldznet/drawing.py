"""Masks made visible: colours, overlays with a legend, colour maps. Imports shapes and masks; needs Pillow for text."""

from __future__ import annotations

import colorsys
import functools
import importlib.util
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .masks import INSIDE, Check, grow, never
from .shapes import Bool, Float, Int

GOLDEN = 0.618034  # of the circle of hues: the next colour is never near the last
NARROWEST = 256  # pixels of a picture with a legend
LETTER, LEADING = 20, 1.5  # letters are a 20th of the width high, lines 1.5 letters: a node shows a page ever so small
INK, PAPER = (32, 32, 32), (255, 255, 255)
LINE = 300  # outlines are a 300th of the shorter side thick, 1 pixel at least
CANDIDATES = 16  # colours to choose an overlay's from; or two for each mask, where that is more
SAMPLES = 4096  # pixels of what a mask covers that its colour is held against
FONTS = (  # by the file names under which systems have them, tried in this order where Pillow's own lacks a letter
    *("DejaVuSans.ttf", "LiberationSans-Regular.ttf", "NotoSans-Regular.ttf", "segoeui.ttf", "arial.ttf", "Arial.ttf"),
    *("NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "SourceHanSans-Regular.ttc", "wqy-microhei.ttc"),
    *("DroidSansFallbackFull.ttf", "DroidSansFallback.ttf", "msyh.ttc", "YuGothM.ttc", "malgun.ttf"),
    *("Arial Unicode.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc", "AppleSDGothicNeo.ttc"),
)
NO_LETTER = "\uffff"  # stands in no font


def colours(count: int) -> Float[Tensor, "n 3"]:
    """`count` distinct colours in [0, 1], red first, the same at every call; none is black."""
    hues = [colorsys.hsv_to_rgb(i * GOLDEN % 1, 1 - 0.25 * (i // 8 % 2), 1) for i in range(count)]
    return torch.tensor(hues, dtype=torch.float32, device="cpu")


def hexadecimal(colour: Float[Tensor, " 3"]) -> str:
    """ "#ff0000" for red."""
    return "#" + "".join(f"{round(255 * float(c)):02x}" for c in colour)


def colour_map(labels: Int[Tensor, "b h w"], count: int) -> Float[Tensor, "b 3 h w"]:
    """Black where the label is 0, else that label's colour."""
    table = F.pad(colours(count), (0, 0, 1, 0)).to(labels.device)
    return table[labels].movedim(-1, 1)


def overlay(
    pictures: Float[Tensor, "b 3 h w"],
    masks: Float[Tensor, "b p h w"] | Bool[Tensor, "b p h w"],
    opacity: float = 0.6,
    hues: Float[Tensor, "p 3"] | None = None,
    check: Check = never,
) -> Float[Tensor, "b 3 h w"]:
    """Pictures in [0, 1] with each mask in its colour, later ones on top; then an outline around each.

    `hues` are RGB in [0, 1], by `contrasting` unless given. Just inside of a mask the outline is in its colour, just
    outside black or white, whichever is further from that: it is seen on any ground, at opacity 0 too. `check` may
    raise to end it, as in `masks`.
    """
    hues = (contrasting(pictures, masks) if hues is None else hues).to(pictures)
    out, line = pictures.clone(), max(1, round(min(pictures.shape[2:]) / LINE))
    for i, hue in enumerate(hues):
        alpha = opacity * masks[:, i, None].to(out)
        out = out * (1 - alpha) + hue[:, None, None] * alpha
    for i, hue in enumerate(hues):
        hard = (masks[:, i] > INSIDE).to(out)
        out.movedim(1, -1)[grow(hard, -line, check) < hard] = hue
        out.movedim(1, -1)[grow(hard, line, check) > hard] = _against(hue)
    return out


def contrasting(
    pictures: Float[Tensor, "b 3 h w"], masks: Float[Tensor, "b p h w"] | Bool[Tensor, "b p h w"]
) -> Float[Tensor, "p 3"]:
    """A colour for each mask, one over all pictures, unlike what it covers and unlike those before it.

    The first of `colours` whose distance to the nearer of both is greatest; the same at every call.
    """
    candidates = colours(max(CANDIDATES, 2 * masks.shape[1]))
    chosen: list[Tensor] = []
    for i in range(masks.shape[1]):
        covered = pictures.movedim(1, -1)[masks[:, i] > INSIDE].cpu().float()
        covered = covered[:: max(1, len(covered) // SAMPLES)]
        distances = [_distance(candidates, other[None])[:, 0] for other in chosen]
        if len(covered):
            distances.append(_distance(candidates, covered).mean(dim=1))
        nearest = torch.stack(distances).amin(dim=0) if distances else candidates.new_zeros(len(candidates))
        chosen.append(candidates[nearest.argmax()])
    return torch.stack(chosen) if chosen else candidates[:0]


def with_legend(
    picture: Float[Tensor, "3 h w"],
    lines: Sequence[str],
    hues: Float[Tensor, "n 3"] | None = None,
    notes: Sequence[str] = (),
) -> Float[Tensor, "3 H W"]:
    """`picture` with a strip below: a square of each colour and its text, then `notes` without one.

    Enlarged to at least 256 px wide. `hues` are RGB in [0, 1], those of `colours` unless given. Letters that no font on
    this machine has are written as \\u0416.
    """
    pixels = (picture.movedim(0, -1).cpu().numpy() * 255).round().astype(np.uint8)
    image = Image.fromarray(pixels)
    scale = max(1, -(-NARROWEST // image.width))
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    letter, hues = image.width // LETTER, colours(len(lines)) if hues is None else hues
    texts = [wrapped(line, letter, image.width - 5 * letter // 2) for line in (*lines, *notes)]
    step, rows = round(LEADING * letter), sum(len(parts) for _, parts in texts)
    page = Image.new("RGB", (image.width, image.height + step * rows + letter // 2), PAPER)
    page.paste(image)
    pen, top = ImageDraw.Draw(page), image.height + letter // 2
    for (font, parts), hue in itertools.zip_longest(texts, hues):
        if hue is not None:
            pen.rectangle((letter // 2, top, 3 * letter // 2, top + letter), fill=hexadecimal(hue))
        for part in parts:
            pen.text((2 * letter, top + letter - _ascent(font, letter)), part, INK, font=font)
            top += step
    return torch.from_numpy(np.asarray(page).astype(np.float32) / 255).movedim(-1, 0)


def _against(hue: Float[Tensor, " 3"]) -> Float[Tensor, " 3"]:
    """Black or white: which of them is further from a colour."""
    ends = torch.tensor([[0.0] * 3, [1.0] * 3], dtype=torch.float32, device="cpu")
    return ends[_distance(ends, hue[None].cpu().float())[:, 0].argmax()].to(hue)


def _distance(some: Float[Tensor, "n 3"], others: Float[Tensor, "m 3"]) -> Float[Tensor, "n m"]:
    """How unlike RGB colours in [0, 1] look, 0 to 3: the weighted distance of Riemersma's "Colour metric"."""
    difference = (some[:, None] - others) ** 2
    red = (some[:, None, 0] + others[:, 0]) / 2
    return ((2 + red) * difference[..., 0] + 4 * difference[..., 1] + (3 - red) * difference[..., 2]).sqrt()


def wrapped(text: str, size: int, room: float) -> tuple[Any, list[str]]:
    """A font for `text`, and its lines of at most `room` pixels; a word that is longer is broken."""
    font, text = _font_for(text, size)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if font.getlength(longer) <= room:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for sign in word:
            if lines[-1] and font.getlength(lines[-1] + sign) > room:
                lines.append("")
            lines[-1] += sign
    return font, lines


def _font_for(text: str, size: int) -> tuple[Any, str]:
    """The first font that has all letters of `text`, else the one that lacks fewest; `text`, those escaped."""
    best, fewest = _font(size), set(text)
    for font in itertools.chain([best], _installed(size)):
        missing = {sign for sign in set(text) if not _has(font, sign)}
        if len(missing) < len(fewest) or not missing:
            best, fewest = font, missing
        if not missing:
            break
    return best, "".join(ascii(sign)[1:-1] if sign in fewest else sign for sign in text)


def _ascent(font: Any, letter: int) -> int:
    """Pixels from the top of a line of `font` to its baseline, which is the bottom of a square `letter` high."""
    return font.getmetrics()[0] if isinstance(font, ImageFont.FreeTypeFont) else letter


def _has(font: Any, sign: str) -> bool:
    """Whether a font draws `sign`, and not the box that it draws for those it lacks."""
    if not isinstance(font, ImageFont.FreeTypeFont):
        return sign.isascii()
    return sign.isspace() or bytes(font.getmask(sign)) != bytes(font.getmask(NO_LETTER))


def _installed(size: int) -> Iterator[Any]:
    """The fonts of FONTS that this machine has, opened as they are asked for."""
    for name in FONTS:
        path = _path_of(name)
        if path is not None:
            yield ImageFont.truetype(path, size)


@functools.lru_cache(maxsize=len(FONTS))
def _path_of(name: str) -> str | None:
    """Where Pillow finds a font of the system's, or matplotlib's; None where neither has it."""
    plots = importlib.util.find_spec("matplotlib")
    inside = Path(plots.origin).parent / "mpl-data" / "fonts" / "ttf" / name if plots and plots.origin else None
    try:
        return str(ImageFont.truetype(name).path)
    except OSError:
        return str(inside) if inside and inside.exists() else None


def _font(size: int) -> Any:
    """Pillow's own font, which had one size alone before Pillow 10.1."""
    try:
        return ImageFont.load_default(size)
    except TypeError:
        return ImageFont.load_default()
