"""Capture While Sampling, and Segment Captured: features from the sampler's own UNet calls, so that none is added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..ldznet.capture import ATTENTION, AttentionCapture, Capture, Typed
from ..ldznet.hosts.comfyui_capture import (
    Seen,
    every_phrase,
    quoted,
    require_blocks,
    run_of,
    said_in,
    taps_of,
    words_of,
)
from ..ldznet.predictor import Predictor
from ..ldznet.shapes import Float
from ._boundary import Segmented, frame, require_latents, require_reading_samplers, small, socket, vae_latents_of
from ._phrases import lines_of, read_phrases
from ._schema import (
    CATEGORY,
    INNER,
    MASK_BY_TEXT,
    RAW,
    CaptureType,
    HeadType,
    PromptsType,
    SegmentationType,
    head_input,
    schema,
    segment_outputs,
    text_input,
    threshold_input,
)
from .prompts import prompts_in
from .segment import at_rest, expanded, segmented

EMPTY = "every phrase of the prompt"


class CaptureWhileSampling(io.ComfyNode):
    """A MODEL whose samplers leave features behind."""

    @classmethod
    def define_schema(cls) -> Any:
        """How ComfyUI shows the node: names, inputs, outputs."""
        return schema(
            node_id="LDZNetCapture",
            display_name="Capture While Sampling",
            category=CATEGORY,
            description="Put it between the model and a sampler: Segment Captured then needs no UNet pass of its own. "
            "Give each sampler its own.",
            search_aliases=["attention capture", "attention map", "cross attention", "DAAM", "features", "hook"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model that the sampler would get: the head's own, or with the head attention SD 1.x, "
                    "SD 2.x, SDXL, SD 3, Flux, Qwen-Image, Z-Image and others.",
                ),
                head_input("Says which blocks are captured, and at which step."),
            ],
            outputs=[
                io.Model.Output(
                    "captured_model", display_name="model", tooltip="For the sampler; its pictures stay the same."
                ),
                CaptureType.Output("capture", display_name="capture", tooltip="For Segment Captured."),
            ],
        )

    @classmethod
    def execute(cls, model: Any, head: Any = None) -> Any:
        """A clone of the model that captures, and the capture that its samplers will fill. The given model stays as
        it is."""
        from ..ldznet.hosts import comfyui, comfyui_heads, comfyui_joint

        head = head or comfyui_heads.attention_head(model)
        require_reading_samplers(head)
        with socket("head"):
            host = comfyui_joint.host_of(model)
            config = Predictor(host, head.running()).config  # raises if the head does not fit
        require_latents(config)
        captured_model, capture = comfyui.capturing(host, config)
        capture.head = head
        return io.NodeOutput(captured_model, capture)


def captured_inputs(raw: dict[str, bool] | None = None) -> list[Any]:
    """What was sampled, what was captured, and what reads it."""
    return [
        io.Latent.Input("latent", extra_dict=raw, tooltip="As the sampler with the captured model gave it."),
        CaptureType.Input("capture", extra_dict=raw, tooltip="From the Capture While Sampling of that sampler."),
        io.Clip.Input("clip", extra_dict=raw, tooltip="The model's text encoder. Its last layer is used."),
    ]


def later_inputs(raw: dict[str, bool] | None = None) -> list[Any]:
    """The prompt that was sampled with, for the attention head, and the head."""
    prompt = io.String.Input(
        "prompt",
        optional=True,
        force_input=True,
        dynamic_prompts=False,
        tooltip="The very text that the positive CLIP Text Encode got, where the graph does not show it: unconnected, "
        "it is found by itself. With the head attention, phrases whose words stand in it are read from the sampling "
        "itself; all others take one pass of the UNet.",
    )
    prompt.extra_dict = raw or {}  # an argument of inputs without a widget alone in ComfyUI 0.3.64
    tooltip = "The head that Capture While Sampling has. Unconnected: that one."
    return [prompt, HeadType.Input("head", optional=True, extra_dict=raw, tooltip=tooltip)]


class SegmentCaptured(io.ComfyNode):
    """Masks of what a sampler has just made, without a UNet pass."""

    @classmethod
    def define_schema(cls) -> Any:
        """How ComfyUI shows the node: names, inputs, outputs."""
        return schema(
            node_id="LDZNetSegmentCaptured",
            display_name="Segment Captured",
            category=CATEGORY,
            description="As Segment by Text, from the features that Capture While Sampling kept.",
            search_aliases=MASK_BY_TEXT,
            inputs=[*captured_inputs(RAW), text_input(EMPTY), threshold_input(), *later_inputs(RAW)],
            outputs=segment_outputs(),
            hidden=[io.Hidden.dynprompt, io.Hidden.unique_id, io.Hidden.extra_pnginfo],
            enable_expand=True,
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, latent: Any, capture: Any, clip: Any, text: str, threshold: float, prompt: Any = None, head: Any = None
    ) -> Any:
        """The two inner nodes that do the work. What is linked comes as links, and goes on as links."""
        from ..ldznet.hosts import comfyui

        if lines_of(text):
            read_phrases(text)
        graph = comfyui.GraphBuilder()
        prompts = prompts_in(graph, comfyui.graph_of(cls.hidden), capture) if prompt is None else None
        links = {"latent": latent, "capture": capture, "clip": clip, "prompt": prompt, "head": head, "prompts": prompts}
        links = {name: link for name, link in links.items() if link is not None}
        return expanded(cls, graph, "LDZNetInnerCaptured", {**links, "text": text}, threshold)


class InnerCaptured(io.ComfyNode):
    """The dear part: text encoder and head."""

    @classmethod
    def define_schema(cls) -> Any:
        """How ComfyUI shows the node: names, inputs, outputs."""
        return schema(
            node_id="LDZNetInnerCaptured",
            display_name="Segment Captured: features",
            category=INNER,
            description="What Segment Captured expands to. Use that node.",
            is_dev_only=True,
            inputs=[*captured_inputs(), text_input(EMPTY), *later_inputs(), _prompts_input()],
            outputs=[
                SegmentationType.Output(
                    "segmentation", display_name="segmentation", tooltip="The soft maps and scores of every phrase."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        latent: Any,
        capture: Capture,
        clip: Any,
        text: str,
        prompt: str | None = None,
        head: Any = None,
        prompts: Sequence[Typed] | None = None,
    ) -> Any:
        """The soft maps, remembered by the run, the CLIP and the texts that they were made of."""
        from ..ldznet.hosts import comfyui, comfyui_joint

        samples, head = vae_latents_of(latent), head or capture.head
        require_latents(head.config)
        require_reading_samplers(head)
        require_blocks(capture, [ATTENTION] if head.reads_attention else list(head.config.tap_specs))
        run = run_of(capture, samples)
        said = [comfyui.typed(clip, prompt)] if prompt else list(prompts or [])

        def make() -> Segmented:
            host = comfyui_joint.host_of(capture.model, clip)
            with socket("head"):
                predictor = Predictor(host, head.running(), progress=comfyui.Progress())
            used = said_in(run, said)
            phrases = lines_of(text) or every_phrase(used or said)
            if isinstance(capture, AttentionCapture):
                with socket("text"):
                    seen = words_of(capture, run, said, phrases, host)
            else:
                seen = taps_of(run, capture.timestep)
            seen.notes.extend(quoted(used))
            return captured_maps(predictor, seen, phrases, samples)

        key = (text, *(typed.text for typed in said))
        return io.NodeOutput(head.memo.get([run or capture, clip, latent["samples"]], key, make))


def _prompts_input() -> Any:
    return PromptsType.Input("prompts", optional=True, tooltip="What the graph itself says of the prompt.")


def captured_maps(
    predictor: Predictor, seen: Seen, phrases: Sequence[str], vae_latents: Float[Tensor, "b c h w"]
) -> Segmented:
    """Segments the latents (before the scale factor) of a sampler by what was `seen` of its run, else by passes."""
    from ..ldznet.hosts import comfyui

    host: Any = predictor.host
    latents = comfyui.model_space(host.model, vae_latents)
    with socket("latent"):
        predictor.set_latents(latents, captured=seen.captured)
    with socket("text"):
        result = predictor.predict(phrases)
    _, size, offset = frame(vae_latents, None, predictor.config.pixels_per_latent)
    picture = small(comfyui.colours_of(host.model, latents))
    return segmented(predictor, at_rest(result, comfyui.outputs_device()), size, offset, seen.notes, picture=picture)
