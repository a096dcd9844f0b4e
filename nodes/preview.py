"""Preview Segmentation: an overlay with a legend, in the node."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from comfy_api.latest import io, ui
from torch import Tensor

from ..ldznet import drawing
from ..ldznet.errors import InputError
from ..ldznet.images import resize
from ..ldznet.shapes import Float
from ._boundary import Segmented, guide_of, image_of
from ._schema import CATEGORY, following_input, schema, segmentation_input

GREY = 0.5  # of the picture where none is connected


class PreviewSegmentation(io.ComfyNode):
    """What was found, where, and how sure it is."""

    @classmethod
    def define_schema(cls) -> Any:
        """See ComfyNode."""
        return schema(
            node_id="LDZNetPreview",
            display_name="Preview Segmentation",
            category=CATEGORY,
            description="Shows every phrase's mask over the picture, with its share of the picture and its score.",
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
        """See ComfyNode."""
        masks = segmentation.masks(threshold).cpu()
        pictures = background_of(segmentation, image)
        overlays = drawing.overlay(pictures, masks, opacity)
        areas = masks.mean(dim=(2, 3))
        pages = [drawing.with_legend(overlays[b], legend(segmentation, b, areas[b])) for b in range(len(overlays))]
        return io.NodeOutput(image_of(overlays), ui=ui.PreviewImage(image_of(stacked(pages)), cls=cls))


def background_of(segmentation: Segmented, image: Any) -> torch.Tensor:
    """The pictures b 3 h w in [0, 1] at the segmentation's size; grey ones where there are none."""
    count = segmentation.result.logits.shape[0]
    if image is None:
        return torch.full((count, 3, *segmentation.size), GREY)
    pictures = resize(guide_of(image).cpu(), segmentation.size).clamp(0, 1)
    if len(pictures) not in (1, count):
        raise InputError(
            f"Expected 1 or {count} images, got {len(pictures)}. Connect what was segmented. (socket: image)"
        )
    return pictures.expand(count, -1, -1, -1)


def legend(segmentation: Segmented, image: int, areas: Float[Tensor, " p"]) -> list[str]:
    """A line per phrase: its share of the picture, or that it was not found, and its score."""
    result = segmentation.result
    found, scores = result.found[image].tolist(), result.scores[image].tolist()
    shares = [
        f"{100 * area:.1f} %" if there else "not found" for area, there in zip(areas.tolist(), found, strict=True)
    ]
    return [f"{p}: {share}, score {score:.2f}" for p, share, score in zip(result.phrases, shares, scores, strict=True)]


def stacked(pages: list[Float[Tensor, "3 h w"]]) -> Float[Tensor, "b 3 h w"]:
    """As one batch, on white: the legend of one picture may have more lines than another's."""
    height = max(page.shape[1] for page in pages)
    return torch.stack([F.pad(page, (0, 0, 0, height - page.shape[1]), value=1.0) for page in pages])
