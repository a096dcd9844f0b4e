"""Mask from Segmentation: which phrases, hard or soft, and what is done to the mask then."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..ldznet import masks, piecewise, shaping
from ..ldznet.shapes import Float
from ._boundary import Segmented, guide_of, mask_of, socket
from ._phrases import pick
from ._schema import CATEGORY, following_input, schema, segmentation_input, size_inputs

MODES = ("threshold", "soft")
PIECES = ("together", "one mask each")


class MaskFromSegmentation(io.ComfyNode):
    """One mask per image, or per connected piece."""

    @classmethod
    def define_schema(cls) -> Any:
        """How ComfyUI shows the node: names, inputs, outputs."""
        return schema(
            node_id="LDZNetMask",
            display_name="Mask from Segmentation",
            category=CATEGORY,
            description="A mask of some or all phrases: hard or soft, grown, feathered, cleaned, with crisp edges.",
            search_aliases=[
                "inpaint mask",
                "grow mask",
                "expand mask",
                "feather mask",
                "blur mask",
                "invert mask",
                "refine mask",
                "split mask",
                "mask to instances",
                "filter mask by size",
            ],
            inputs=[segmentation_input(), *_choice_inputs(), *_shape_inputs(), *_later_inputs()],
            outputs=[
                io.Mask.Output(
                    "mask",
                    display_name="mask",
                    tooltip="The chosen phrases together: one mask per image, or per piece.",
                ),
                io.Boolean.Output(
                    "found", display_name="found", tooltip="Whether the mask, before invert, holds anything at all."
                ),
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
        invert: bool = False,
        pieces: str = PIECES[0],
        min_percent: float = 0.0,
        max_percent: float = 100.0,
        most: int = 0,
    ) -> Any:
        """One mask of the chosen phrases per image, or one of each connected piece, after every step in the order of
        the inputs, and whether it holds anything."""
        from ..ldznet.hosts.comfyui import raise_if_cancelled as check

        chosen = segmentation.select(pick(phrases, segmentation.result.phrases))
        chosen = chosen if image is None else chosen.beside(image)
        mask = refined(chosen.soft().amax(dim=1), image, refine, check)
        inside = mask > chosen.threshold_or(threshold)
        mask = masks.ends_pulled(mask) if mode == "soft" else inside.float()
        wanted = piecewise.Wanted(min_percent, max_percent, most)
        mask = (piecewise.kept if pieces == PIECES[0] else piecewise.apart)(mask, inside, wanted)
        shape = shaping.Shape(drop_specks=drop_specks, fill_holes=fill_holes, grow=grow, feather=feather)
        mask = shaping.finished(mask, shape, check)
        return io.NodeOutput(mask_of(1 - mask if invert else mask), bool(mask.any()))


def refined(
    soft: Float[Tensor, "b h w"], image: Any, refine: str, check: masks.Check = masks.never
) -> Float[Tensor, "b h w"]:
    """`soft` with the edges of an `image` of its size, by the method named; as it is where no image is connected."""
    if refine == shaping.REFINES[0] or image is None:
        return soft
    guide = guide_of(image).to(soft.device).expand(soft.shape[0], -1, -1, -1)
    with socket("image"):
        return shaping.refined(soft, guide, refine, check)


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
            tooltip="threshold: 0 or 1. soft: the probability, with all up to 0.1 made 0 and all from 0.9 on made 1.",
        ),
        following_input(),
    ]


def _shape_inputs() -> list[Any]:
    return [
        io.Combo.Input(
            "refine",
            options=list(shaping.REFINES),
            default=shaping.REFINES[1],
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


def _later_inputs() -> list[Any]:
    return [
        io.Image.Input(
            "image",
            optional=True,
            tooltip="The picture that was segmented: connect it for crisp edges, and for a mask of its very size.",
        ),
        io.Boolean.Input(
            "invert",
            optional=True,
            default=False,
            tooltip="Everything but the phrases: 1 minus the mask, last of all. All of the picture where nothing was "
            "found.",
        ),
        io.Combo.Input(
            "pieces",
            optional=True,
            options=list(PIECES),
            default=PIECES[0],
            tooltip="one mask each: a batch with a mask for each connected piece, largest first, image by image; at "
            f"most {piecewise.MOST_PIECES} of an image. Each is grown and feathered by itself.",
        ),
        *size_inputs("mask"),
    ]
