"""Region Prompts: each prompt bound to the mask of its phrase."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..ldznet import masks
from ..ldznet.shapes import Float
from ._boundary import Segmented, mask_of
from ._phrases import pick, read_regions
from ._schema import CATEGORY, following_input, schema, segmentation_input


class RegionPrompts(io.ComfyNode):
    """CONDITIONING of several prompts, each in its place."""

    @classmethod
    def define_schema(cls) -> Any:
        """How ComfyUI shows the node: names, inputs, outputs."""
        return schema(
            node_id="LDZNetRegionPrompts",
            display_name="Region Prompts",
            category=CATEGORY,
            description="Binds prompts to the masks of phrases; ready for a KSampler's positive input.",
            search_aliases=["regional prompt", "area prompt", "prompt mask", "conditioning mask", "attention couple"],
            inputs=[segmentation_input(), *_inputs()],
            outputs=[
                io.Conditioning.Output(
                    "conditioning", display_name="conditioning", tooltip="For the positive input of a KSampler."
                ),
                io.Mask.Output(
                    "uncovered", display_name="background", tooltip="What no region covers: one mask per image."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        segmentation: Segmented,
        clip: Any,
        regions: str,
        background: str,
        strength: float,
        threshold: float,
        grow: int,
    ) -> Any:
        """The prompts, each bound to its mask. A phrase that was not found gets no region: its place belongs to the
        background."""
        from ..ldznet.hosts.comfyui import raise_if_cancelled as check

        areas = segmentation.masks(threshold)
        covered = areas.new_zeros((areas.shape[0], *areas.shape[2:]))
        conditioning: list[Any] = []
        for phrase, prompt in read_regions(regions):
            index = pick(phrase, segmentation.result.phrases, "regions")[0]
            area = masks.grow(areas[:, index], grow, check)
            if area.any():
                covered = covered.maximum(area)
                conditioning += bound(encoded(clip, prompt), area, strength)
        if not covered.all():
            conditioning += bound(encoded(clip, background), 1 - covered, 1.0)
        return io.NodeOutput(conditioning, mask_of(1 - covered))


def encoded(clip: Any, prompt: str) -> list[Any]:
    """CONDITIONING of `prompt`, as CLIP Text Encode makes it."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))


def bound(conditioning: list[Any], area: Float[Tensor, "b h w"], strength: float) -> list[Any]:
    """`conditioning` within `area` alone, under the keys that ComfyUI's samplers read."""
    keys = {"mask": mask_of(area), "set_area_to_bounds": False, "mask_strength": strength}
    return [[context, {**options, **keys}] for context, options in conditioning]


def _inputs() -> list[Any]:
    return [
        io.Clip.Input("clip", tooltip="Encodes the prompts."),
        io.String.Input(
            "regions",
            multiline=True,
            default="",
            placeholder="a red star => a blue fish\ngrass => sand",
            dynamic_prompts=False,
            tooltip='Lines "phrase => prompt": the prompt is painted where the phrase was found. Give the phrase, or '
            "its number from 1.",
        ),
        io.String.Input("background", multiline=True, default="", tooltip="The prompt for everything else."),
        io.Float.Input(
            "strength", default=1.0, min=0.0, max=10.0, step=0.05, tooltip="Of the regions against each other."
        ),
        following_input(),
        io.Int.Input("grow", default=0, min=-512, max=512, tooltip="Grows each region by this many pixels."),
    ]
