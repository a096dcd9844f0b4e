"""Segmentation Label Map: phrases compete for each pixel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from comfy_api.latest import io
from torch import Tensor

from ..ldznet import drawing, masks, piecewise
from ..ldznet.segmentation import Segmentation
from ..ldznet.shapes import PIXELS_PER_LATENT, Float, Int
from ._boundary import Segmented, image_of, mask_of
from ._schema import CATEGORY, BoxType, following_input, schema, segmentation_input, size_inputs

LEVELS = 255  # label k is k / 255, as a picture of 8 bits stores it


PROBABLE = "most probable first"
EVERY_SIZE = piecewise.Wanted()
LEAST = PIXELS_PER_LATENT**2  # pixels: what a latent cannot hold is no region
ORDERS: dict[str, Callable[[Seg], Any]] = {  # what regions are sorted by; like ones stay as they are
    "as labelled": lambda seg: 0,
    "largest first": lambda seg: -seg.cropped_mask.sum(),
    "left to right": lambda seg: seg.bbox[0],
    "top to bottom": lambda seg: seg.bbox[1],
}


class Seg(NamedTuple):
    """One region, with the fields of the Impact Pack's SEG."""

    cropped_image: Any
    cropped_mask: Any  # float numpy h w
    confidence: float
    crop_region: tuple[int, int, int, int]  # left, top, right, bottom
    bbox: tuple[int, int, int, int]
    label: str
    control_net_wrapper: Any = None


class LabelMap(io.ComfyNode):
    """Which phrase each pixel belongs to."""

    @classmethod
    def define_schema(cls) -> Any:
        """How ComfyUI shows the node: names, inputs, outputs."""
        return schema(
            node_id="LDZNetLabelMap",
            display_name="Segmentation Label Map",
            category=CATEGORY,
            description="Phrases and the background compete for each pixel: no two masks overlap.",
            search_aliases=["segmentation map", "SEGS", "bounding box", "bbox", "detailer", "color mask", "regional"],
            inputs=[
                segmentation_input(),
                following_input(
                    "background",
                    "It is the background's probability: a pixel where no phrase has more stays unlabelled.",
                ),
                *_region_inputs(),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def execute(
        cls,
        segmentation: Segmented,
        background: float,
        pieces: bool = True,
        min_area: int = LEAST,
        order: str = "as labelled",
        min_percent: float = 0.0,
        max_percent: float = 100.0,
        most: int = 0,
    ) -> Any:
        """Labels, their colours, regions, boxes, a legend and a mask per region, all of one decision per pixel."""
        result = segmentation.result
        soft = segmentation.soft()
        labels = masks.label_map(soft, segmentation.threshold_or(background))
        sizes = piecewise.Wanted(min_percent, max_percent)
        regions = [regions_of(labels[b], result, b, pieces, min_area, sizes) for b in range(len(labels))]
        if order == PROBABLE:
            regions = [_most_probable(soft[b], result.phrases, image) for b, image in enumerate(regions)]
        else:
            regions = [sorted(image, key=ORDERS[order]) for image in regions]
        regions = [image[: most or None] for image in regions]
        boxes = [[box_of(seg, result.calibrated) for seg in image] for image in regions]
        segs = [(segmentation.size, image) for image in regions]
        colour_map = image_of(drawing.colour_map(labels, len(result.phrases)))
        each = mask_of(masks_of(regions, labels))
        return io.NodeOutput(mask_of(labels / LEVELS), colour_map, segs, boxes, legend_of(result), each)


def regions_of(
    labels: Int[Tensor, "h w"],
    result: Segmentation,
    image: int,
    apart: bool,
    least: int,
    sizes: piecewise.Wanted = EVERY_SIZE,
) -> list[Seg]:
    """The regions of an image's phrases in their order, each phrase's largest first.

    `apart`: each connected piece is one, else all of a phrase. Pieces of fewer than `least` pixels, or not of `sizes`,
    are left out.
    """
    found = []
    for i, phrase in enumerate(result.phrases):
        parts = sizes.of(masks.pieces(labels == i + 1, least), labels.numel())
        for part in parts if apart or not parts else [masks.joined(parts)]:
            box = (part.left, part.top, part.right, part.bottom)
            found.append(Seg(None, part.mask.float().numpy(), float(result.scores[image, i]), box, box, phrase))
    return found


def masks_of(regions: list[list[Seg]], labels: Int[Tensor, "b h w"]) -> Float[Tensor, "n h w"]:
    """A mask of 0 and 1 for each region, image by image, in their order, at most `piecewise.MOST_PIECES` of an image.
    One of zeros where there is none."""
    chosen = [seg for image in regions for seg in image[: piecewise.MOST_PIECES]]
    each = torch.zeros(max(1, len(chosen)), *labels.shape[1:], dtype=torch.float32, device="cpu")
    for mask, seg in zip(each, chosen, strict=False):
        left, top, right, bottom = seg.bbox
        mask[top:bottom, left:right] = torch.from_numpy(seg.cropped_mask)
    return each.to(labels.device)


def _most_probable(soft: Float[Tensor, "p h w"], phrases: tuple[str, ...], regions: list[Seg]) -> list[Seg]:
    """Those of one image by the mean of their phrase's soft map within them, highest first."""

    def inside(seg: Seg) -> float:
        left, top, right, bottom = seg.bbox
        part = soft[phrases.index(seg.label), top:bottom, left:right].cpu()
        return -float(part[torch.from_numpy(seg.cropped_mask) > 0].mean())

    return sorted(regions, key=inside)


def legend_of(result: Segmentation) -> str:
    """A line per phrase, and one on scores that mean little."""
    hues = drawing.colours(len(result.phrases))
    lines = [f"{drawing.hexadecimal(hue)} {phrase}" for hue, phrase in zip(hues, result.phrases, strict=True)]
    return "\n".join([*lines, *filter(None, [result.caveat])])


def box_of(seg: Seg, calibrated: bool) -> dict[str, Any]:
    """As ComfyUI's detectors write a box, and whether its score says anything of whether the phrase is there."""
    left, top, right, bottom = seg.bbox
    size = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    return {**size, "label": seg.label, "score": seg.confidence, "calibrated": calibrated}


def _region_inputs() -> list[Any]:
    return [
        io.Boolean.Input(
            "pieces",
            optional=True,
            default=True,
            tooltip="On: each connected piece of a phrase is a region, with a box of its own. Off: all of a phrase is "
            "one region, with one box around it.",
        ),
        io.Int.Input(
            "min_area",
            optional=True,
            default=LEAST,
            min=0,
            max=2**20,
            tooltip="Pieces of fewer pixels are in no region or box; labels and colour map keep them. 64 pixels are "
            "one pixel of a latent.",
        ),
        io.Combo.Input(
            "order",
            optional=True,
            options=[*ORDERS, PROBABLE],
            default="as labelled",
            tooltip="Of regions, boxes and masks. as labelled: by phrase, each phrase's largest first. most probable "
            "first: by the mean probability within.",
        ),
        *size_inputs("region or box"),
    ]


def _outputs() -> list[Any]:
    return [
        io.Mask.Output("labels", display_name="labels", tooltip="Phrase k has the value k / 255, the background 0."),
        io.Image.Output(
            "colour_map", display_name="colour map", tooltip="Each phrase in a colour of its own, the background black."
        ),
        io.SEGS.Output(
            "segs",
            display_name="SEGS",
            is_output_list=True,
            tooltip="For the Impact Pack: regions, labelled with their phrases; one SEGS per image.",
        ),
        BoxType.Output(
            "boxes",
            display_name="boxes",
            tooltip="A list per image with a box for each region: x, y, width, height, label, score, calibrated.",
        ),
        io.String.Output("legend", display_name="legend", tooltip="A line per phrase: its colour, its name."),
        io.Mask.Output(
            "region_masks",
            display_name="region masks",
            tooltip="A batch with a mask for each region, in the order of the boxes, at most "
            f"{piecewise.MOST_PIECES} of an image; one of zeros where there is none.",
        ),
    ]
