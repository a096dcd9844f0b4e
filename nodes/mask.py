"""Mask from Segmentation: which phrases, hard or soft, and what is done to the mask then."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..ldznet import masks
from ..ldznet.shapes import Float
from ._boundary import Segmented, guide_of, mask_of, socket
from ._phrases import pick
from ._schema import CATEGORY, following_input, schema, segmentation_input

MODES = ("threshold", "soft")
REFINES = ("none", "guided filter", "PAMR")


class MaskFromSegmentation(io.ComfyNode):
    """One mask per image."""

    @classmethod
    def define_schema(cls) -> Any:
        """See ComfyNode."""
        return schema(
            node_id="LDZNetMask",
            display_name="Mask from Segmentation",
            category=CATEGORY,
            description="A mask of some or all phrases: hard or soft, grown, feathered, cleaned, with crisp edges.",
            search_aliases=["grow mask", "feather mask", "refine mask"],
            inputs=[segmentation_input(), *_choice_inputs(), *_shape_inputs(), _image_input()],
            outputs=[
                io.Mask.Output("mask", display_name="mask", tooltip="The chosen phrases together: one mask per image."),
                io.Boolean.Output("found", display_name="found", tooltip="Whether any chosen phrase is in any image."),
            ],
        )

    @classmethod
    def execute(
        cls,
        segmentation: Segmented,
        phrases: str,
        mode: str,
        threshold: float,
        refine: str,
        fill_holes: bool,
        drop_specks: int,
        grow: int,
        feather: int,
        image: Any = None,
    ) -> Any:
        """See ComfyNode."""
        chosen = pick(phrases, segmentation.result.phrases)
        soft = segmentation.soft()[:, chosen].amax(dim=1)
        mask = refined(soft, image, refine)
        if mode == "threshold":
            mask = (mask > segmentation.threshold_or(threshold)).float()
        mask = masks.drop_specks(mask, drop_specks)
        mask = masks.fill_holes(mask) if fill_holes else mask
        mask = masks.feather(masks.grow(mask, grow), feather)
        return io.NodeOutput(mask_of(mask), bool(segmentation.result.found[:, chosen].any()))


def refined(soft: Float[Tensor, "b h w"], image: Any, refine: str) -> Float[Tensor, "b h w"]:
    """`soft` with the edges of `image`, by the method named; as it is where no image is connected."""
    if refine == "none" or image is None:
        return soft
    guide = guide_of(image).to(soft.device)
    guide = guide.expand(soft.shape[0], -1, -1, -1) if guide.shape[0] == 1 else guide
    with socket("image"):
        return masks.guided_filter(soft, guide) if refine == "guided filter" else masks.pamr(soft, guide)


def _choice_inputs() -> list[Any]:
    return [
        io.String.Input(
            "phrases",
            multiline=True,
            default="",
            placeholder="all",
            dynamic_prompts=False,
            tooltip="Which phrases: their numbers from 1, or the phrases themselves, one a line. Empty: all of them.",
        ),
        io.Combo.Input(
            "mode",
            options=list(MODES),
            default=MODES[0],
            tooltip="threshold: 0 or 1. soft: the probability itself, 0 for a phrase that was not found.",
        ),
        following_input(),
    ]


def _shape_inputs() -> list[Any]:
    return [
        io.Combo.Input(
            "refine",
            options=list(REFINES),
            default=REFINES[1],
            tooltip="Moves the soft edges to those of the image, before the threshold. Without an image they stay.",
        ),
        io.Boolean.Input("fill_holes", default=False, tooltip="Fills what the mask encloses."),
        io.Int.Input(
            "drop_specks", default=0, min=0, max=2**20, tooltip="Drops pieces of fewer pixels than this; 0 keeps all."
        ),
        io.Int.Input(
            "grow", default=0, min=-512, max=512, tooltip="Grows the mask by this many pixels; shrinks it below 0."
        ),
        io.Int.Input("feather", default=0, min=0, max=512, tooltip="Softens the edge over about this many pixels."),
    ]


def _image_input() -> Any:
    return io.Image.Input("image", optional=True, tooltip="The picture that was segmented: connect it for crisp edges.")
