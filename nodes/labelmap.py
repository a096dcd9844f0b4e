"""Segmentation Label Map: phrases compete for each pixel."""

from __future__ import annotations

from typing import Any, NamedTuple

from comfy_api.latest import io
from torch import Tensor

from ..ldznet import drawing, masks
from ..ldznet.shapes import Bool, Int
from ._boundary import Segmented, image_of, mask_of
from ._schema import CATEGORY, BoxType, following_input, schema, segmentation_input

LEVELS = 255  # label k is k / 255, as a picture of 8 bits stores it


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
        """See ComfyNode."""
        return schema(
            node_id="LDZNetLabelMap",
            display_name="Segmentation Label Map",
            category=CATEGORY,
            description="Phrases and the background compete for each pixel: no two masks overlap.",
            search_aliases=["SEGS", "bounding box", "color mask", "regional"],
            inputs=[
                segmentation_input(),
                following_input(
                    "background",
                    "It is the background's probability: a pixel where no phrase has more stays unlabelled.",
                ),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def execute(cls, segmentation: Segmented, background: float) -> Any:
        """See ComfyNode."""
        result = segmentation.result
        labels = masks.label_map(segmentation.soft(), segmentation.threshold_or(background))
        count = len(result.phrases)
        regions = [regions_of(labels[b], result.phrases, result.scores[b]) for b in range(len(labels))]
        boxes = [[box_of(seg) for seg in image] for image in regions]
        hues = drawing.colours(count)
        legend = "\n".join(f"{drawing.hexadecimal(hues[i])} {phrase}" for i, phrase in enumerate(result.phrases))
        segs = [(segmentation.size, image) for image in regions]
        colour_map = image_of(drawing.colour_map(labels, count))
        return io.NodeOutput(mask_of(labels / LEVELS), colour_map, segs, boxes, legend)


def regions_of(labels: Int[Tensor, "h w"], phrases: tuple[str, ...], scores: Tensor) -> list[Seg]:
    """A Seg for each phrase that has pixels."""
    found = []
    for i, phrase in enumerate(phrases):
        inside = labels == i + 1
        if inside.any():
            left, top, right, bottom = box = bounds(inside)
            mask = inside[top:bottom, left:right].float().cpu().numpy()
            found.append(Seg(None, mask, float(scores[i]), box, box, phrase))
    return found


def bounds(inside: Bool[Tensor, "h w"]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what is inside; right and bottom are one beyond it."""
    rows, columns = inside.any(dim=1).nonzero(), inside.any(dim=0).nonzero()
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def box_of(seg: Seg) -> dict[str, Any]:
    """As ComfyUI's detectors write a box."""
    left, top, right, bottom = seg.bbox
    size = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    return {**size, "label": seg.label, "score": seg.confidence}


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
            tooltip="For the Impact Pack: a region per phrase, labelled with it; one SEGS per image.",
        ),
        BoxType.Output(
            "boxes", display_name="boxes", tooltip="A list per image of boxes with x, y, width, height, label, score."
        ),
        io.String.Output("legend", display_name="legend", tooltip="A line per phrase: its colour, its name."),
    ]
