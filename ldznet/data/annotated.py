"""What datasets share that are published as pictures with an index of outlines: reading the index, drawing the masks.

An index is read once, when a dataset is made; pictures are read and masks drawn when an item is asked for.
Imported by the datasets' own files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from ..errors import InputError, cause, shown
from ..images import ORIENTATION, open_picture, to_bytes
from ..shapes import Bool, Size
from .items import Item

PAGE = "docs/datasets.md says where the files are published and how they must lie."
MOST_PIXELS = 2**28  # of a picture: what Pillow, too, takes for an attack is below
NAMED = 3  # of many missing files, so many are named

T = TypeVar("T")
Draw = Callable[[Any, Size], Bool[np.ndarray, "h w"]]


class Region(NamedTuple):
    """A phrase, and outlines of what it means, in the dataset's own form; its mask is what any of them covers."""

    phrase: str
    outlines: Sequence[Any]
    kind: str = "thing"


@dataclass(frozen=True)
class Entry:
    """A picture's file, its size in the annotations, and its regions, none of which share a phrase."""

    picture: Path
    size: Size
    regions: tuple[Region, ...]


class AnnotatedDataset:
    """Items of `entries`; `draw` makes a mask of an outline and the size that its points are in.

    A picture and its masks are squashed to `size` x `size` pixels (image Lanczos, mask nearest), as CLIPSeg's
    evaluation does, so that no phrase is cut off; with `size` None they stay as they are, each of its own size. A
    phrase of `vocabulary` that a picture has no region of is absent from it.
    """

    def __init__(
        self, entries: list[Entry], draw: Draw, *, size: int | None = 128, vocabulary: Sequence[str] = ()
    ) -> None:
        """Raises InputError that names the pictures which are missing."""
        require_files(entry.picture for entry in entries)
        self.entries, self.size, self.vocabulary, self._draw = entries, size, tuple(vocabulary), draw

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Item:
        """Raises InputError that names the file for a picture of another aspect than its annotations say, and for an
        outline that is none."""
        entry = self.entries[index]
        picture = _as_annotated(entry)
        target = picture.size if self.size is None else (self.size, self.size)
        phrases = tuple(region.phrase for region in entry.regions)
        planes = [self._plane(region, entry, target) for region in entry.regions]
        return Item(
            image=np.asarray(picture.resize(target, Image.Resampling.LANCZOS)),
            captions=(", ".join(phrases),),
            phrases=phrases,
            masks=np.stack(planes) if planes else np.zeros((0, target[1], target[0]), bool),
            kinds=tuple(region.kind for region in entry.regions),
            absent=tuple(phrase for phrase in self.vocabulary if phrase not in phrases),
        )

    def _plane(self, region: Region, entry: Entry, target: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
        """The mask of a region at `target` (width, height)."""
        mask = np.zeros(entry.size, bool)
        try:
            for outline in region.outlines:
                mask |= self._draw(outline, entry.size)
        except ValueError as error:
            raise InputError(
                f"Expected outlines of {shown(region.phrase)!r} in {entry.picture.name}, got {cause(error)}. "
                "Get the annotations again, or export them with segmentation."
            ) from error
        return np.asarray(Image.fromarray(mask.astype(np.uint8)).resize(target, Image.Resampling.NEAREST)) > 0


def _as_annotated(entry: Entry) -> Image.Image:
    """The picture as RGB, with the side up that its annotations mean: as it is stored, as the datasets' own code reads
    it, or turned as its EXIF tag says, where only then it has the aspect of the annotations."""
    picture = open_picture(entry.picture)
    if _same_aspect(picture.size, entry.size):
        picture.getexif()[ORIENTATION] = 1
    upright = Image.fromarray(to_bytes(picture))
    if not _same_aspect(upright.size, entry.size):
        raise InputError(
            f"Expected a picture of {entry.size[1]} x {entry.size[0]}, as its annotations say, or of that aspect in "
            f"{entry.picture}, got {upright.width} x {upright.height}. Get the picture again."
        )
    return upright


def _same_aspect(picture: tuple[int, int], size: Size) -> bool:
    """Whether (width, height) and (height, width) are of one aspect, but for a pixel's rounding."""
    return abs(picture[0] * size[0] - picture[1] * size[1]) <= max(*picture, *size)


def layered(regions: Iterable[Region]) -> list[tuple[Region, ...]]:
    """The regions of one picture, put into as many items as it takes to have no phrase twice in one: the first of each
    phrase, then the second … So every phrase that was annotated is counted, with the outlines that were meant."""
    layers: list[dict[str, Region]] = []
    for region in regions:
        free = next((layer for layer in layers if region.phrase not in layer), None)
        if free is None:
            free = {}
            layers.append(free)
        free[region.phrase] = region
    return [tuple(layer.values()) for layer in layers]


def require_files(paths: Iterable[Path]) -> None:
    """Raises InputError that names what is missing of `paths` and the page that says where it is published."""
    folders: dict[Path, set[str]] = {}
    missing: dict[Path, None] = {}
    for path in paths:
        folder = path.parent
        if folder not in folders:
            folders[folder] = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
        if path.name not in folders[folder] and not path.is_file():
            missing[path] = None
    if missing:
        named = ", ".join(shown(path) for path in list(missing)[:NAMED])
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise InputError(f"Expected files of the dataset, found none at {named}{more}. {PAGE}")


def read_json(path: Path) -> Any:
    """What a JSON file holds; raises InputError that names it."""
    require_files([path])
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"Expected JSON in {path}, got: {cause(error)}. Get the file again. {PAGE}") from error


class Records:
    """Records of one index, each a dict, read field by field; every field that is not as it should be is an InputError
    that names the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def field(self, record: Any, name: str, kind: type[T]) -> T:
        """`record[name]`, of exactly the type `kind`."""
        value = record.get(name) if type(record) is dict else None
        if type(value) is not kind:
            raise self.error(f"{name!r} ({kind.__name__}) in each record", record)
        return value

    def key(self, record: Any, name: str) -> int | str:
        """`record[name]`, a whole number or text."""
        value = record.get(name) if type(record) is dict else None
        if not isinstance(value, (int, str)):
            raise self.error(f"{name!r} (a number) in each record", record)
        return value

    def size(self, record: Any) -> Size:
        """`height` and `width` of a picture's record."""
        height, width = self.field(record, "height", int), self.field(record, "width", int)
        if height < 1 or width < 1 or height * width > MOST_PIXELS:
            raise self.error("a picture's height and width", record)
        return height, width

    def found(self, table: dict[int | str, T], record: Any, name: str) -> T:
        """What `table` has for the key `record[name]`."""
        key = self.key(record, name)
        if key not in table:
            raise self.error(f"a known {name!r} in each record", record)
        return table[key]

    def error(self, expected: str, got: Any) -> InputError:
        """What to raise for `got` in this index."""
        if type(got) is dict:
            got = "a dict of " + ", ".join(key if isinstance(key, str) else type(key).__name__ for key in list(got)[:9])
        elif not isinstance(got, (str, int, float)):  # whose text could be without end
            got = f"a {type(got).__name__}"
        return InputError(f"Expected {expected} of {self.path}, got {shown(got)}. {PAGE}")
