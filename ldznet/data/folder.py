"""A folder of images, masks and phrases as a dataset.

`index.jsonl` holds one image a line: {"image": "images/1.jpg", "captions": ["…"], "masks": {"a dog": "masks/1.png"},
"absent": ["a cat"]}; paths are relative to the folder. `captions`, `masks` and `absent` may be missing.
A mask has its picture's aspect, and any value but black (or transparent) where its phrase is: see `read_mask`.
Images are squared by a central crop, or squashed so that nothing is cut off, and resized (image Lanczos, mask nearest).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ..errors import InputError
from ..images import open_picture, to_bytes
from ..shapes import Bool
from .annotated import PAGE, require_files
from .items import Item

LABELS = 32  # a mask of so many values or fewer holds labels; a photograph has more
END = 0.1  # of the highest value: what lies so near to it, or to zero, is an end of a soft mask
AT_ENDS = 0.5  # of a soft mask's pixels, at least; a photograph has fewer
LOSSY = ("JPEG", "MPO", "WEBP", "AVIF")  # formats that change values: what is a little over zero there was zero

EXAMPLE = '{"image": "1.jpg", "captions": ["…"], "masks": {"a dog": "1.png"}, "absent": ["…"]}'


class FolderDataset:
    """Items of `folder` at `size` x `size` pixels, `cropped` or squashed; each at its own size where `size` is None."""

    def __init__(self, folder: Path | str, *, size: int | None = 128, cropped: bool = True) -> None:
        """Raises InputError where the index is missing, broken or empty, and names the files that it lists in vain."""
        self.folder, self.size, self.cropped = Path(folder), size, cropped
        index = self.folder / "index.jsonl"
        if not index.is_file():
            raise InputError(
                f"Expected index.jsonl in {self.folder}, found none. Write one line of JSON per image. {PAGE}"
            )
        lines = _read(index).splitlines()
        self.records = [_record(line, number) for number, line in enumerate(lines, 1) if line.strip()]
        if not self.records:
            raise InputError(f"Expected at least one image in {index}, got none.")
        paths = [path for record in self.records for path in (record["image"], *record.get("masks", {}).values())]
        require_files(self.folder / path for path in paths)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Item:
        record = self.records[index]
        masks = record.get("masks", {})
        picture = Image.fromarray(to_bytes(open_picture(self.folder / record["image"])))
        planes = [self._plane(self.folder / path, picture.size) for path in masks.values()]
        image = np.asarray(self._squared(picture, picture.size, Image.Resampling.LANCZOS))
        return Item(
            image=image,
            captions=tuple(record.get("captions") or [", ".join(masks)]),
            phrases=tuple(masks),
            masks=np.stack(planes) if planes else np.zeros((0, *image.shape[:2]), bool),
            kinds=("thing",) * len(masks),
            absent=tuple(record.get("absent", ())),
        )

    def _plane(self, path: Path, picture: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
        """The mask in a file for a picture of (width, height); raises InputError for one of another aspect."""
        mask = Image.fromarray(read_mask(path))
        if abs(mask.width * picture[1] - mask.height * picture[0]) > max(*mask.size, *picture):  # by over a pixel
            raise InputError(
                f"Expected a mask of its picture's aspect in {path}, got {mask.width} x {mask.height} for a picture of "
                f"{picture[0]} x {picture[1]} (upright). Make the mask anew from the whole picture."
            )
        return np.asarray(self._squared(mask.convert("L"), picture, Image.Resampling.NEAREST)) > 0

    def _squared(self, image: Image.Image, own: tuple[int, int], resampling: Image.Resampling) -> Image.Image:
        """The image at the size asked for; `own` is its picture's, (width, height)."""
        size = own if self.size is None else (self.size, self.size)
        return ImageOps.fit(image, size, resampling) if self.cropped else image.resize(size, resampling)


def read_mask(path: Path) -> Bool[np.ndarray, "h w"]:
    """Where the mask in a picture file is, upright, whatever it was saved as.

    Labels, that is few values of any kind (0 and 1, 0 and 100, 0 and 255, a palette's colours): wherever one is not
    zero. A soft mask, or one in a lossy format: wherever it is over half of its highest value. Where the alpha channel
    is not the same everywhere, it is the mask; colours count by their brightest channel.
    Raises InputError that names the file for grey values that are neither, those of a photograph.
    """
    image = open_picture(path)
    lossy = image.format in LOSSY
    values = _values(ImageOps.exif_transpose(image))
    highest = values.max(initial=0)
    if not lossy and len(np.unique(values)) <= LABELS:
        return values != 0
    ends = (values <= END * highest) | (values >= (1 - END) * highest)
    if ends.mean() < AT_ENDS:
        raise InputError(
            f"Expected a mask in {path}, black but where its phrase is, got {len(np.unique(values))} grey values, of "
            f"which {1 - ends.mean():.0%} are neither dark nor light: a photograph? Give the mask of one phrase."
        )
    return values > highest / 2


def _values(image: Image.Image) -> np.ndarray:
    """What a mask says at each pixel, h w: zero is outside."""
    if image.mode == "P" and "transparency" not in image.info:
        indices = np.asarray(image)
        colours = np.asarray(image.convert("RGB")).max(axis=2)
        return indices if len(np.unique(colours)) == 1 else colours  # a palette may be black throughout
    if image.mode == "P" or image.mode in ("PA", "La", "RGBa"):
        image = image.convert("RGBA")
    if image.mode not in ("1", "L", "LA", "RGB", "RGBA", "I", "F") and not image.mode.startswith("I;16"):
        image = image.convert("RGB")
    values = np.asarray(image)
    if image.mode in ("LA", "RGBA"):
        alpha, values = values[:, :, -1], values[:, :, :-1]
        if len(np.unique(alpha)) > 1:
            return alpha
    return values if values.ndim == 2 else values.max(axis=2)


def _read(index: Path) -> str:
    try:
        return index.read_text(encoding="utf-8-sig")  # editors on Windows begin a file with a mark
    except UnicodeDecodeError as error:
        raise InputError(f"Expected UTF-8 in {index}, got something else: {error}. Save it as UTF-8.") from error


def _record(line: str, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
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
