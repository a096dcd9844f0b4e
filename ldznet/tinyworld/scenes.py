"""Scenes of the tiny world: an image, a caption and an exact mask for every phrase, all from one seed.

The graph (layout, categories, colours, poses, grounds) depends on the seed and the size alone, never on the rendering
domain. Imports `shapes`, `surfaces` and `words`, numpy and nothing else; training, evaluation and tests import this.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .shapes import CATEGORIES, Sprite, sprite
from .surfaces import COLOURS, DOMAINS, PATTERNS, STUFF, Backdrop, Layer, pattern_map, render
from .words import VOCABULARY, absent_phrases, captions, distractor, matching, phrases_of, thing_phrases

__all__ = [
    "CATEGORIES",
    "COLOURS",
    "DOMAINS",
    "PATTERNS",
    "STUFF",
    "VOCABULARY",
    "Scene",
    "Thing",
    "absent_phrases",
    "captions",
    "distractor",
    "matching",
    "phrases_of",
    "scene",
    "thing_phrases",
]

MOST_THINGS = 6
UPPER, LOWER = ("sky", "night", "brick"), ("grass", "sand", "water", "snow", "brick")
GRAPH, DOMAIN, RENDERING, CAPTION, TEXTURE = range(5)  # streams of one seed
Look = tuple[str, str, str]  # category, colour, pattern


@dataclass(frozen=True)
class Thing:
    """One thing: `box` is y0 x0 y1 x1 (ends excluded) of its visible pixels, `mask` those pixels, h w bool."""

    category: str
    colour: str
    pattern: str
    box: tuple[int, int, int, int]
    mask: np.ndarray


@dataclass(frozen=True)
class Scene:
    """`image` h w 3 uint8; `phrases` are the keys of `masks` (h w bool, never empty), things first, then stuff;
    `kinds` says "thing" or "stuff" for each; later `things` lie in front."""

    image: np.ndarray
    caption: str
    phrases: tuple[str, ...]
    masks: dict[str, np.ndarray]
    kinds: dict[str, str]
    domain: str
    seed: int
    things: tuple[Thing, ...]


def scene(
    seed: int,
    domain: str | None = None,
    *,
    size: int = 128,
    things: int | None = None,
    only: Collection[str] | None = None,
) -> Scene:
    """The scene of a seed. `domain` None lets the seed choose; `things` forces how many there are (1-6; else one in
    a quarter of the seeds, two to four in the rest); `only` names the categories allowed. Raises ValueError."""
    _check(seed, domain, size, things, only)
    domain = domain or str(_stream(seed, DOMAIN).choice(DOMAINS))
    looks, layers, backdrop = _graph(seed, size, things, tuple(c for c in CATEGORIES if only is None or c in only))
    labels = _labels(layers, size)
    image = render(domain, backdrop, layers, _stream(seed, RENDERING, DOMAINS.index(domain)))
    return _with_words(image, _things(looks, labels), _stuff_masks(backdrop, labels < 0), domain, seed)


def _check(seed: int, domain: str | None, size: int, things: int | None, only: Collection[str] | None) -> None:
    if seed < 0:
        raise ValueError(f"Expected a seed of 0 or more, got {seed}. Count scenes from 0.")
    if domain is not None and domain not in DOMAINS:
        raise ValueError(f"Expected a domain among {', '.join(DOMAINS)}, got {domain!r}. Name one, or leave it None.")
    if size < 64 or size % 8:
        raise ValueError(f"Expected a size that is a multiple of 8 and at least 64, got {size}. Take 128 or 192.")
    if things is not None and not 1 <= things <= MOST_THINGS:
        raise ValueError(f"Expected 1 to {MOST_THINGS} things, got {things}. Ask for fewer, or leave it None.")
    if only is not None and (isinstance(only, str) or not only or set(only) - set(CATEGORIES)):
        raise ValueError(
            f"Expected only to be a collection of categories among {', '.join(CATEGORIES)}, got "
            f"{only!r}. Name at least one, or leave it None."
        )


def _stream(seed: int, *purpose: int) -> np.random.Generator:
    """Random numbers of one seed for one purpose, independent of the other purposes."""
    return np.random.default_rng([seed, *purpose])


def _graph(
    seed: int,
    size: int,
    things: int | None,
    categories: Sequence[str],
) -> tuple[list[Look], list[Layer], Backdrop]:
    """What is where. Draws a fresh layout, up to eight times, while some thing found no place."""
    rng = _stream(seed, GRAPH)
    count = things or (1 if rng.random() < 0.25 else int(rng.integers(2, 5)))
    backdrop = _backdrop(rng, size, (seed, TEXTURE))
    looks, layers = _layout(rng, size, count, categories)
    for _ in range(7):
        if len(layers) == count:
            break
        again = _layout(rng, size, count, categories)
        looks, layers = max((looks, layers), again, key=lambda found: len(found[1]))
    return looks, layers, backdrop


def _backdrop(rng: np.random.Generator, size: int, seed: tuple[int, ...]) -> Backdrop:
    """One kind of stuff (20 %) or two, parted by a sloping, wavy horizon at 30-70 % of the height."""
    if rng.random() < 0.2:
        return Backdrop((str(rng.choice(STUFF)),), np.zeros((size, size), bool), seed)
    upper = str(rng.choice(UPPER))
    lower = str(rng.choice([name for name in LOWER if name != upper]))
    x = np.linspace(-0.5, 0.5, size)
    wave = rng.uniform(0, 0.03) * np.sin(2 * np.pi * (rng.uniform(1, 3) * x + rng.random()))
    horizon = np.clip(rng.uniform(0.35, 0.65) + rng.uniform(-0.12, 0.12) * x + wave, 0.3, 0.7) * size
    return Backdrop((upper, lower), np.arange(size)[:, None] >= horizon[None], seed)


def _look(rng: np.random.Generator, earlier: Sequence[Look], categories: Sequence[str]) -> Look:
    """A new thing's category, colour and pattern; half copy the colour or the category of an earlier thing."""
    category, colour = str(rng.choice(categories)), str(rng.choice(list(COLOURS)))
    if earlier and rng.random() < 0.5:
        model = earlier[int(rng.integers(len(earlier)))]
        others = [name for name in categories if name != model[0]]
        if others and rng.random() < 0.5:
            category, colour = str(rng.choice(others)), model[1]
        else:
            category, colour = model[0], str(rng.choice([name for name in COLOURS if name != model[1]]))
    return category, colour, str(rng.choice(PATTERNS, p=[0.5, 0.25, 0.25]))


def _layout(
    rng: np.random.Generator,
    size: int,
    count: int,
    categories: Sequence[str],
) -> tuple[list[Look], list[Layer]]:
    """Up to `count` things, back to front; one that finds no place in a few tries is left out."""
    looks: list[Look] = []
    layers: list[Layer] = []
    areas: list[int] = []
    labels = np.full((size, size), -1, np.int8)
    for _ in range(count):
        look = _look(rng, looks, categories)
        for attempt in range(4):
            drawing = _drawing(rng, look[0], size, 0.85**attempt)
            area = int(np.count_nonzero(drawing.coverage > 0.5))
            spot = _spot(rng, drawing, labels, [*areas, area])
            if spot is not None:
                pattern = pattern_map(look[2], drawing.coverage.shape, rng, size / 128)
                layers.append(_cut(drawing, look[1], pattern, spot, size))
                looks.append(look)
                areas.append(area)
                _stamp(labels, layers[-1], len(layers) - 1)
                break
    return looks, layers


def _drawing(rng: np.random.Generator, category: str, size: int, shrink: float) -> Sprite:
    """A sprite of 24-80 pixels at size 128, spread evenly over the logarithm, grown until its area is enough."""
    extent = max(24.0, shrink * float(np.exp(rng.uniform(np.log(24), np.log(80)))))
    while True:
        drawing = sprite(category, rng, extent * size / 128)
        if extent >= 80 or np.count_nonzero(drawing.coverage > 0.5) >= 1.3 * _least(size):
            return drawing
        extent *= 1.2


def _least(size: int) -> float:
    """The fewest visible pixels that a thing may have."""
    return 150 * (size / 128) ** 2


def _spot(
    rng: np.random.Generator,
    drawing: Sprite,
    labels: np.ndarray,
    areas: Sequence[int],
) -> tuple[int, int] | None:
    """A top and left where the new thing and all earlier ones stay visible to 45 % and 150 pixels, or None."""
    size, (height, width) = labels.shape[0], drawing.coverage.shape
    body = drawing.coverage > 0.5
    visible = np.bincount(labels[labels >= 0].ravel(), minlength=len(areas) - 1)
    needed = np.maximum(0.45 * np.asarray(areas), _least(size))
    for _ in range(8):
        top, left = (int(rng.integers(-(n // 10), max(size - n + n // 10, -(n // 10) + 1))) for n in (height, width))
        inside = body[max(-top, 0) : size - top, max(-left, 0) : size - left]
        under = labels[max(top, 0) : top + height, max(left, 0) : left + width][inside]
        left_over = visible - np.bincount(under[under >= 0], minlength=len(visible))
        if np.all(np.append(left_over, np.count_nonzero(inside)) >= needed):
            return top, left
    return None


def _cut(drawing: Sprite, colour: str, pattern: np.ndarray, spot: tuple[int, int], size: int) -> Layer:
    """The part of a drawing that lies on the canvas."""
    top, left = spot
    window = slice(max(-top, 0), size - top), slice(max(-left, 0), size - left)
    return Layer(drawing.crop(*window), colour, pattern[window], max(top, 0), max(left, 0))


def _stamp(labels: np.ndarray, layer: Layer, number: int) -> None:
    """Writes a thing's number where it covers more than half of a pixel, in place."""
    labels[layer.window][layer.sprite.coverage > 0.5] = number


def _labels(layers: Sequence[Layer], size: int) -> np.ndarray:
    """The number of the thing seen at each pixel, h w int8; -1 where stuff is seen."""
    labels = np.full((size, size), -1, np.int8)
    for number, layer in enumerate(layers):
        _stamp(labels, layer, number)
    return labels


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _things(looks: Sequence[Look], labels: np.ndarray) -> tuple[Thing, ...]:
    masks = [labels == number for number in range(len(looks))]
    return tuple(Thing(*look, _box(mask), mask) for look, mask in zip(looks, masks, strict=True))


def _stuff_masks(backdrop: Backdrop, free: np.ndarray) -> dict[str, np.ndarray]:
    """Where each kind of stuff is seen; stuff that things hide is left out."""
    areas = [free & ~backdrop.lower, free & backdrop.lower]
    return {name: area for name, area in zip(backdrop.stuff, areas, strict=False) if area.any()}


def _with_words(
    image: np.ndarray, things: tuple[Thing, ...], stuff: dict[str, np.ndarray], domain: str, seed: int
) -> Scene:
    """The scene with its phrases and caption."""
    masks = {
        phrase: np.logical_or.reduce([thing.mask for thing in matching(things, phrase)])
        for phrase in thing_phrases(things)
    }
    kinds = {**dict.fromkeys(masks, "thing"), **dict.fromkeys(stuff, "stuff")}
    untitled = Scene(image, "", tuple(kinds), {**masks, **stuff}, kinds, domain, seed, things)
    return replace(untitled, caption=captions(untitled, _stream(seed, CAPTION)))
