"""Pictures as people have them, brought to pixels b 3 h w in [-1, 1], and back; and resizing that does not shift."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from .errors import InputError
from .shapes import PIXELS_PER_LATENT, Float, Size, UInt8
from .sources import require_no_url

EXPECTED = "a PIL image, a uint8 array h w 3, or a float tensor b 3 h w in its value_range"
BAND = 2**20  # pixels that are float32 at once, 12 MB of them: a picture is read in bands of so many
ORIENTATION = 0x0112  # the EXIF tag that says which side of a picture is up
SLACK = 0.005  # of a range: how far beyond its ends values may lie, as those of a picture that was resized do

Range = tuple[float, float]


@dataclass(frozen=True)
class Picture:
    """A picture that was looked at and found good, before anything of it is float32. `size` is upright.

    `rows(top, bottom)` gives that band of it as pixels b 3 bottom-top w in [-1, 1].
    """

    size: Size
    rows: Callable[[int, int], Tensor]

    @classmethod
    def of(cls, image: Any, value_range: Range | None = None) -> Picture:
        """Of a PIL image of any mode (EXIF rotation applied, transparency over white), a uint8 array h w 3, or a float
        tensor b 3 h w, which is detached.

        `value_range` says what a float tensor's black and white are, (-1, 1) or (0, 1) nearly always. None takes
        [-1, 1], and refuses a tensor whose values all lie in [0, 1], for it could be of either. Raises InputError that
        says what came.
        """
        if isinstance(image, Tensor):
            return cls._of_tensor(image, value_range)
        if value_range is not None:
            raise InputError(f"Expected no value_range but with a float tensor, got {value_range!r} with bytes.")
        if isinstance(image, Image.Image):
            size, rows = _bands(image)
        elif isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
            size, rows = (image.shape[0], image.shape[1]), lambda top, bottom: np.array(image[top:bottom])
        else:
            raise InputError(f"Expected {EXPECTED}, got {_named(image)}.")
        if 0 in size:
            raise InputError(f"Expected {EXPECTED}, got one of {size[0]} x {size[1]} without pixels.")
        return cls(size, lambda top, bottom: _from_bytes(rows(top, bottom)))

    @classmethod
    def _of_tensor(cls, image: Tensor, value_range: Range | None) -> Picture:
        if image.ndim != 4 or image.shape[1] != 3 or not image.is_floating_point() or 0 in image.shape:
            raise InputError(f"Expected {EXPECTED}, got a tensor {image.dtype} {tuple(image.shape)}.")
        require_dense(image, "the image")
        image = image.detach() if image.dtype.itemsize > 1 else image.detach().float()  # float8 does no arithmetic
        low, high = _checked_range(image, value_range)

        def rows(top: int, bottom: int) -> Tensor:
            pixels = image[:, :, top:bottom].float()
            return pixels if (low, high) == (-1, 1) else (pixels - low) * (2 / (high - low)) - 1

        return cls((image.shape[2], image.shape[3]), rows)

    def at(self, size: Size) -> Float[Tensor, "b 3 h w"]:
        """`pixels` at `size`. The same to the bit as all of it resized at once (on a CPU), in a fraction of the memory:
        each row is narrowed by itself, then each column shortened."""
        height, width = self.size
        step = max(1, BAND // width)
        first = self._narrowed(0, min(step, height), size[1])
        if step >= height:
            return resize(first, size)
        narrow = first.new_empty((*first.shape[:2], height, size[1]))
        narrow[:, :, :step] = first
        for top in range(step, height, step):
            narrow[:, :, top : top + step] = self._narrowed(top, min(top + step, height), size[1])
        return resize(narrow, size)

    def _narrowed(self, top: int, bottom: int, width: int) -> Float[Tensor, "b 3 h w"]:
        band = self.rows(top, bottom)
        return resize(band, (band.shape[2], width))


def open_picture(path: str | Path) -> Image.Image:
    """The picture in a file, read to its end; raises InputError for a file that is none, and for a URL."""
    require_no_url(path, "a picture")
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except Exception as error:  # each format has a reader of its own, and they raise what they like
        raise InputError(
            f"Expected a picture at {path}, got: {_reason(error)}. Give a file that opens in a viewer."
        ) from error


def to_pixels(image: Any, value_range: Range | None = None) -> Float[Tensor, "b 3 h w"]:
    """`pixels` at their own size of what `Picture.of` takes, and raises as it does."""
    picture = Picture.of(image, value_range)
    return picture.at(picture.size)


def to_bytes(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """A PIL image of any mode upright and as RGB, transparency over white. Raises InputError for a damaged one."""
    (height, width), rows = _bands(image)
    out = np.empty((height, width, 3), np.uint8)
    step = max(1, BAND // max(1, width))
    for top in range(0, height, step):
        out[top : top + step] = rows(top, min(top + step, height))
    return out


def to_pictures(pixels: Float[Tensor, "b 3 h w"]) -> UInt8[np.ndarray, "b h w 3"]:
    """The way back: uint8 pictures of `pixels`; what lies outside of [-1, 1] is cut."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def require_pixels(pixels: Tensor, side: int = PIXELS_PER_LATENT) -> None:
    """Raises InputError unless `pixels` are b 3 h w with sides in multiples of `side`."""
    if pixels.ndim != 4 or pixels.shape[1] != 3 or any(s % side for s in pixels.shape[2:]):
        raise InputError(f"Expected pixels b 3 h w with sides in multiples of {side}, got {tuple(pixels.shape)}.")


def require_finite(tensor: Tensor, name: str, advice: str = "Look at what made them.") -> None:
    """Raises InputError where `tensor` holds NaN or infinity."""
    if not torch.isfinite(tensor).all():
        raise InputError(f"Expected finite numbers in {name}, got NaN or infinity. {advice}")


def require_dense(tensor: Tensor, name: str) -> None:
    """Raises InputError where `tensor` is sparse, quantised, or without values (of the meta device)."""
    kind = "sparse" if tensor.layout is not torch.strided else "quantised" if tensor.is_quantized else None
    kind = "meta" if tensor.is_meta else kind
    if kind:
        raise InputError(f"Expected an ordinary tensor for {name}, got a {kind} one. Call to_dense() or dequantize().")


def resize(maps: Float[Tensor, "b c h w"], size: Size) -> Float[Tensor, "b c H W"]:
    """Bicubic with antialiasing, corner to corner, so nothing shifts."""
    if maps.shape[2:] == torch.Size(size):
        return maps
    return F.interpolate(maps.float(), size=size, mode="bicubic", align_corners=False, antialias=True).to(maps.dtype)


def _checked_range(image: Tensor, value_range: Range | None) -> Range:
    """The range of a float tensor: what its black and white are. Raises InputError where its values do not fit."""
    low, high = (-1.0, 1.0) if value_range is None else _two_numbers(value_range)
    rows = max(1, BAND // image.shape[3])
    ends = [float(end) for band in image.split(rows, dim=2) for end in band.aminmax()]  # of all at once it may copy all
    lowest, highest = min(ends), max(ends)
    if not all(map(math.isfinite, ends)):  # aminmax of NaN is NaN
        raise InputError("Expected finite numbers in the image, got NaN or infinity. Look at what made them.")
    slack = SLACK * (high - low)
    if lowest < low - slack or highest > high + slack:
        raise InputError(
            f"Expected pixels in [{low:g}, {high:g}], got {lowest:.2f} .. {highest:.2f}. Say what black and white are: "
            "value_range=(0, 255), or (0, 1), or (-1, 1)."
        )
    if value_range is None and lowest >= -slack:
        raise InputError(
            f"Expected a value_range with pixels of {lowest:.2f} .. {highest:.2f}, got none: they may be [0, 1], as "
            "torchvision makes them, or a bright picture in [-1, 1]. Pass value_range=(0, 1) or value_range=(-1, 1)."
        )
    return low, high


def _two_numbers(value_range: Any) -> Range:
    if isinstance(value_range, Sequence) and len(value_range) == 2:
        low, high = value_range
        if all(isinstance(end, (int, float)) and math.isfinite(end) for end in (low, high)) and low < high:
            return float(low), float(high)
    raise InputError(f"Expected a value_range such as (0, 1) or (-1, 1), black first, got {value_range!r}.")


def _from_bytes(rows: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "1 3 h w"]:
    return torch.from_numpy(rows).permute(2, 0, 1)[None].float().div_(127.5).sub_(1)


def _bands(image: Image.Image) -> tuple[Size, Callable[[int, int], np.ndarray]]:
    """The upright size of a PIL image, and what gives rows `top` to `bottom` of it as uint8 RGB."""
    try:
        image.load()  # files are read late
        upright = image if image.getexif().get(ORIENTATION, 1) == 1 else ImageOps.exif_transpose(image)
        band = partial(_rgb_band, upright)
        if upright.mode in ("I", "F") or upright.mode.startswith("I;16"):
            greys = np.asarray(upright)
            band = partial(_grey_band, greys, _grey_scale(greys, upright.mode == "F"))
    except Exception as error:
        raise InputError(f"Expected {EXPECTED}, got one that cannot be read: {_reason(error)}.") from error
    return (upright.height, upright.width), band


def _rgb_band(upright: Image.Image, top: int, bottom: int) -> UInt8[np.ndarray, "h w 3"]:
    band = upright.crop((0, top, upright.width, bottom))
    if "A" in band.getbands() or "transparency" in band.info:
        layer = band.convert("RGBA")
        band = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return np.array(band.convert("RGB"))


def _grey_band(greys: np.ndarray, scale: float, top: int, bottom: int) -> UInt8[np.ndarray, "h w 3"]:
    values = greys[top:bottom].astype(np.float64) * scale
    return np.repeat(values.clip(0, 255).round().astype(np.uint8)[:, :, None], 3, axis=2)


def _grey_scale(greys: np.ndarray, real: bool) -> float:
    """To 0 .. 255 from greys that do not say their range: 16 bits if one is above 255, 0 .. 1 if real and none over 1.

    Raises ValueError where NaN or infinity is among them.
    """
    lowest, highest = greys.min(initial=0), greys.max(initial=0)
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise ValueError("NaN or infinity among its greys")
    return 255 / 65535 if highest > 255 else 255 if real and highest <= 1 else 1


def _named(image: Any) -> str:
    return f"an array {image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__


def _reason(error: Exception) -> str:
    return f"{error}" or type(error).__name__
