"""Preview Segmentation: an overlay with a legend, in the node."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..ldznet import masks
from ..ldznet.images import resize
from ..ldznet.shapes import Float
from ._boundary import Segmented, guide_of, image_of
from ._phrases import pick
from ._schema import CATEGORY, following_input, schema, segmentation_input
from ._showing import show


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
                io.String.Input(
                    "phrases",
                    optional=True,
                    default="",
                    placeholder="all",
                    dynamic_prompts=False,
                    tooltip="Which phrases are shown: their numbers from 1, with commas between. Empty: all of them. A "
                    "click on a line of the legend writes here.",
                ),
                io.Int.Input(
                    "grow",
                    optional=True,
                    default=0,
                    min=-512,
                    max=512,
                    tooltip="Grows what is shown by this many pixels; shrinks it below 0.",
                ),
            ],
            outputs=[
                io.Image.Output("overlay", display_name="overlay", tooltip="The pictures with the masks over them.")
            ],
        )

    @classmethod
    def execute(
        cls,
        segmentation: Segmented,
        threshold: float,
        opacity: float,
        image: Any = None,
        phrases: str = "",
        grow: int = 0,
    ) -> Any:
        """The overlays as IMAGE, and in the node what they are made of."""
        from ..ldznet.hosts.comfyui import raise_if_cancelled as check

        shown = framed(segmentation, image)
        chosen = pick(phrases.replace(",", "\n"), shown.result.phrases)
        areas = shown.masks(threshold)[:, chosen]
        grown = areas if grow == 0 else torch.stack([masks.grow(part, grow, check) for part in areas.unbind(1)], 1)
        seen = show(shown, grown, background_of(shown, image), opacity, check, chosen)
        return io.NodeOutput(image_of(seen.overlays), ui=seen.in_node(cls))


def framed(segmentation: Segmented, image: Any) -> Segmented:
    """In the frame of the pictures, if any; where those have another size, they are shown at the segmentation's."""
    if image is None:
        return segmentation
    beside = segmentation.beside(image)
    return beside if beside.result.size == segmentation.result.size else segmentation


def background_of(segmentation: Segmented, image: Any) -> Float[Tensor, "b 3 h w"]:
    """The pictures in [0, 1] at the segmentation's size: those given, else what was segmented."""
    if image is None:
        return segmentation.pictures()
    count = segmentation.result.logits.shape[0]
    return resize(guide_of(image).cpu(), segmentation.size).clamp(0, 1).expand(count, -1, -1, -1)
