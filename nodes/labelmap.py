"""Segmentation Label Map: phrases compete for each pixel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from comfy_api.latest import io
from torch import Tensor

from ..ldznet import drawing, masks
from ..ldznet.segmentation import Segmentation
from ..ldznet.shapes import PIXELS_PER_LATENT, Int
from ._boundary import Segmented, image_of, mask_of
from ._schema import CATEGORY, BoxType, following_input, schema, segmentation_input

LEVELS = 255  # label k is k / 255, as a picture of 8 bits stores it


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
    ) -> Any:
        """Labels, their colours, regions, boxes and a legend, all of one decision per pixel."""
        result = segmentation.result
        labels = masks.label_map(segmentation.soft(), segmentation.threshold_or(background))
        regions = [regions_of(labels[b], result, b, pieces, min_area) for b in range(len(labels))]
        regions = [sorted(image, key=ORDERS[order]) for image in regions]
        boxes = [[box_of(seg, result.calibrated) for seg in image] for image in regions]
        segs = [(segmentation.size, image) for image in regions]
        colour_map = image_of(drawing.colour_map(labels, len(result.phrases)))
        return io.NodeOutput(mask_of(labels / LEVELS), colour_map, segs, boxes, legend_of(result))


def regions_of(labels: Int[Tensor, "h w"], result: Segmentation, image: int, apart: bool, least: int) -> list[Seg]:
    """The regions of an image's phrases in their order, each phrase's largest first.

    `apart`: each connected piece is one, else all of a phrase. Pieces of fewer than `least` pixels are left out.
    """
    found = []
    for i, phrase in enumerate(result.phrases):
        parts = masks.pieces(labels == i + 1, least)
        for part in parts if apart or not parts else [masks.joined(parts)]:
            box = (part.left, part.top, part.right, part.bottom)
            found.append(Seg(None, part.mask.float().numpy(), float(result.scores[image, i]), box, box, phrase))
    return found


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
            options=list(ORDERS),
            default="as labelled",
            tooltip="Of regions and boxes. as labelled: by phrase, each phrase's largest first.",
        ),
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
    ]
