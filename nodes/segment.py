"""Segment by Text: one node for the user, two inside, so that moving the threshold never runs the UNet again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..ldznet.errors import InputError
from ..ldznet.predictor import RESOLUTIONS, Predictor
from ..ldznet.segmentation import Segmentation
from ..ldznet.shapes import Float, Size
from ._boundary import PREVIEW, Segmented, frame, guide_of, mask_of, require_latents, small, socket, vae_latents_of
from ._phrases import read_phrases
from ._schema import (
    CATEGORY,
    FOLLOW,
    INNER,
    MASK_BY_TEXT,
    RAW,
    KeptType,
    MasksType,
    SegmentationType,
    head_input,
    schema,
    seed_input,
    segment_outputs,
    text_input,
    threshold_input,
)
from ._showing import LIVE, OPACITY, Kept, in_a_page, show


def model_inputs(
    raw: dict[str, bool] | None = None,
    model: str = "The model whose features are read: the head's own, or with the head attention SD 1.x, SD 2.x, SDXL, "
    "SD 3, Flux, Qwen-Image, Z-Image and others. LoRAs are kept.",
    clip: str = "The model's text encoder. Its last layer is used.",
) -> list[Any]:
    """MODEL and CLIP, with what their tooltips say."""
    return [io.Model.Input("model", extra_dict=raw, tooltip=model), io.Clip.Input("clip", extra_dict=raw, tooltip=clip)]


def setting_inputs() -> list[Any]:
    """What changes the soft maps."""
    return [
        seed_input("Of the noise under which features are read. The same seed gives the same mask."),
        io.Int.Input(
            "ensemble",
            default=1,
            min=1,
            max=16,
            tooltip="Averages over this many noises and noise levels: steadier, and as many times slower.",
        ),
        io.Combo.Input(
            "resolution",
            options=list(RESOLUTIONS),
            default=RESOLUTIONS[0],
            tooltip="head: at the size that the head was trained at. native: at the picture's own.",
        ),
    ]


def picture_inputs(raw: dict[str, bool] | None = None) -> list[Any]:
    """What to segment, and what with."""
    return [
        io.Latent.Input(
            "latent", optional=True, extra_dict=raw, tooltip="From a KSampler or VAE Encode; the VAE is not touched."
        ),
        io.Image.Input(
            "image",
            optional=True,
            extra_dict=raw,
            tooltip="With vae: what to segment. With latent: gives the mask's size alone.",
        ),
        io.Vae.Input("vae", optional=True, extra_dict=raw, tooltip="Needed with an image and no latent."),
        head_input("From Load LD-ZNet Head; it must fit the model.", raw),
    ]


class SegmentByText(io.ComfyNode):
    """Masks of what the phrases name."""

    @classmethod
    def define_schema(cls) -> Any:
        """How ComfyUI shows the node: names, inputs, outputs."""
        return schema(
            node_id="LDZNetSegment",
            display_name="Segment by Text",
            category=CATEGORY,
            description="Words in, mask out, from the Stable Diffusion that is already loaded (LD-ZNet).",
            search_aliases=MASK_BY_TEXT,
            inputs=[*model_inputs(RAW), text_input(), threshold_input(), *setting_inputs(), *picture_inputs(RAW)],
            outputs=segment_outputs(),
            hidden=[io.Hidden.extra_pnginfo],
            enable_expand=True,
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        text: str,
        threshold: float,
        seed: int,
        ensemble: int,
        resolution: str,
        latent: Any = None,
        image: Any = None,
        vae: Any = None,
        head: Any = None,
    ) -> Any:
        """The two inner nodes that do the work. What is linked comes as links, and goes on as links."""
        from ..ldznet.hosts import comfyui

        read_phrases(text)
        links = {"model": model, "clip": clip, "head": head, "latent": latent, "image": image}
        if latent is None:
            links["vae"] = vae
            require_picture(image, vae)
        links = {name: link for name, link in links.items() if link is not None}
        settings = {"text": text, "seed": seed, "ensemble": ensemble, "resolution": resolution}
        return expanded(cls, comfyui.GraphBuilder(), "LDZNetInnerSegment", {**links, **settings}, threshold)


class InnerSegment(io.ComfyNode):
    """The dear part: text encoder, UNet and head."""

    @classmethod
    def define_schema(cls) -> Any:
        """How ComfyUI shows the node: names, inputs, outputs."""
        return schema(
            node_id="LDZNetInnerSegment",
            display_name="Segment by Text: features",
            category=INNER,
            description="What Segment by Text expands to. Use that node.",
            is_dev_only=True,
            inputs=[*model_inputs(), text_input(), *setting_inputs(), *picture_inputs()],
            outputs=[
                SegmentationType.Output(
                    "segmentation", display_name="segmentation", tooltip="The soft maps and scores of every phrase."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        text: str,
        seed: int,
        ensemble: int,
        resolution: str,
        latent: Any = None,
        image: Any = None,
        vae: Any = None,
        head: Any = None,
    ) -> Any:
        """The soft maps, remembered by everything that they were made of."""
        from ..ldznet.hosts import comfyui, comfyui_heads, comfyui_joint

        samples = None if latent is None else vae_latents_of(latent)
        settings: dict[str, Any] = {"seed": seed, "ensemble": ensemble, "resolution": resolution}

        def make() -> Segmented:
            with socket("head"):
                host = comfyui_joint.host_of(model, clip, vae)
                predictor = Predictor(host, head.running(), progress=comfyui.Progress(), **settings)
            return soft_maps(predictor, read_phrases(text), samples, image)

        head = head or comfyui_heads.attention_head(model)
        key = (text, *settings.values())
        return io.NodeOutput(head.memo.get([model, clip, vae, latent and latent["samples"], image], key, make))


def soft_maps(
    predictor: Predictor,
    phrases: Sequence[str],
    vae_latents: Float[Tensor, "b c h w"] | None,
    image: Float[Tensor, "b h w c"] | None,
) -> Segmented:
    """Segments latents before the scale factor, or the image where there are none."""
    from ..ldznet.hosts import comfyui

    host: Any = predictor.host
    if vae_latents is not None:
        require_latents(predictor.config, vae_latents)
        with socket("latent"):
            inner, size, offset = frame(vae_latents, image, predictor.config.pixels_per_latent)
            latents = comfyui.model_space(host.model, vae_latents)
            predictor.set_latents(latents, size=inner)
        picture = comfyui.colours_of(host.model, latents) if image is None else guide_of(image)
    else:
        require_picture(image, host.vae)
        assert image is not None
        picture = guide_of(image)
        with socket("image"):
            predictor.set_image(picture, value_range=(0, 1))
        size, offset = (image.shape[1], image.shape[2]), (0, 0)
    with socket("text"):
        result = predictor.predict(phrases)
    return segmented(predictor, at_rest(result, comfyui.outputs_device()), size, offset, picture=small(picture))


def segmented(
    predictor: Predictor, result: Segmentation, size: Size, offset: Size, notes: Sequence[str] = (), **more: Any
) -> Segmented:
    """What a segmenting node hands on; of a transformer, with a line that says what was read of it."""
    described = getattr(predictor.host, "described", None)
    told = [] if described is None else [described(predictor.config)]
    cell = predictor.config.pixels_per_latent
    return Segmented(result, size, offset, (*notes, *told), cell=cell, **more)


class InnerMasks(io.ComfyNode):
    """The cheap part: the threshold, here and for the nodes that follow it."""

    @classmethod
    def define_schema(cls) -> Any:
        """How ComfyUI shows the node: names, inputs, outputs."""
        return schema(
            node_id="LDZNetInnerMasks",
            display_name="Segment by Text: masks",
            category=INNER,
            description="What Segment by Text expands to. Use that node, or Mask from Segmentation.",
            is_dev_only=True,
            is_input_list=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[
                SegmentationType.Input("segmentation", tooltip="The soft maps and scores of every phrase."),
                threshold_input(),
                KeptType.Input("kept", optional=True, tooltip="What the node that was expanded shows, to be filled."),
            ],
            outputs=[
                io.Mask.Output("mask", display_name="mask", tooltip="All phrases together."),
                MasksType.Output("masks", display_name="masks", tooltip="One per phrase, as one value."),
                io.Boolean.Output("found", display_name="found", tooltip="Whether any phrase has a mask in any image."),
                io.String.Output("report", display_name="report", tooltip="Found, score, area."),
                SegmentationType.Output(
                    "following", display_name="segmentation", tooltip="The same, with the threshold for other nodes."
                ),
            ],
        )

    @classmethod
    def execute(cls, segmentation: list[Segmented], threshold: list[float], kept: Sequence[Kept] | None = None) -> Any:
        """Masks at the threshold, what the report says of them, and both in the node that was expanded. Inputs come as
        lists, so that a list of pictures can be told from a batch."""
        from ..ldznet.hosts.comfyui import raise_if_cancelled

        if len(segmentation) != 1:
            raise InputError(
                f"Expected one batch, got a list of {len(segmentation)}. Make a batch of it first: Rebatch Latents or "
                "Rebatch Images. (socket: latent or image)"
            )
        following = dataclasses.replace(segmentation[0], threshold=segmentation[0].threshold_or(threshold[0]))
        masks = following.masks(FOLLOW)
        each, text = [mask_of(masks[:, i]) for i in range(masks.shape[1])], report(following, masks)
        shown = show(following, masks, following.pictures(most=PREVIEW), OPACITY, raise_if_cancelled).in_node(cls)
        for outer in kept or ():
            outer.fill(shown)
        return io.NodeOutput(mask_of(masks.amax(dim=1)), each, bool(masks.any()), text, following, ui=shown)


def expanded(outer: Any, graph: Any, inner: str, inputs: dict[str, Any], threshold: float) -> Any:
    """The five outputs of the segmenting node `outer`, from its `inner` node and a threshold, in the `graph` that it
    builds."""
    dear, kept = graph.node(inner, **inputs), [Kept()] if in_a_page(outer) else []
    links = {"segmentation": dear.out(0), "threshold": threshold, **({"kept": kept[0]} if kept else {})}
    mask, masks, found, text, segmentation = map(graph.node("LDZNetInnerMasks", **links).out, range(5))
    shown = {LIVE: [kept[0].shown]} if kept else None
    return io.NodeOutput(mask, masks, segmentation, found, text, expand=graph.finalize(), ui=shown)


def require_picture(image: Any, vae: Any) -> None:
    """Raises InputError unless there is an image and what encodes it."""
    if image is None:
        raise InputError("Expected a latent, or an image and a vae, got neither. Connect one. (socket: latent)")
    if vae is None:
        raise InputError("Expected a vae with the image, got none. Connect the model's VAE, or a latent. (socket: vae)")


def report(segmentation: Segmented, masks: Float[Tensor, "b p h w"]) -> str:
    """A line for each image and phrase, then the remarks."""
    result, lines = segmentation.result, []
    for b in range(masks.shape[0]):
        for p, phrase in enumerate(result.phrases):
            state = result.state(b, p, float(masks[b, p].mean())).replace("%", "% of the picture")
            lines.append(f'image {b + 1}, "{phrase}": {state}, {result.score_text(b, p)}')
    return "\n".join([*lines, *segmentation.remarks()])


def at_rest(result: Segmentation, device: Any) -> Segmentation:
    """`result` on `device`, where outputs wait."""
    deviation = None if result.deviation is None else result.deviation.to(device)
    return dataclasses.replace(
        result, logits=result.logits.to(device), scores=result.scores.to(device), deviation=deviation
    )
