"""Preview Segmentation: an overlay with a legend, in the node."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from comfy_api.latest import io, ui
from torch import Tensor

from ..ldznet import drawing
from ..ldznet.images import resize
from ..ldznet.shapes import Float
from ._boundary import Segmented, guide_of, image_of
from ._schema import CATEGORY, following_input, schema, segmentation_input

GREY = 0.5  # of the picture where none is connected


class PreviewSegmentation(io.ComfyNode):
    """What was found, where, and how sure it is."""

    @classmethod
    def define_schema(cls) -> Any:
        """How ComfyUI shows the node: names, inputs, outputs."""
        return schema(
            node_id="LDZNetPreview",
            display_name="Preview Segmentation",
            category=CATEGORY,
            description="Shows every phrase's mask over the picture, with its share of the picture and its score.",
            search_aliases=["preview mask", "show mask", "mask overlay", "segmentation overlay"],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[
                segmentation_input(),
                following_input(),
                io.Float.Input("opacity", default=0.6, min=0.0, max=1.0, step=0.05, tooltip="Of the colours."),
                io.Image.Input("image", optional=True, tooltip="The picture that was segmented."),
            ],
            outputs=[
                io.Image.Output("overlay", display_name="overlay", tooltip="The pictures with the masks over them.")
            ],
        )

    @classmethod
    def execute(cls, segmentation: Segmented, threshold: float, opacity: float, image: Any = None) -> Any:
        """The overlays as IMAGE, and in the node with their legends."""
        from ..ldznet.hosts.comfyui import raise_if_cancelled as check

        shown = framed(segmentation, image)
        masks = shown.masks(threshold).cpu()
        pictures = background_of(shown, image)
        hues = drawing.contrasting(pictures, masks)
        overlays = drawing.overlay(pictures, masks, opacity, hues, check)
        areas = masks.mean(dim=(2, 3))
        legends = [legend(shown, b, areas[b]) for b in range(len(overlays))]
        notes = segmentation.remarks()
        pages = [drawing.with_legend(*part, hues, notes) for part in zip(overlays, legends, strict=True)]
        preview = ui.PreviewImage(image_of(stacked(pages)), cls=cls).as_dict()
        return io.NodeOutput(image_of(overlays), ui={**preview, "text": texts(legends, notes)})


def framed(segmentation: Segmented, image: Any) -> Segmented:
    """In the frame of the pictures, if any; where those have another size, they are shown at the segmentation's."""
    if image is None:
        return segmentation
    beside = segmentation.beside(image)
    return beside if beside.result.size == segmentation.result.size else segmentation


def background_of(segmentation: Segmented, image: Any) -> Float[Tensor, "b 3 h w"]:
    """The pictures in [0, 1] at the segmentation's size; grey ones where there are none."""
    count = segmentation.result.logits.shape[0]
    if image is None:
        return torch.full((count, 3, *segmentation.size), GREY, dtype=torch.float32, device="cpu")
    return resize(guide_of(image).cpu(), segmentation.size).clamp(0, 1).expand(count, -1, -1, -1)


def legend(segmentation: Segmented, image: int, areas: Float[Tensor, " p"]) -> list[str]:
    """A line per phrase: its share of the picture, or that it was not found, and its score."""
    result = segmentation.result
    states = [result.state(image, i, float(area)) for i, area in enumerate(areas)]
    return [
        f"{p}: {s}, {result.score_text(image, i)}" for i, (p, s) in enumerate(zip(result.phrases, states, strict=True))
    ]


def texts(legends: list[list[str]], notes: list[str]) -> list[str]:
    """All legends as one text per image: for pages that show it, and for those who read the history."""
    return ["\n".join([*lines, *notes]) for lines in legends]


def stacked(pages: list[Float[Tensor, "3 h w"]]) -> Float[Tensor, "b 3 h w"]:
    """As one batch, on white: the legend of one picture may have more lines than another's."""
    height = max(page.shape[1] for page in pages)
    return torch.stack([F.pad(page, (0, 0, 0, height - page.shape[1]), value=1.0) for page in pages])
