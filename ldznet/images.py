"""Pictures as people have them, brought to pixels b 3 h w in [-1, 1], and back; and resizing that does not shift."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from .errors import InputError
from .shapes import Float, Size, UInt8

# What Pillow raises for a file that is no picture, damaged, or too large to be one.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
EXPECTED = "a PIL image, a uint8 array h w 3, or a float tensor b 3 h w in [-1, 1]"


def open_picture(path: Path) -> Image.Image:
    """The picture in a file, read to its end; raises InputError for a file that is none."""
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except UNREADABLE as error:
        raise InputError(f"Expected a picture at {path}, got: {error}. Give a file that opens in a viewer.") from error


def to_pixels(image: Any) -> Float[Tensor, "b 3 h w"]:
    """`pixels` of a PIL image of any mode (EXIF rotation applied, transparency over white), a uint8 array h w 3, or a
    float tensor, which is checked and detached. Raises InputError that says what came."""
    if isinstance(image, Image.Image):
        image = _rgb_array(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputError(f"Expected {EXPECTED}, got an array {image.dtype} {image.shape}.")
        image = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float().div_(127.5).sub_(1)
    if not isinstance(image, Tensor):
        raise InputError(f"Expected {EXPECTED}, got {type(image).__name__}.")
    if image.ndim != 4 or image.shape[1] != 3 or not image.is_floating_point() or 0 in image.shape:
        raise InputError(f"Expected {EXPECTED}, got a tensor {image.dtype} {tuple(image.shape)}.")
    pixels = image.detach().float()
    require_finite(pixels, "the image")
    low, high = pixels.aminmax()
    if low < -1.01 or high > 1.01:
        raise InputError(f"Expected pixels in [-1, 1], got {low:.2f} .. {high:.2f}. Divide by 127.5 and subtract 1.")
    return pixels


def to_pictures(pixels: Float[Tensor, "b 3 h w"]) -> UInt8[np.ndarray, "b h w 3"]:
    """The way back: uint8 pictures of `pixels`; what lies outside of [-1, 1] is cut."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def require_finite(tensor: Tensor, name: str, advice: str = "Look at what made them.") -> None:
    """Raises InputError where `tensor` holds NaN or infinity."""
    if not torch.isfinite(tensor).all():
        raise InputError(f"Expected finite numbers in {name}, got NaN or infinity. {advice}")


def resize(maps: Float[Tensor, "b c h w"], size: Size) -> Float[Tensor, "b c H W"]:
    """Bicubic with antialiasing, corner to corner, so nothing shifts."""
    if maps.shape[2:] == torch.Size(size):
        return maps
    return F.interpolate(maps.float(), size=size, mode="bicubic", align_corners=False, antialias=True).to(maps.dtype)


def _rgb_array(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    try:
        return np.asarray(_rgb(image))
    except UNREADABLE as error:  # files are read late
        raise InputError(f"Expected {EXPECTED}, got one that cannot be read: {error}.") from error


def _rgb(image: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(image)
    if upright.mode in ("I", "F") or upright.mode.startswith("I;16"):
        upright = Image.fromarray(_bytes(np.asarray(upright, dtype=np.float64), upright.mode == "F"))
    if "A" in upright.getbands() or "transparency" in upright.info:
        layer = upright.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return upright.convert("RGB")


def _bytes(values: np.ndarray, real: bool) -> UInt8[np.ndarray, "h w"]:
    """0 .. 255 of greys that do not say their range: 16 bits if one is above 255, 0 .. 1 if real and none over 1."""
    if not np.isfinite(values).all():
        raise ValueError("NaN or infinity among its greys")
    highest = values.max(initial=0)
    scale = 255 / 65535 if highest > 255 else 255 if real and highest <= 1 else 1
    return (values * scale).clip(0, 255).round().astype(np.uint8)
