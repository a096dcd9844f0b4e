"""The outlines of the tiny world's fourteen categories and their rasters.

Each category is a function that draws its own shape parameters and returns solids (the silhouette) and marks
(windows, eyes) in unit coordinates; `sprite` poses one and rasterises it. Imports nothing of the package; meant for
`surfaces`, `words` and `scenes`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SUPERSAMPLING = 3
MARGIN = 3  # empty pixels around a sprite, so that its outline can be found by erosion
Points = np.ndarray | Sequence[tuple[float, float]]  # n 2, x y
DARK, LIGHT = -1.0, 1.0  # tones of the marks


@dataclass
class Outline:
    """A drawing in unit coordinates (x right, y down), painted in order.

    `solids`: (points n 2, True to fill or False to cut a hole); `marks`: (points n 2, tone in [-1, 1])."""

    solids: list[tuple[np.ndarray, bool]] = field(default_factory=list)
    marks: list[tuple[np.ndarray, float]] = field(default_factory=list)

    def fill(self, *points: Points) -> None:
        self.solids += [(np.asarray(p, np.float32), True) for p in points]

    def cut(self, points: np.ndarray) -> None:
        self.solids.append((points, False))

    def mark(self, tone: float, *points: Points) -> None:
        self.marks += [(np.asarray(p, np.float32), tone) for p in points]


@dataclass(frozen=True)
class Sprite:
    """One rasterised thing: `coverage` h w in [0, 1], `tone` h w in [-1, 1] (dark to light marks), `edge` h w in
    [0, 1], the inner rim, two pixels wide or one if the thing is thin."""

    coverage: np.ndarray
    tone: np.ndarray
    edge: np.ndarray

    def crop(self, rows: slice, columns: slice) -> "Sprite":
        return Sprite(self.coverage[rows, columns], self.tone[rows, columns], self.edge[rows, columns])


def _ellipse(x: float, y: float, rx: float, ry: float, start: float = 0.0, stop: float = 360.0) -> np.ndarray:
    """Points of an elliptic arc; degrees run clockwise on the screen, 0 is right, 270 is up."""
    angles = np.radians(np.linspace(start, stop, 29))
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], 1).astype(np.float32)


def _rectangle(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], np.float32)


def _bar(x0: float, y0: float, x1: float, y1: float, width: float) -> np.ndarray:
    """A straight bar of the given width between two points."""
    along = np.array([x1 - x0, y1 - y0], np.float32)
    across = np.array([-along[1], along[0]]) / max(float(np.hypot(*along)), 1e-6) * width / 2
    start, stop = np.array([x0, y0]), np.array([x1, y1])
    return np.array([start + across, stop + across, stop - across, start - across], np.float32)


def _star(rng: np.random.Generator) -> Outline:
    outline, inner = Outline(), rng.uniform(0.36, 0.5)
    angles = np.radians(np.arange(10) * 36 - 90)
    radii = np.where(np.arange(10) % 2, inner, 1.0)
    points = np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)
    outline.fill(points)
    outline.mark(0.35, points * 0.42)
    return outline


def _heart(rng: np.random.Generator) -> Outline:
    outline, t = Outline(), np.linspace(0, 2 * np.pi, 49)
    lobe = rng.uniform(4.5, 6.5)
    y = -(13 * np.cos(t) - lobe * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 16
    outline.fill(np.stack([np.sin(t) ** 3, y], 1))
    outline.mark(0.5, _ellipse(-0.5, -0.4, 0.16, 0.2))
    return outline


def _moon(rng: np.random.Generator) -> Outline:
    outline, shift = Outline(), rng.uniform(0.42, 0.62)
    outline.fill(_ellipse(0, 0, 1, 1))
    outline.cut(_ellipse(shift, -0.12, 0.84, 0.84))
    outline.mark(-0.3, _ellipse(-0.72, 0.1, 0.1, 0.1), _ellipse(-0.5, 0.55, 0.13, 0.12))
    return outline


def _fish(rng: np.random.Generator) -> Outline:
    outline, height, tail = Outline(), rng.uniform(0.42, 0.56), rng.uniform(0.42, 0.62)
    outline.fill(
        _ellipse(-0.15, 0, 0.85, height),
        [(0.5, 0), (1.15, -tail), (0.98, 0), (1.15, tail)],
        [(-0.4, -height * 0.8), (0.1, -height - 0.28), (0.4, -height * 0.6)],
        [(-0.1, height * 0.8), (0.25, height + 0.22), (0.32, height * 0.6)],
    )
    outline.mark(-0.35, _bar(-0.42, -height * 0.6, -0.36, height * 0.6, 0.09))
    outline.mark(LIGHT, _ellipse(-0.66, -0.12, 0.14, 0.14))
    outline.mark(DARK, _ellipse(-0.67, -0.12, 0.08, 0.08))
    return outline


def _tree(rng: np.random.Generator) -> Outline:
    outline, trunk = Outline(), _rectangle(-0.14, 0.3, 0.14, 1.05)
    outline.fill(trunk)
    if rng.random() < 0.5:
        for level, (top, bottom) in enumerate([(-1.1, -0.35), (-0.75, 0.1), (-0.3, 0.6)]):
            half = 0.45 + 0.2 * level + rng.uniform(-0.04, 0.04)
            outline.fill([(0, top), (half, bottom), (-half, bottom)])
            if level < 2:
                outline.mark(-0.3, _rectangle(-half * 0.75, bottom - 0.05, half * 0.75, bottom + 0.03))
        outline.mark(-0.6, _rectangle(-0.14, 0.6, 0.14, 1.05))
    else:
        for x, y in [(-0.5, 0.0), (0.5, 0.0), (-0.36, -0.5), (0.36, -0.5), (0, -0.72), (0, -0.1)]:
            outline.fill(_ellipse(x, y, *rng.uniform(0.36, 0.46, 2)))
        outline.mark(-0.6, _rectangle(-0.14, 0.34, 0.14, 1.05))
        outline.mark(0.3, _ellipse(-0.3, -0.5, 0.16, 0.12), _ellipse(0.3, -0.15, 0.16, 0.12))
    return outline


def _house(rng: np.random.Generator) -> Outline:
    outline, eaves, ridge = Outline(), rng.uniform(-0.25, -0.05), rng.uniform(-1.05, -0.85)
    chimney = rng.uniform(0.36, 0.5)
    outline.fill(_rectangle(-0.75, eaves - 0.02, 0.75, 0.9), _rectangle(chimney, ridge + 0.05, chimney + 0.22, eaves))
    roof = [(-1, eaves), (0, ridge), (1, eaves)]
    outline.fill(roof)
    outline.mark(-0.35, roof)
    outline.mark(-0.85, _rectangle(-0.14, 0.3, 0.2, 0.9))
    outline.mark(LIGHT, _rectangle(-0.6, 0.15, -0.28, 0.5), _rectangle(0.34, 0.15, 0.62, 0.5))
    return outline


def _car(rng: np.random.Generator) -> Outline:
    outline, roof, back, front = Outline(), rng.uniform(-0.62, -0.48), rng.uniform(-0.6, -0.45), rng.uniform(0.2, 0.4)
    outline.fill(
        [
            (-1, -0.08),
            (-0.8, -0.12),
            (back, roof),
            (front, roof),
            (0.62, -0.1),
            (1.0, 0.02),
            (1.05, 0.32),
            (-1.02, 0.32),
        ]
    )
    wheels = [(x, 0.32) for x in (-0.55, 0.58)]
    outline.fill(*(_ellipse(x, y, 0.25, 0.25) for x, y in wheels))
    outline.mark(
        LIGHT,
        [(-0.62, -0.1), (back + 0.06, roof + 0.1), (-0.12, roof + 0.1), (-0.12, -0.1)],
        [(0, -0.1), (0, roof + 0.1), (front - 0.03, roof + 0.1), (0.46, -0.1)],
    )
    outline.mark(DARK, *(_ellipse(x, y, 0.25, 0.25) for x, y in wheels))
    outline.mark(0.7, *(_ellipse(x, y, 0.1, 0.1) for x, y in wheels))
    return outline


def _cat(rng: np.random.Generator) -> Outline:
    outline, width, ear = Outline(), rng.uniform(0.4, 0.52), rng.uniform(-1.22, -1.08)
    outline.fill(
        _ellipse(0, 0.5, width, 0.55),
        _ellipse(0, -0.42, 0.46, 0.4),
        [(-0.46, -0.5), (-0.42, ear), (-0.06, -0.74)],
        [(0.46, -0.5), (0.42, ear), (0.06, -0.74)],
        _rectangle(-width, 0.75, width, 1.02),
    )
    tail = np.concatenate(
        [_ellipse(width + 0.1, 0.62, 0.36, 0.38, 90, -60), _ellipse(width + 0.1, 0.62, 0.2, 0.22, -60, 90)]
    )
    outline.fill(tail)
    outline.mark(LIGHT, _ellipse(-0.19, -0.46, 0.12, 0.12), _ellipse(0.19, -0.46, 0.12, 0.12))
    outline.mark(
        DARK,
        _ellipse(-0.19, -0.45, 0.06, 0.1),
        _ellipse(0.19, -0.45, 0.06, 0.1),
        [(-0.09, -0.27), (0.09, -0.27), (0, -0.16)],
    )
    outline.mark(-0.5, _bar(0, 0.6, 0, 1.0, 0.07))
    outline.mark(0.4, _ellipse(0, 0.3, 0.17, 0.2))
    return outline


def _bird(rng: np.random.Generator) -> Outline:
    outline, lift, belly = Outline(), rng.uniform(-0.5, -0.1), rng.uniform(0.38, 0.5)
    outline.fill(
        _ellipse(0, 0.1, 0.62, belly),
        _ellipse(-0.55, -0.38, 0.32, 0.3),
        [(-0.82, -0.52), (-1.25, -0.34), (-0.82, -0.24)],
        [(0.3, -0.15), (1.2, lift), (1.25, lift + 0.26), (0.4, 0.4)],
        _bar(-0.12, 0.4, -0.16, 0.95, 0.11),
        _bar(0.16, 0.4, 0.14, 0.95, 0.11),
        _bar(-0.34, 0.93, -0.08, 0.93, 0.1),
        _bar(-0.04, 0.93, 0.22, 0.93, 0.1),
    )
    outline.mark(-0.4, [(-0.25, -0.1), (0.3, -0.2), (0.7, 0.12), (0.2, 0.32), (-0.15, 0.22)])
    outline.mark(-0.8, [(-0.84, -0.52), (-1.25, -0.34), (-0.84, -0.24)])
    outline.mark(LIGHT, _ellipse(-0.6, -0.44, 0.11, 0.11))
    outline.mark(DARK, _ellipse(-0.61, -0.44, 0.065, 0.065))
    return outline


def _flower(rng: np.random.Generator) -> Outline:
    outline, petals, turn = Outline(), int(rng.integers(5, 8)), rng.uniform(0, 72)
    outline.fill(_bar(0, 0, 0.05, 1.25, 0.15))
    leaf = rng.uniform(0.6, 0.85)
    outline.fill(
        [(0.0, leaf + 0.2), (0.28, leaf - 0.12), (0.58, leaf - 0.12), (0.4, leaf + 0.14)],
        [(0.0, leaf + 0.32), (-0.26, leaf + 0.02), (-0.52, leaf + 0.04), (-0.36, leaf + 0.26)],
    )
    outline.mark(-0.5, _bar(0, 0.4, 0.05, 1.25, 0.15))
    for angle in np.radians(np.arange(petals) * 360 / petals + turn):
        outline.fill(_ellipse(0.46 * np.cos(angle), -0.35 + 0.46 * np.sin(angle), 1.6 / petals, 1.6 / petals))
    outline.fill(_ellipse(0, -0.35, 0.4, 0.4))
    outline.mark(-0.75, _ellipse(0, -0.35, 0.27, 0.27))
    outline.mark(0.5, _ellipse(0, -0.35, 0.15, 0.15))
    return outline


def _mushroom(rng: np.random.Generator) -> Outline:
    outline, height, foot = Outline(), rng.uniform(0.75, 1.05), rng.uniform(0.26, 0.42)
    stem = [(-0.24, 0.0), (0.24, 0.0), (foot, 0.85), (-foot, 0.85)]
    outline.fill(stem, np.concatenate([_ellipse(0, 0.08, 1, height, 180, 360), _ellipse(0, 0.08, 1, 0.12, 0, 180)]))
    outline.mark(0.6, [(-0.24, 0.16), (0.24, 0.16), (foot, 0.85), (-foot, 0.85)])
    outline.mark(
        LIGHT, _ellipse(-0.45, -0.2, 0.15, 0.14), _ellipse(0.12, -0.45, 0.18, 0.15), _ellipse(0.55, -0.13, 0.13, 0.12)
    )
    return outline


def _boat(rng: np.random.Generator) -> Outline:
    outline, top, main = Outline(), rng.uniform(-1.15, -0.95), rng.uniform(0.62, 0.85)
    hull = [(-1, 0.4), (1, 0.4), (0.68, 0.88), (-0.66, 0.88)]
    sails = [(0.08, top), (main, 0.2), (0.08, 0.2)], [(-0.1, top + 0.2), (-0.1, 0.2), (-main * 0.8, 0.2)]
    outline.fill(hull, *sails, _rectangle(-0.1, top, 0.08, 0.5))
    outline.mark(-0.3, hull)
    outline.mark(0.12, *sails)
    outline.mark(-0.7, _rectangle(-0.08, top, 0.06, 0.4))
    return outline


def _key(rng: np.random.Generator) -> Outline:
    outline, bow, tooth = Outline(), rng.uniform(0.46, 0.56), rng.uniform(0.3, 0.42)
    outline.fill(
        _ellipse(-0.62, 0, bow, bow),
        _rectangle(-0.3, -0.13, 1.1, 0.13),
        _rectangle(0.84, 0, 1.06, tooth + 0.1),
        _rectangle(0.46, 0, 0.68, tooth),
    )
    outline.cut(_ellipse(-0.66, 0, bow * 0.5, bow * 0.5))
    outline.mark(0.4, _bar(-0.1, -0.03, 0.95, -0.03, 0.08))
    return outline


def _cup(rng: np.random.Generator) -> Outline:
    outline, foot, handle = Outline(), rng.uniform(0.38, 0.6), rng.uniform(0.34, 0.44)
    outline.fill(_ellipse(0.62, 0.08, handle + 0.1, handle))
    outline.cut(_ellipse(0.64, 0.08, (handle + 0.1) * 0.55, handle * 0.5))
    body = np.concatenate([_ellipse(0, -0.6, 0.75, 0.16, 180, 360), _ellipse(0, 0.72, foot, 0.12, 0, 180)])
    outline.fill(body)
    outline.mark(-0.65, _ellipse(0, -0.59, 0.66, 0.115))
    outline.mark(0.35, _bar(-0.5, -0.3, -foot * 0.7, 0.5, 0.13))
    return outline


OUTLINES: dict[str, Callable[[np.random.Generator], Outline]] = {
    "star": _star,
    "heart": _heart,
    "moon": _moon,
    "fish": _fish,
    "tree": _tree,
    "house": _house,
    "car": _car,
    "cat": _cat,
    "bird": _bird,
    "flower": _flower,
    "mushroom": _mushroom,
    "boat": _boat,
    "key": _key,
    "cup": _cup,
}
CATEGORIES: tuple[str, ...] = tuple(OUTLINES)


def _pose(rng: np.random.Generator) -> np.ndarray:
    """A 2 2 matrix: mirrored or not, stretched by 0.8-1.25, turned by up to 25 degrees."""
    angle, stretch = np.radians(rng.uniform(-25, 25)), np.exp(rng.uniform(np.log(0.8), np.log(1.25)) / 2)
    mirror = rng.choice([-1.0, 1.0])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (turn @ np.diag([mirror * stretch, 1 / stretch])).astype(np.float32)


def sprite(category: str, rng: np.random.Generator, extent: float) -> Sprite:
    """A thing in a random pose whose silhouette's longer side measures `extent` pixels."""
    outline, pose = OUTLINES[category](rng), _pose(rng)
    solids = [(points @ pose.T, keep) for points, keep in outline.solids]
    filled = np.concatenate([points for points, keep in solids if keep])
    low, span = filled.min(0), np.ptp(filled, axis=0)
    scale = extent / float(span.max())
    width, height = (int(n) + 2 * MARGIN for n in np.ceil(span * scale))
    shape = (width * SUPERSAMPLING, height * SUPERSAMPLING)

    def place(points: np.ndarray) -> list[float]:
        return (((points - low) * scale + MARGIN) * SUPERSAMPLING).ravel().tolist()

    silhouette, marks = Image.new("L", shape), Image.new("L", shape, 128)
    pen, marker = ImageDraw.Draw(silhouette), ImageDraw.Draw(marks)
    for points, keep in solids:
        pen.polygon(place(points), fill=255 if keep else 0)
    for points, tone in outline.marks:
        marker.polygon(place(points @ pose.T), fill=round(128 + 127 * tone))
    return _finish(silhouette, marks)


def _finish(silhouette: Image.Image, marks: Image.Image) -> Sprite:
    """Supersampled grey drawings to a sprite; its rim is one pixel wide where two would leave little inside."""
    small = silhouette.reduce(SUPERSAMPLING)
    coverage, thin, thick, tone = (
        np.asarray(image, np.float32)
        for image in (
            small,
            small.filter(ImageFilter.MinFilter(3)),
            small.filter(ImageFilter.MinFilter(5)),
            marks.reduce(SUPERSAMPLING),
        )
    )
    core = thick if thick.sum() > 0.45 * coverage.sum() else thin
    return Sprite(coverage / 255, (tone - 128) / 127, (coverage - core) / 255)
