"""What the tiny world's surfaces look like: palette, patterns, stuff textures and the five rendering domains.

`render` paints one scene graph (a backdrop of stuff and layers of things) in a domain; what is where has been decided
before, so that masks never depend on the domain. Imports `shapes` alone; meant for `scenes` and `words`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .shapes import Sprite

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 38, 40),
    "orange": (250, 138, 20),
    "yellow": (250, 222, 40),
    "green": (40, 192, 70),
    "blue": (40, 80, 225),
    "purple": (136, 48, 186),
    "pink": (250, 132, 188),
    "white": (252, 252, 250),
}
PATTERNS = ("plain", "striped", "dotted")
INK = np.array([34, 30, 36], np.float32)
PAPER = np.array([250, 248, 242], np.float32)
GLASS = np.array([240, 244, 250], np.float32)


@dataclass(frozen=True)
class Layer:
    """A thing on the canvas: its sprite, cut to the canvas, with `pattern` h w in [0, 1]; top and left in pixels."""

    sprite: Sprite
    colour: str
    pattern: np.ndarray
    top: int
    left: int

    @property
    def window(self) -> tuple[slice, slice]:
        height, width = self.sprite.coverage.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


@dataclass(frozen=True)
class Backdrop:
    """One or two layers of stuff, upper first, and where the second one lies (h w bool; all False for one)."""

    stuff: tuple[str, ...]
    lower: np.ndarray
    seed: tuple[int, ...]


def pattern_map(pattern: str, shape: tuple[int, int], rng: np.random.Generator, scale: float) -> np.ndarray:
    """A pattern's marks, h w float32 in [0, 1]; stripes of 4-6 and dots of radius 3 pixels at scale 1."""
    angle, phase, pitch = rng.uniform(0, np.pi), rng.uniform(0, 1, 2), rng.uniform(4, 6) * scale
    y, x = np.ogrid[: shape[0], : shape[1]]
    across = x * np.cos(angle) + y * np.sin(angle)
    if pattern == "striped":
        return _soft(np.abs((across / (2 * pitch) + phase[0]) % 1 - 0.5) * 2 * pitch - pitch / 2)
    if pattern == "dotted":
        along = y * np.cos(angle) - x * np.sin(angle)
        u, v = (((c / (2 * pitch) + p) % 1 - 0.5) * 2 * pitch for c, p in zip((across, along), phase, strict=True))
        return _soft(0.6 * pitch - np.hypot(u, v))
    return np.zeros(shape, np.float32)


def _soft(distance: np.ndarray) -> np.ndarray:
    """A signed distance in pixels to a coverage in [0, 1]."""
    return np.clip(distance + 0.5, 0, 1).astype(np.float32)


# ---- stuff -----------------------------------------------------------------------------------------------------


def _clouds(rng: np.random.Generator, size: int, rows: int, columns: int) -> np.ndarray:
    """Smooth noise, size size float32, about -1 to 1, with so many cells down and across."""
    noise = Image.fromarray(rng.uniform(-1.3, 1.3, (rows, columns)).astype(np.float32))
    return np.asarray(noise.resize((size, size), Image.Resampling.BICUBIC), np.float32)


def _strokes(size: int, lines: np.ndarray) -> np.ndarray:
    """Lines (n 4: x0 y0 x1 y1) one pixel wide, size size in [0, 1]."""
    canvas = Image.new("L", (size, size))
    pen = ImageDraw.Draw(canvas)
    for line in lines.tolist():
        pen.line(line, fill=255)
    return np.asarray(canvas, np.float32) / 255


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:size, :size].astype(np.float32)
    return y, x


def _sky(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    fade = np.linspace(-2.5, 2.5, size, dtype=np.float32)[:, None]
    return fade + np.zeros((size, size), np.float32), np.clip(2 * _clouds(rng, size, 7, 4) - 0.7, 0, 1)


def _night(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = rng.uniform(0, size, (2, size // 3))
    reach = rng.choice([0.0, 1.0], size // 3, p=[0.4, 0.6])
    across, down = np.stack([x - reach, y, x + reach, y], 1), np.stack([x, y - reach, x, y + reach], 1)
    return _clouds(rng, size, 4, 4), _strokes(size, np.concatenate([across, down]))


def _brick(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = _grid(size)
    course, length = 8 * size / 128, 18 * size / 128
    y, x = y + rng.uniform(0, course), x + rng.uniform(0, length)
    row = y // course
    x = x + (row % 2) * length / 2
    mortar = (y % course < 1.5) | (x % length < 1.5)
    shade = rng.uniform(-1, 1, (64, 64)).astype(np.float32)
    return shade[row.astype(int) % 64, (x // length).astype(int) % 64], mortar.astype(np.float32)


def _grass(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    count = round(size * size / 90)
    x, y, lean = *rng.uniform(0, size, (2, count)), rng.uniform(-2, 2, count)
    return _clouds(rng, size, 8, 8), _strokes(size, np.stack([x, y, x + lean, y - rng.uniform(3, 6, count)], 1))


def _sand(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    y, _ = _grid(size)
    ripple = np.sin((y + 5 * _clouds(rng, size, 3, 5)) * (2 * np.pi / 13) + rng.uniform(0, 6))
    grain = (rng.random((size, size)) < 0.03).astype(np.float32)
    return 0.7 * ripple, np.maximum(grain, _soft(3 * (ripple - 0.93)) * 0.4)


def _water(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = _grid(size)
    sway = 1.6 * np.sin(x * (2 * np.pi / 17) + rng.uniform(0, 6)) + 2 * _clouds(rng, size, 3, 3)
    wave = np.sin((y + sway) * (2 * np.pi / 9))
    return 0.6 * wave, np.clip(6 * (wave - 0.75), 0, 1) * (_clouds(rng, size, 12, 5) > -0.1)


def _snow(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    mounds = _clouds(rng, size, 6, 3)
    return 0.8 * mounds, np.clip(1 - 6 * np.abs(mounds - 0.35), 0, 1)


@dataclass(frozen=True)
class Stuff:
    """A kind of ground: its colour, the colour of its sparse marks, and a drawer of (tone, marks), each h w."""

    colour: tuple[int, int, int]
    accent: tuple[int, int, int]
    draw: Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]


GROUNDS: dict[str, Stuff] = {
    "sky": Stuff((160, 200, 236), (200, 222, 240), _sky),
    "grass": Stuff((82, 120, 62), (108, 146, 78), _grass),
    "sand": Stuff((204, 182, 142), (178, 152, 112), _sand),
    "water": Stuff((78, 148, 164), (132, 190, 200), _water),
    "brick": Stuff((146, 84, 68), (178, 146, 130), _brick),
    "night": Stuff((28, 34, 78), (206, 206, 176), _night),
    "snow": Stuff((220, 228, 240), (190, 203, 226), _snow),
}
STUFF: tuple[str, ...] = tuple(GROUNDS)


def _painted_ground(name: str, rng: np.random.Generator, size: int, *, depth: float, accent: float) -> np.ndarray:
    """Stuff in its colours: texture of amplitude `depth` and marks at strength `accent`."""
    stuff = GROUNDS[name]
    tone, marks = stuff.draw(rng, size)
    colour = np.array(stuff.colour, np.float32)
    lift = np.array(stuff.accent, np.float32) - colour
    return colour + (depth * tone)[..., None] + (accent * marks)[..., None] * lift


def _drawn_ground(name: str, rng: np.random.Generator, size: int) -> np.ndarray:
    """Stuff as line art: tinted paper with coloured marks."""
    stuff = GROUNDS[name]
    _, marks = stuff.draw(rng, size)
    if name == "sky":
        marks = np.clip(1 - 5 * np.abs(marks - 0.3), 0, 1)
    colour = np.array(stuff.colour, np.float32)
    tint = 0.7 * PAPER + 0.3 * colour
    return tint + 0.6 * marks[..., None] * (0.8 * colour - tint)


def _ground(backdrop: Backdrop, draw: Callable[[str, np.random.Generator, int], np.ndarray]) -> np.ndarray:
    """The whole backdrop, h w 3 float32 in [0, 255]."""
    size = backdrop.lower.shape[0]
    fields = [draw(name, np.random.default_rng([*backdrop.seed, i]), size) for i, name in enumerate(backdrop.stuff)]
    if len(fields) == 1:
        return fields[0]
    return np.where(backdrop.lower[..., None], fields[1], fields[0])


# ---- things ----------------------------------------------------------------------------------------------------


def _shade_of(colour: np.ndarray) -> np.ndarray:
    """The second shade of a pattern: darker for bright colours, lighter for dark ones."""
    return 0.62 * colour if colour.mean() > 105 else 0.5 * colour + 127


def _body(layer: Layer, colour: np.ndarray) -> np.ndarray:
    """A thing's own colours, pattern and marks without light, h w 3."""
    tone = layer.sprite.tone[..., None]
    body = colour + layer.pattern[..., None] * (_shade_of(colour) - colour)
    body = body + np.clip(tone, 0, 1) * (GLASS - body)
    return body + np.clip(-tone, 0, 1) * (0.85 * (INK - body))


def _blurred(coverage: np.ndarray, radius: float) -> np.ndarray:
    """Coverage in [0, 1], box-blurred."""
    grey = Image.fromarray((coverage * 255).astype(np.uint8))
    return np.asarray(grey.filter(ImageFilter.BoxBlur(radius)), np.float32) / 255


def _over(canvas: np.ndarray, layer: Layer, paint: np.ndarray) -> None:
    """Lays h w 3 paint over the canvas, in place."""
    patch = canvas[layer.window]
    patch += layer.sprite.coverage[..., None] * (paint - patch)


def _drop_shadow(canvas: np.ndarray, layer: Layer, light: float) -> None:
    """Darkens the canvas down and away from the light, in place."""
    top, left = layer.top + 3, layer.left + (2 if light < 0 else -2)
    rows = slice(top, min(top + layer.pattern.shape[0], canvas.shape[0]))
    columns = slice(max(left, 0), min(left + layer.pattern.shape[1], canvas.shape[1]))
    if rows.start >= canvas.shape[0]:
        return
    shadow = _blurred(layer.sprite.coverage, 3)
    shadow = shadow[: rows.stop - rows.start, columns.start - left : columns.stop - left]
    canvas[rows, columns] *= 1 - 0.38 * shadow[..., None]


def _lit(layer: Layer, light: float) -> np.ndarray:
    """Light across a thing, h w 1 about 1: from the upper left (light < 0) or right, and less along the rim."""
    height, width = layer.pattern.shape
    y, x = np.linspace(1, -1, height)[:, None], np.linspace(-light, light, width)[None]
    rim = _blurred(layer.sprite.coverage, 3)
    return (0.86 + 0.09 * (y + x) + 0.16 * rim).astype(np.float32)[..., None]


# ---- domains ---------------------------------------------------------------------------------------------------


def _lit_scene(backdrop: Backdrop, layers: Sequence[Layer], rng: np.random.Generator, depth: float) -> np.ndarray:
    """Light, shadow and slightly jittered colours, h w 3: what the photograph and the painting start from."""
    light = float(rng.choice([-1.0, 1.0]))
    canvas = _ground(backdrop, partial(_painted_ground, depth=depth, accent=0.55))
    canvas += rng.normal(0, 4, 3).astype(np.float32)
    for layer in layers:
        _drop_shadow(canvas, layer, light)
        colour = np.array(COLOURS[layer.colour], np.float32) + rng.uniform(-10, 10, 3).astype(np.float32)
        _over(canvas, layer, _body(layer, colour) * _lit(layer, light))
    return canvas


def _photo(backdrop: Backdrop, layers: Sequence[Layer], rng: np.random.Generator) -> np.ndarray:
    canvas = _lit_scene(backdrop, layers, rng, depth=6)
    noise = rng.normal(0, 2, canvas.shape[:2]).astype(np.float32)
    soft = _picture(canvas).filter(ImageFilter.GaussianBlur(0.5))
    return np.asarray(soft, np.float32) + noise[..., None]


def _cartoon(backdrop: Backdrop, layers: Sequence[Layer], rng: np.random.Generator) -> np.ndarray:
    canvas = _ground(backdrop, partial(_painted_ground, depth=0, accent=0.6))
    for layer in layers:
        body = _body(layer, np.array(COLOURS[layer.colour], np.float32))
        _over(canvas, layer, body + 0.85 * layer.sprite.edge[..., None] * (INK - body))
    return canvas


def _lines(backdrop: Backdrop, layers: Sequence[Layer], rng: np.random.Generator) -> np.ndarray:
    canvas = _ground(backdrop, _drawn_ground)
    for layer in layers:
        pen = np.array(COLOURS[layer.colour], np.float32)
        fill = np.array([255, 255, 255], np.float32) if layer.colour == "white" else 0.5 * pen + 0.5 * PAPER
        pen = 0.62 * pen if layer.colour == "white" else 0.85 * pen
        y, x = np.ogrid[: layer.pattern.shape[0], : layer.pattern.shape[1]]
        hatching = np.maximum(((x + y) % 6 < 1) * 0.6, layer.pattern * 0.8)
        ink = np.maximum(np.clip(-layer.sprite.tone, 0, 1), np.maximum(layer.sprite.edge, hatching))
        light = np.clip(layer.sprite.tone, 0, 1)[..., None] * 0.8
        paint = fill + ink[..., None] * (pen - fill)
        _over(canvas, layer, paint + light * (1 - layer.sprite.edge[..., None]) * (PAPER - paint))
    return canvas


@lru_cache(maxsize=16)
def _brushwork(size: int, variant: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Overlapping strokes that cover a square: for each pixel the row and column of its stroke's middle and the
    stroke's number, each size size int."""
    rng = np.random.default_rng([size, variant])
    count = size * size // 8
    x, y = rng.uniform(0, size, (2, count))
    angle = rng.normal(0.5, 0.5, count)
    dx, dy = 4 * np.cos(angle), 4 * np.sin(angle)
    canvas = Image.new("I", (size, size))
    pen = ImageDraw.Draw(canvas)
    for i, line in enumerate(np.stack([x - dx, y - dy, x + dx, y + dy], 1).tolist()):
        pen.line(line, fill=i, width=3)
    number = np.asarray(canvas, np.int64)
    return y.astype(np.int64)[number], x.astype(np.int64)[number], number


def _painting(backdrop: Backdrop, layers: Sequence[Layer], rng: np.random.Generator) -> np.ndarray:
    canvas = _lit_scene(backdrop, layers, rng, depth=8)
    size = canvas.shape[0]
    rows, columns, number = _brushwork(size, int(rng.integers(8)))
    owner = backdrop.lower.astype(np.int8)
    for i, layer in enumerate(layers):
        owner[layer.window][layer.sprite.coverage > 0.5] = i + 2
    dab = canvas[rows, columns]
    kept = (owner[rows, columns] == owner) & (np.abs(dab - canvas).max(-1) < 60)
    painted = np.where(kept[..., None], dab, canvas)
    painted += rng.normal(0, 6, (size * size // 8, 3)).astype(np.float32)[number]
    weave = (np.arange(size) % 2 * 3 - 1.5).astype(np.float32)
    return painted + (weave[:, None] * weave[None] / 1.5)[..., None]


def _mosaic(backdrop: Backdrop, layers: Sequence[Layer], rng: np.random.Generator) -> np.ndarray:
    canvas = _ground(backdrop, partial(_painted_ground, depth=5, accent=0.6))
    for layer in layers:
        body = _body(layer, np.array(COLOURS[layer.colour], np.float32))
        _over(canvas, layer, body + 0.2 * layer.sprite.edge[..., None] * (INK - body))
    size, tile = canvas.shape[0], 4
    tiles = canvas.reshape(size // tile, tile, size // tile, tile, 3).mean((1, 3))
    tiles += rng.normal(0, 7, (*tiles.shape[:2], 1)).astype(np.float32)
    laid = tiles.repeat(tile, 0).repeat(tile, 1)
    grout = np.arange(size) % tile == tile - 1
    return laid - 22 * (grout[:, None] | grout[None])[..., None]


RENDERERS: dict[str, Callable[[Backdrop, Sequence[Layer], np.random.Generator], np.ndarray]] = {
    "photo": _photo,
    "cartoon": _cartoon,
    "lines": _lines,
    "painting": _painting,
    "mosaic": _mosaic,
}
DOMAINS: tuple[str, ...] = tuple(RENDERERS)


def _picture(canvas: np.ndarray) -> Image.Image:
    return Image.fromarray(_bytes(canvas))


def _bytes(canvas: np.ndarray) -> np.ndarray:
    """h w 3 float in [0, 255], rounded and clipped to uint8."""
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def render(domain: str, backdrop: Backdrop, layers: Sequence[Layer], rng: np.random.Generator) -> np.ndarray:
    """The scene's picture in a domain, h w 3 uint8; later layers lie in front."""
    return _bytes(RENDERERS[domain](backdrop, layers, rng))
