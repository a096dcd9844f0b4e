"""From soft maps to what the host repaints: masks for its passes, with the user's own, and words about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageChops, ImageOps
from torch import Tensor

from ..drawing import contrasting, overlay, with_legend
from ..segmentation import Segmentation
from ..shapes import Float
from ..shaping import Shape, shaped
from .settings import CUT, EACH, REPLACE, UNITE, Settings

Mask = Image.Image
"""Mode "L", of the size of the picture; white is repainted."""

ALPHA_FROM = 128  # of a drawn mask's alpha, as the hosts round it


class Painting(NamedTuple):
    """`passes`: a mask for each pass that has anything to repaint. `lines`: what became of each phrase."""

    passes: list[Mask]
    lines: list[str]


def painting(
    found: Segmentation, picture: Image.Image, settings: Settings, drawn: Mask | None, check: Callable[[], None]
) -> Painting:
    """The masks of one RGB `picture`: of all phrases together or of each, combined with what the user `drawn`."""
    soft = present(found)
    parts = soft if settings.passes == EACH else soft.amax(dim=0, keepdim=True)
    masks = masks_of(parts, picture, settings, check)
    if drawn is not None and settings.passes == EACH and settings.drawn == UNITE:
        masks = [fitted(drawn, picture.size), *masks]  # a pass of its own
    else:
        masks = [combined(mask, drawn, settings.drawn) for mask in masks]
    return Painting([mask for mask in masks if not is_blank(mask)], lines_of(found, soft, settings))


def present(found: Segmentation) -> Float[Tensor, "p h w"]:
    """The soft maps of one picture, of a phrase that was not found zeros."""
    return found.probabilities[0] * found.found[0][:, None, None]


def masks_of(
    soft: Float[Tensor, "p h w"], picture: Image.Image, settings: Settings, check: Callable[[], None]
) -> list[Mask]:
    """The mask of each soft map of one RGB `picture`."""
    guide = pixels_of(picture)[None]
    shape = Shape(
        settings.refine,
        settings.threshold,
        settings.drop_specks,
        settings.fill_holes,
        settings.grow,
        settings.feather,
    )
    return [mask_of(inverted_if(settings.invert, shaped(part[None], guide, shape, check)[0])) for part in soft]


def with_masks(picture: Image.Image, masks: Sequence[Mask], names: Sequence[str]) -> Image.Image:
    """An RGB `picture` under its masks, each in a colour that the legend below names."""
    pixels = pixels_of(picture)[None]
    given = torch.stack([torch.from_numpy(np.array(mask)).float() / 255 for mask in masks])[None]
    hues = contrasting(pixels, given)
    drawn = with_legend(overlay(pixels, given, hues=hues)[0], names, hues)
    return Image.fromarray((drawn.movedim(0, -1) * 255).round().to(torch.uint8).numpy())


def pixels_of(picture: Image.Image) -> Float[Tensor, "3 h w"]:
    """In [0, 1]."""
    return torch.from_numpy(np.array(picture)).movedim(-1, 0).float() / 255


def inverted_if(invert: bool, mask: Float[Tensor, "h w"]) -> Float[Tensor, "h w"]:
    """All but the mask; where nothing was found that is nothing too, and not the whole picture."""
    return 1 - mask if invert and mask.any() else mask


def lines_of(found: Segmentation, soft: Float[Tensor, "p h w"], settings: Settings) -> list[str]:
    """A line for each phrase, its share of the picture before it was shaped; then what the result says of itself."""
    lines = []
    for i, phrase in enumerate(found.phrases):
        share = float((soft[i] > settings.threshold).float().mean())
        state = f"{100 * share:.1f} % of the picture" if share else "not found"
        lines.append(f"{phrase}: {state}, {found.score_text(0, i)}")
    return [*lines, *filter(None, [found.caveat]), *found.hints]


def combined(mask: Mask, drawn: Mask | None, how: str) -> Mask:
    """`mask` with the one that the user drew, if there is any."""
    if drawn is None or how == REPLACE:
        return mask
    drawn = fitted(drawn, mask.size)
    return ImageChops.darker(mask, drawn) if how == CUT else ImageChops.lighter(mask, drawn)


def fitted(drawn: Mask, size: tuple[int, int]) -> Mask:
    """A drawn mask at the picture's (width, height)."""
    return drawn if drawn.size == size else drawn.resize(size, Image.Resampling.NEAREST)


def drawn_mask(given: Any) -> Mask | None:
    """The host's own mask as it reads it: the alpha channel of a picture that has one, else its brightness."""
    if given is None:
        return None
    if given.mode == "RGBA" and given.getextrema()[-1] != (255, 255):
        return given.split()[-1].point(lambda alpha: 255 if alpha > ALPHA_FROM else 0)
    return given.convert("L")


def mask_of(mask: Float[Tensor, "h w"]) -> Mask:
    """A mask in [0, 1] as a picture."""
    return Image.fromarray((mask * 255).round().to(torch.uint8).cpu().numpy())


def is_blank(mask: Mask, inverted: bool = False) -> bool:
    """Whether the host would repaint nothing: none of it white, or all of it where the host inverts it."""
    return (ImageOps.invert(mask) if inverted else mask).getbbox() is None


def outlives_blur(mask: Mask, blur: tuple[int, int], inverted: bool = False) -> bool:
    """Whether anything is left of a mask after the host's blur, a Gaussian of the deviations (across, down) in pixels,
    rounded to whole greys."""
    values = torch.from_numpy(np.array(ImageOps.invert(mask) if inverted else mask)).float()
    for deviation, axis in zip(blur, (1, 0), strict=True):
        if deviation > 0:
            values = _blurred(values, deviation, axis)
    return bool(values.max() >= 1.5)  # of 255: half a grey more than where rounding begins, for the hosts' is coarser


def _blurred(values: Float[Tensor, "h w"], deviation: int, axis: int) -> Float[Tensor, "h w"]:
    """Along one axis, with the hosts' reach of 2.5 deviations."""
    reach = int(2.5 * deviation + 0.5)
    steps = torch.arange(-reach, reach + 1, dtype=torch.float32, device=values.device)
    kernel = torch.exp(-0.5 * (steps / deviation) ** 2)
    lines = values if axis == 1 else values.T
    edged = torch.nn.functional.pad(lines[:, None], (reach, reach), mode="replicate")
    blurred = torch.nn.functional.conv1d(edged, (kernel / kernel.sum())[None, None])[:, 0]
    return blurred if axis == 1 else blurred.T
