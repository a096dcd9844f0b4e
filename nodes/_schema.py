"""What the nodes' schemas share: socket types, inputs that several have, and what only newer ComfyUIs know."""

from __future__ import annotations

import dataclasses
from typing import Any

from comfy_api.latest import io

CATEGORY = "LD-ZNet"
FOLLOW = -1.0  # in the place of a threshold: that of the node that segmented
INNER = "LD-ZNet/inner"  # of the nodes that others expand to

HeadType = io.Custom("LDZNET_HEAD")
SegmentationType = io.Custom("LDZNET_SEGMENTATION")
CaptureType = io.Custom("LDZNET_CAPTURE")
SteeringType = io.Custom("LDZNET_STEERING")
PromptsType = io.Custom("LDZNET_PROMPTS")
MasksType = io.Custom("LDZNET_MASKS")
KeptType = io.Custom("LDZNET_KEPT")
BoxType = getattr(io, "BoundingBox", None) or io.Custom("BOUNDING_BOX")

MASK_BY_TEXT = [  # what people type who look for masks by words, other packs' names of it included
    *("mask by text", "text mask", "text to mask", "mask from text", "mask from prompt", "txt2mask", "prompt to mask"),
    *("inpaint mask", "auto mask", "object mask", "segment", "semantic segmentation", "attention map", "DAAM"),
    *(
        "clipseg",
        "segment anything",
        "SAM",
        "SAM3",
        "grounding dino",
        "groundingdino",
        "lang sam",
        "florence",
        "ldznet",
    ),
]
RAW = {"rawLink": True}  # the link itself, not its value: a MODEL passed as a value is never cached


def schema(**fields: Any) -> Any:
    """An io.Schema of those `fields` that this ComfyUI knows."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return io.Schema(**{name: value for name, value in fields.items() if name in known})


def text_input(empty: str = "") -> Any:
    """The phrases, one a line; `empty` says what none at all means."""
    return io.String.Input(
        "text",
        multiline=True,
        default="",
        placeholder=empty or "a red star\ngrass - the star\n# one phrase a line",
        dynamic_prompts=False,
        tooltip='What to find: one phrase a line. "a - b" leaves b out of a, "a | b" is either, "everything - a" the '
        'inverse, "background" what no other line covers. Lines that begin with # are comments.'
        + (f" Empty: {empty}." if empty else ""),
    )


def seed_input(tooltip: str) -> Any:
    """A seed that stays as it is from run to run."""
    return io.Int.Input("seed", default=0, min=0, max=2**32 - 1, control_after_generate=False, tooltip=tooltip)


def head_input(tooltip: str, raw: dict[str, bool] | None = None) -> Any:
    """What turns features into masks; unconnected it is the attention of the model, with nothing to load."""
    return HeadType.Input("head", optional=True, extra_dict=raw, tooltip=f"{tooltip} Unconnected: attention.")


def threshold_input() -> Any:
    """On probabilities, of a node that segments: what nodes after it follow."""
    return io.Float.Input(
        "threshold",
        default=0.5,
        min=0.0,
        max=1.0,
        step=0.01,
        tooltip="Pixels more probable than this are in the mask, here and in every node after this one whose own "
        "threshold is -1. Moving it re-runs only the cheap part.",
    )


def following_input(name: str = "threshold", what: str = "Pixels more probable than this are in the mask.") -> Any:
    """A threshold of a node's own, or `FOLLOW`; see `Segmented.threshold_or`."""
    return io.Float.Input(
        name,
        display_name=f"{name} (-1: follow)",
        default=FOLLOW,
        min=FOLLOW,
        max=1.0,
        step=0.01,
        tooltip=f"-1: the threshold of the node that segmented. From 0 on, this node's own. {what}",
    )


def size_inputs(what: str) -> list[Any]:
    """Which connected pieces: by their share of the picture, and how many; see `piecewise.Wanted`."""

    def share(name: str, side: str, default: float) -> Any:
        tooltip = f"Connected pieces {side} this share of the picture are in no {what}."
        return io.Float.Input(name, optional=True, default=default, min=0.0, max=100.0, step=0.1, tooltip=tooltip)

    return [
        share("min_percent", "under", 0.0),
        share("max_percent", "over", 100.0),
        io.Int.Input(
            "most", optional=True, default=0, min=0, max=4096, tooltip="At most so many pieces of an image; 0: all."
        ),
    ]


def segmentation_input() -> Any:
    """Soft maps of all phrases."""
    return SegmentationType.Input(
        "segmentation", tooltip="The output segmentation of Segment by Text or of Segment Captured."
    )


def segment_outputs() -> list[Any]:
    """The five outputs of both segmenting nodes."""
    return [
        io.Mask.Output("mask", display_name="mask", tooltip="All phrases together: one mask per image, 0 or 1."),
        io.Mask.Output(
            "masks",
            display_name="masks",
            is_output_list=True,
            tooltip="A list with the masks of each phrase, in the order typed.",
        ),
        SegmentationType.Output(
            "segmentation",
            display_name="segmentation",
            tooltip="Soft maps and scores of every phrase, for other nodes.",
        ),
        io.Boolean.Output("found", display_name="found", tooltip="Whether any phrase has a mask in any of the images."),
        io.String.Output("report", display_name="report", tooltip="Found, score and area of each phrase and image."),
    ]
