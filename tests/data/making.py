"""Three-item datasets for the tests. Not a test itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ldznet.data import FolderDataset, TinyWorldDataset
from ldznet.data.items import Dataset

SIDE = 64


def picture(path: Path, size: tuple[int, int], left: str = "red", orientation: int = 1) -> None:
    """A picture (width, height) as stored: `left` half of that colour, right half blue; lossless."""
    image = Image.new("RGB", size, "blue")
    image.paste(left, (0, 0, size[0] // 2, size[1]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)


def mask(path: Path, size: tuple[int, int]) -> None:
    """White on the left half."""
    values = np.zeros(size[::-1], np.uint8)
    values[:, : size[0] // 2] = 255
    Image.fromarray(values).save(path)


def index(folder: Path, *records: Any) -> Path:
    """The folder, with an index of these records; text is taken as it is."""
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (folder / "index.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def folder(path: Path) -> FolderDataset:
    """An image with two masks, one that a camera held upright, and one that nothing is known of."""
    picture(path / "a.png", (60, 60))
    mask(path / "a_red.png", (60, 60))
    mask(path / "a_left.png", (60, 60))
    picture(path / "b.png", (80, 40), orientation=6)
    picture(path / "c.png", (33, 50), left="green")
    return FolderDataset(
        index(
            path,
            {"image": "a.png", "captions": ["one", "two"], "masks": {"red": "a_red.png", "left": "a_left.png"}},
            {"image": "b.png", "absent": ["a cat"], "captions": ["upright"]},
            {"image": "c.png"},
        ),
        size=SIDE,
    )


def tinyworld(path: Path) -> TinyWorldDataset:
    """Three scenes of a few pixels."""
    return TinyWorldDataset(3, size=SIDE)


DATASETS: dict[str, Callable[[Path], Dataset]] = {"tinyworld": tinyworld, "folder": folder}
