"""IMAGE, MASK and LATENT ↔ the library's tensors: the only file of the nodes that changes layouts.

ComfyUI: IMAGE is b h w c in [0, 1], MASK b h w in [0, 1], LATENT["samples"] b 4 h w before the scale factor.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ldznet.errors import InputError, LDZNetError
from ..ldznet.images import resize
from ..ldznet.segmentation import Segmentation
from ..ldznet.shapes import PIXELS_PER_LATENT, Float, Size, UInt8

PREVIEW = 512  # pixels of the longer side of what a node shows, and of the picture that a segmentation keeps
GREY = 0.5  # of the picture where none is known


@dataclass(frozen=True)
class Segmented:
    """A LDZNET_SEGMENTATION: `result`, and where its frame lies in a picture of `size` (height, width).

    ComfyUI's VAE Encode cuts pictures to multiples of 8 about their middle: `offset` (top, left) undoes that.
    """

    result: Segmentation
    size: Size
    offset: Size = (0, 0)
    notes: tuple[str, ...] = ()  # how it was made, where that is to be said
    threshold: float = 0.5  # of the node that segmented: what the nodes after it follow unless they have their own
    picture: UInt8[Tensor, "b 3 h w"] | None = None  # `small`, of what was segmented: to be seen below the masks
    cell: int = PIXELS_PER_LATENT  # the side of a latent pixel in the picture, which VAE Encode cuts to multiples of

    def remarks(self) -> list[str]:
        """What is to be said beside scores and areas: below the report, and below the legend of a preview."""
        return [*filter(None, [self.result.caveat]), *self.result.hints, *self.notes]

    def threshold_or(self, own: float) -> float:
        """`own`, what another node's threshold says; where that is below 0, this segmentation's."""
        return self.threshold if own < 0 else own

    def pictures(self, most: int | None = None) -> Float[Tensor, "b 3 h w"]:
        """What was segmented, in [0, 1] at `size` or with a longer side of `most` pixels; grey where it is not kept."""
        count, size = self.result.logits.shape[0], self.size if most is None else within(self.size, most)
        if self.picture is None:
            return torch.full((count, 3, *size), GREY, dtype=torch.float32, device="cpu")
        return resize(self.picture.float() / 255, size).clamp(0, 1).expand(count, -1, -1, -1)

    def select(self, phrases: list[int]) -> Segmented:
        """The same of some of the phrases."""
        return dataclasses.replace(self, result=self.result.select(phrases))

    def beside(self, image: Float[Tensor, "b h w c"]) -> Segmented:
        """The same in the frame of an IMAGE that is connected beside it: the picture that was segmented, or its like.

        Of the same size nothing changes. What VAE Encode would cut to this size gets the offset of that cut, and what
        it leaves of this size is cut out; another size of the same aspect is this one, scaled. Raises InputError for
        any other aspect or number of images.
        """
        _require_images(image, self.result.logits.shape[0], "Connect the images that were segmented.")
        size = (image.shape[1], image.shape[2])
        if size == self.size:
            return self
        for larger, smaller, sign in ((size, self.size, 1), (self.size, size, -1)):
            cut, (top, left) = _cut(larger, self.cell)
            if cut == smaller:
                offset = (self.offset[0] + sign * top, self.offset[1] + sign * left)
                return dataclasses.replace(self, size=size, offset=offset)
        _require_aspect(size, self.size, self.cell, "Connect the image that was segmented.")
        across, down = size[1] / self.size[1], size[0] / self.size[0]
        inner = (round(self.result.size[0] * down), round(self.result.size[1] * across))
        offset = (round(self.offset[0] * down), round(self.offset[1] * across))
        return dataclasses.replace(self, result=dataclasses.replace(self.result, size=inner), size=size, offset=offset)

    def probabilities(self) -> Float[Tensor, "b p h w"]:
        """At the picture's size; the frame's outermost pixels stand for what was cut off."""
        maps = self.result.probabilities
        (height, width), (top, left) = self.size, self.offset
        below, right = height - maps.shape[2] - top, width - maps.shape[3] - left
        return F.pad(maps, (left, right, top, below), mode="replicate")  # negative ones cut

    def masks(self, own: float) -> Float[Tensor, "b p h w"]:
        """0 or 1 by `threshold_or(own)`, at the picture's size; zeros for a phrase that was not found."""
        return (self.soft() > self.threshold_or(own)).float()

    def soft(self) -> Float[Tensor, "b p h w"]:
        """The probabilities, zeros for a phrase that was not found."""
        return self.probabilities() * self.result.found[:, :, None, None]


@contextlib.contextmanager
def socket(name: str) -> Iterator[None]:
    """Says in the library's errors which socket they are about, where they do not say so themselves."""
    try:
        yield
    except LDZNetError as error:
        if "socket" in str(error):
            raise
        raise type(error)(f"{error} (socket: {name})") from error


def guide_of(image: Float[Tensor, "b h w c"]) -> Float[Tensor, "b 3 h w"]:
    """RGB in [0, 1] of an IMAGE; an alpha channel is dropped, what lies outside of [0, 1] is cut."""
    if not isinstance(image, Tensor) or image.ndim != 4 or image.shape[-1] not in (3, 4):
        shape = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise InputError(f"Expected an IMAGE b h w 3, got {shape}. Connect an image. (socket: image)")
    return image[..., :3].movedim(-1, 1).float().clamp(0, 1)


def image_of(pictures: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b h w 3"]:
    """An IMAGE of RGB in [0, 1]."""
    return pictures.movedim(1, -1).contiguous()


def within(size: Size, most: int) -> Size:
    """`size` (height, width), scaled down where its longer side has more than `most` pixels."""
    scale = min(1, most / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def small(pictures: Float[Tensor, "b 3 h w"] | None) -> UInt8[Tensor, "b 3 H W"] | None:
    """RGB in [0, 1] for `Segmented.picture`: bytes on the CPU, at most `PREVIEW` pixels high and wide."""
    if pictures is None:
        return None
    reduced = resize(pictures, within((pictures.shape[2], pictures.shape[3]), PREVIEW))
    return (reduced.clamp(0, 1) * 255).round().to("cpu", torch.uint8)


def vae_latents_of(latent: Any) -> Float[Tensor, "b c h w"]:
    """The samples of a LATENT, pictures that are one frame each included; raises InputError for video, audio and nested
    latents."""
    samples = latent["samples"]
    if not getattr(samples, "is_nested", False) and samples.ndim == 5 and samples.shape[2] == 1:
        return samples[:, :, 0]
    if getattr(samples, "is_nested", False) or samples.ndim != 4:
        shape = "nested latents" if getattr(samples, "is_nested", False) else f"{tuple(samples.shape)}"
        raise InputError(
            f"Expected latents of pictures, b c h w, got {shape}: video or sound. Connect a picture's latent or one "
            "frame's, or give the frames as image, with the model's vae, in the place of the latent. (socket: latent)"
        )
    return samples


def require_latents(config: Any, vae_latents: Float[Tensor, "b c h w"] | None = None) -> None:
    """Raises InputError for a head that reads pixels, where latents alone are at hand, and for another model's latents.

    `config` is the head's, fitted to the model where there are latents: these are told by their channels, 4 for every
    Stable Diffusion up to SDXL, 16 for Flux and Z-Image.
    """
    if config.takes_pixels:
        raise InputError(
            "Expected a head that reads latents, got one (RGBNet) that reads pixels. Give Segment by Text an image and "
            "a vae in the place of the latent, or load another head. (socket: head)"
        )
    if vae_latents is not None and vae_latents.shape[1] != config.in_channels:
        raise InputError(
            f"Expected a latent of {config.in_channels} channels, as the model's own, got {vae_latents.shape[1]}: "
            "another model's. Give the picture itself as image, with this model's vae, in the place of the latent. "
            "(socket: latent)"
        )


def require_reading_samplers(head: Any) -> None:
    """Raises InputError for a head that cannot read a sampler's own passes."""
    if head.reads_concepts:
        raise InputError(
            f"Expected a head that reads the sampler's own steps, got {head.name}, which takes passes of its own. Take "
            "attention (no download), or leave head unconnected. (socket: head)"
        )


def frame(
    latents: Float[Tensor, "b c h w"], image: Float[Tensor, "b h w c"] | None, cell: int = PIXELS_PER_LATENT
) -> tuple[Size, Size, Size]:
    """(size to segment at, size of the picture, offset in it) of latents, with the picture they come from if any.

    `cell` pixels are a latent pixel high and wide. A picture of another size gives the mask its size. Raises InputError
    for one of another aspect than the latents'.
    """
    inner = (latents.shape[2] * cell, latents.shape[3] * cell)
    if image is None:
        return inner, inner, (0, 0)
    _require_images(image, latents.shape[0], "Connect the image that the latent was made from.")
    size = (image.shape[1], image.shape[2])
    cut, offset = _cut(size, cell)
    if cut == inner:
        return inner, size, offset
    _require_aspect(size, inner, cell, "Connect the image that the latent was made from, or none.")
    return size, size, (0, 0)


def _cut(size: Size, cell: int) -> tuple[Size, Size]:
    """What ComfyUI's VAE Encode leaves of a picture of `size`, and its offset (top, left) in it."""
    height, width = size
    left_over = (height % cell, width % cell)
    return (height - left_over[0], width - left_over[1]), (left_over[0] // 2, left_over[1] // 2)


def _require_images(image: Any, count: int, advice: str) -> None:
    """Raises InputError unless `image` is an IMAGE of one picture or of `count`."""
    guide_of(image[:1] if isinstance(image, Tensor) else image)
    if image.shape[0] not in (1, count):
        wanted = "one image" if count == 1 else f"one image or {count}"
        raise InputError(f"Expected {wanted}, got {image.shape[0]}. {advice} (socket: image)")


def _require_aspect(size: Size, inner: Size, cell: int, advice: str) -> None:
    """Raises InputError unless a picture of `size`, scaled, could be cut to `inner`: less than a cell of each side
    goes."""
    (height, width), (high, wide) = size, inner
    if height * wide > width * (high + cell) or width * high > height * (wide + cell):
        raise InputError(
            f"Expected an image of {high} x {wide} (height x width) or of that aspect, got {height} x {width}. "
            f"{advice} (socket: image)"
        )


def mask_of(mask: Tensor) -> Float[Tensor, "b h w"]:
    """A MASK: float32, contiguous, on the device that segmentations rest on (`comfyui.outputs_device`)."""
    return mask.float().contiguous()
