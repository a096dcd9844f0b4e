"""A dataset drawn once into a folder of arrays, so that training reads memory instead of rendering.

images.npy (uint8 n h w 3), masks.npy (the planes of all items, bit-packed), items.jsonl; then latents.npy (float16)
and, for training on many phrases, contexts.npy (float16).
Every file is written whole and then renamed, so an interrupted run leaves no half of one.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..contracts import Conditioning, Host
from ..errors import InputError, cause
from ..models.trained import conditioned
from ..shapes import Float, UInt8
from ..writing import replacing
from .items import Dataset

Progress = Callable[[int, int], None]


WORDS = ("captions", "phrases", "kinds", "absent", "distracted")  # of an item, in its line of items.jsonl


def quiet(done: int, total: int) -> None:
    """Reports nothing."""


def images_to_pixels(images: np.ndarray) -> Float[Tensor, "b 3 h w"]:
    """uint8 b h w 3 to pixels in [-1, 1], channels-last in memory."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


class Cache:
    """What `draw` wrote. `records[i]` has captions, phrases, kinds, absent, distracted and the first plane's index."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError that names the file which is missing, cut short, or does not go with the others."""
        self.folder = folder
        self.images = _array(folder / "images.npy", np.uint8, 4)
        self.planes = _array(folder / "masks.npy", np.uint8, 2)
        self.records = _records(folder / "items.jsonl")
        latents = folder / "latents.npy"
        self.latents = torch.from_numpy(np.array(_array(latents, np.float16, 4))) if latents.exists() else None
        self._check()

    def _check(self) -> None:
        count, planes = len(self.records), len(self.planes)
        for name, array in (("images.npy", self.images), ("latents.npy", self.latents)):
            if array is not None and len(array) != count:
                raise _damaged(self.folder / name, f"{len(array)} pictures where items.jsonl has {count}")
        for number, record in enumerate(self.records, 1):
            if not 0 <= record["first_plane"] <= planes - len(record["phrases"]):
                raise _damaged(self.folder / "masks.npy", f"too few planes for line {number} of items.jsonl")
        height, width = self.images.shape[1:3]
        if planes and self.planes.shape[1] != -(-height * width // 8):
            raise _damaged(self.folder / "masks.npy", f"planes of another size than {height} x {width}")

    def __len__(self) -> int:
        return len(self.records)

    def mask(self, index: int, phrase: int) -> np.ndarray:
        """Mask of the `phrase`-th phrase of item `index`, h w bool."""
        height, width = self.images.shape[1:3]
        packed = self.planes[self.records[index]["first_plane"] + phrase]
        return np.unpackbits(packed, count=height * width).reshape(height, width).astype(bool)

    def coverage(self) -> np.ndarray:
        """Share of each image that its first phrase's mask covers, n; 0 where an image has no phrases."""
        height, width = self.images.shape[1:3]
        shares = np.zeros(len(self), np.float32)
        for i, record in enumerate(self.records):
            if record["phrases"]:
                shares[i] = np.unpackbits(self.planes[record["first_plane"]], count=height * width).mean()
        return shares


def draw(dataset: Dataset, folder: Path, progress: Progress = quiet) -> Cache:
    """The cache of `dataset` in `folder`, drawn unless it is there already.

    Raises InputError where one of another length is there, and for a dataset of pictures of unequal sizes.
    """
    if (folder / "items.jsonl").exists():
        return _same_length(Cache(folder), dataset)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "latents.npy").unlink(missing_ok=True)  # of images that are drawn anew
    planes: list[np.ndarray] = []
    records = []
    with replacing(folder / "images.npy") as images:
        shape = dataset[0].image.shape
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(dataset), *shape)}
        np.lib.format.write_array_header_1_0(images, header)
        for i in range(len(dataset)):
            item = dataset[i]
            if item.image.shape != shape:
                raise InputError(
                    f"Expected pictures of one size to keep together, {shape[0]} x {shape[1]}, got one of "
                    f"{item.image.shape[0]} x {item.image.shape[1]}. Give the dataset a size."
                )
            images.write(item.image.tobytes())
            words = {name: getattr(item, name) for name in WORDS}
            records.append({**words, "first_plane": len(planes)})
            planes += list(np.packbits(item.masks.reshape(len(item.masks), shape[0] * shape[1]), axis=1))
            progress(i + 1, len(dataset))
    _save(folder / "masks.npy", np.stack(planes) if planes else np.zeros((0, 0), np.uint8))
    with replacing(folder / "items.jsonl") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records).encode())
    return Cache(folder)


@torch.no_grad()
def add_latents(cache: Cache, encode: Callable[[Tensor], Tensor], progress: Progress = quiet, batch: int = 64) -> Cache:
    """Encodes every image of `cache` (`encode`: pixels to model-space latents) into latents.npy, unless it is there."""
    if cache.latents is None:
        found = []
        for start in range(0, len(cache), batch):
            pixels = images_to_pixels(cache.images[start : start + batch])
            found.append(encode(pixels).half().contiguous().numpy())
            progress(min(start + batch, len(cache)), len(cache))
        _save(cache.folder / "latents.npy", np.concatenate(found))
    return Cache(cache.folder)


@torch.no_grad()
def texts_of(host: Host, texts: Sequence[str], folder: Path | None = None, batch: int = 256) -> Conditioning:
    """What the host makes of `texts`, a row each; in `folder` mapped from contexts.npy, float16, and what else there is
    from files beside it. They are written unless they are there already.

    Without a folder it is in memory, in the host's own dtype.
    """
    parts = (conditioned(host, texts[i : i + batch]) for i in range(0, len(texts), batch))
    if folder is None:
        every = list(parts)
        extras = {name: torch.cat([part.extras[name] for part in every]) for name in every[0].extras}
        return Conditioning(torch.cat([part.context for part in every]), extras)
    path, named = folder / "contexts.npy", folder / "contexts.sha256"
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    if not (path.exists() and named.exists() and named.read_text(encoding="utf-8") == digest):
        named.unlink(missing_ok=True)
        _write_texts(path, parts, len(texts))
        named.write_text(digest, encoding="utf-8")
    beside = {other.suffixes[0][1:]: other for other in folder.glob("contexts.*.npy")}
    extras = {name: torch.from_numpy(_array(other, np.float16, 2)) for name, other in beside.items()}
    return Conditioning(torch.from_numpy(_array(path, np.float16, 3)), extras)


def _write_texts(path: Path, parts: Iterator[Conditioning], count: int) -> None:
    """Contexts as they come; the rest, which is small, at the end."""
    first = next(parts)
    extras: dict[str, list[Tensor]] = {name: [] for name in first.extras}
    with replacing(path) as file:
        header = {"descr": "<f2", "fortran_order": False, "shape": (count, *first.context.shape[1:])}
        np.lib.format.write_array_header_1_0(file, header)
        for part in itertools.chain([first], parts):
            file.write(part.context.half().cpu().contiguous().numpy().tobytes())
            for name, rows in extras.items():
                rows.append(part.extras[name].half().cpu())
    for name, rows in extras.items():
        _save(path.with_name(f"contexts.{name}.npy"), torch.cat(rows).numpy())


def latents_of(caches: Sequence[Cache]) -> Float[Tensor, "n c h w"]:
    """The latents of all `caches`, one after the other. Raises ValueError where one has none."""
    latents = [cache.latents for cache in caches if cache.latents is not None]
    if len(latents) < len(caches):
        raise ValueError("Expected caches with latents, got one without. Call add_latents first.")
    return torch.cat(latents)


def pixels_of(caches: Sequence[Cache]) -> UInt8[Tensor, "n 3 h w"]:
    """The pictures of all `caches`, one after the other."""
    return torch.cat([torch.from_numpy(np.array(cache.images)).permute(0, 3, 1, 2) for cache in caches])


def _same_length(cache: Cache, dataset: Dataset) -> Cache:
    if len(cache) != len(dataset):
        raise InputError(
            f"Expected as many images as the dataset has ({len(dataset)}) in {cache.folder}, got {len(cache)}. "
            "Delete it, or move it."
        )
    return cache


def _save(path: Path, array: np.ndarray) -> None:
    with replacing(path) as file:
        np.save(file, array)


def _array(path: Path, dtype: type[np.generic], sides: int) -> np.ndarray:
    """A mapped array: its header is compared with the file's length before anything has memory."""
    try:
        array = np.load(path, mmap_mode="c")  # what torch would write stays in memory
    except Exception as error:  # numpy's are many
        raise _damaged(path, cause(error)) from error
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != sides:
        raise _damaged(path, f"no array of {sides} sides of {dtype.__name__}")
    return array


def _records(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8") as lines:
            records = [json.loads(line) for line in lines]
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, cause(error)) from error
    for number, record in enumerate(records, 1):
        whole = isinstance(record, dict) and type(record.get("first_plane")) is int
        if not (whole and all(isinstance(record.get(name), list) for name in WORDS)):
            raise _damaged(path, f"no item on line {number}")
    return records


def _damaged(path: Path, got: str) -> InputError:
    return InputError(f"Expected a whole cache in {path.parent}, got in {path.name}: {got}. Delete the folder.")
