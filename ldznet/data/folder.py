"""A folder of images, masks and phrases as a dataset.

`index.jsonl` holds one image a line: {"image": "images/1.jpg", "captions": ["…"], "masks": {"a dog": "masks/1.png"},
"absent": ["a cat"]}; paths are relative to the folder, a mask is white where its phrase is. `captions`, `masks` and
`absent` may be missing. Images are squared by a central crop and resized (image Lanczos, mask nearest).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ..errors import InputError
from ..images import open_picture
from .items import Item

EXAMPLE = '{"image": "1.jpg", "captions": ["…"], "masks": {"a dog": "1.png"}, "absent": ["…"]}'


class FolderDataset:
    """Items of `folder` at `size` x `size` pixels."""

    def __init__(self, folder: Path | str, *, size: int = 128) -> None:
        self.folder, self.size = Path(folder), size
        index = self.folder / "index.jsonl"
        if not index.is_file():
            raise InputError(f"Expected index.jsonl in {self.folder}, found none. Write one line of JSON per image.")
        lines = _read(index).splitlines()
        self.records = [_record(line, number) for number, line in enumerate(lines, 1) if line.strip()]
        if not self.records:
            raise InputError(f"Expected at least one image in {index}, got none.")

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Item:
        record = self.records[index]
        masks = record.get("masks", {})
        planes = [np.asarray(self._square(path, Image.Resampling.NEAREST, "L")) > 127 for path in masks.values()]
        return Item(
            image=np.asarray(self._square(record["image"], Image.Resampling.LANCZOS, "RGB")),
            captions=tuple(record.get("captions") or [", ".join(masks)]),
            phrases=tuple(masks),
            masks=np.stack(planes) if planes else np.zeros((0, self.size, self.size), bool),
            kinds=("thing",) * len(masks),
            absent=tuple(record.get("absent", ())),
        )

    def _square(self, path: str, resampling: Image.Resampling, mode: str) -> Image.Image:
        upright = ImageOps.exif_transpose(open_picture(self.folder / path))
        return ImageOps.fit(upright.convert(mode), (self.size, self.size), resampling)


def _read(index: Path) -> str:
    try:
        return index.read_text(encoding="utf-8-sig")  # editors on Windows begin a file with a mark
    except UnicodeDecodeError as error:
        raise InputError(f"Expected UTF-8 in {index}, got something else: {error}. Save it as UTF-8.") from error


def _record(line: str, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        record = None
    if not _is_record(record):
        raise InputError(f"Expected {EXAMPLE} on line {number} of index.jsonl, got {line[:60]!r}.")
    return record


def _is_record(record: Any) -> bool:
    if not isinstance(record, dict) or not isinstance(record.get("image"), str):
        return False
    lists, masks = [record.get("captions", []), record.get("absent", [])], record.get("masks", {})
    texts = [*lists, list(masks.values())] if isinstance(masks, dict) else [None]
    return all(isinstance(text, list) and all(isinstance(t, str) for t in text) for text in texts)
