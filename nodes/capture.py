"""Capture While Sampling, and Segment Captured: features from the sampler's own UNet calls, so that none is added."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.latest import io

from ..ldznet.hosts.capturing import Capture, Run, require_blocks
from ..ldznet.predictor import Predictor, require_fit
from ._boundary import Segmented, frame, socket, vae_latents_of
from ._phrases import read_phrases
from ._schema import (
    CATEGORY,
    INNER,
    RAW,
    CaptureType,
    HeadType,
    SegmentationType,
    schema,
    segment_outputs,
    text_input,
    threshold_input,
)
from .segment import at_rest, expanded


class CaptureWhileSampling(io.ComfyNode):
    """A MODEL whose samplers leave features behind."""

    @classmethod
    def define_schema(cls) -> Any:
        """See ComfyNode."""
        return schema(
            node_id="LDZNetCapture",
            display_name="Capture While Sampling",
            category=CATEGORY,
            description="Put it between the model and a sampler: Segment Captured then needs no UNet pass of its own. "
            "Give each sampler its own.",
            search_aliases=["attention capture", "features", "hook"],
            inputs=[
                io.Model.Input("model", tooltip="The SD 1.x model that the sampler would get."),
                HeadType.Input("head", tooltip="Says which blocks are captured, and at which step."),
            ],
            outputs=[
                io.Model.Output(
                    "captured_model", display_name="model", tooltip="For the sampler; its pictures stay the same."
                ),
                CaptureType.Output("capture", display_name="capture", tooltip="For Segment Captured."),
            ],
        )

    @classmethod
    def execute(cls, model: Any, head: Any) -> Any:
        """See ComfyNode."""
        from ..ldznet.hosts import comfyui

        with socket("head"):
            require_fit(comfyui.ComfyHost(model), head.config)
        return io.NodeOutput(*comfyui.capturing(model, list(head.config.tap_specs), head.config.timestep))


def captured_inputs(raw: dict[str, bool] | None = None) -> list[Any]:
    """What was sampled, what was captured, and what reads it."""
    return [
        io.Latent.Input("latent", extra_dict=raw, tooltip="As the sampler with the captured model gave it."),
        CaptureType.Input("capture", extra_dict=raw, tooltip="From the Capture While Sampling of that sampler."),
        io.Clip.Input("clip", extra_dict=raw, tooltip="The model's text encoder. Its last layer is used."),
        HeadType.Input("head", extra_dict=raw, tooltip="The head that Capture While Sampling has."),
    ]


class SegmentCaptured(io.ComfyNode):
    """Masks of what a sampler has just made, without a UNet pass."""

    @classmethod
    def define_schema(cls) -> Any:
        """See ComfyNode."""
        return schema(
            node_id="LDZNetSegmentCaptured",
            display_name="Segment Captured",
            category=CATEGORY,
            description="As Segment by Text, from the features that Capture While Sampling kept.",
            search_aliases=["text to mask", "ldznet"],
            inputs=[*captured_inputs(RAW), text_input(), threshold_input()],
            outputs=segment_outputs(),
            enable_expand=True,
        )

    @classmethod
    def execute(cls, latent: Any, capture: Any, clip: Any, head: Any, text: str, threshold: float) -> Any:
        """See ComfyNode. What is linked comes as links, and goes on as links."""
        read_phrases(text)
        links = {"latent": latent, "capture": capture, "clip": clip, "head": head}
        return expanded("LDZNetInnerCaptured", {**links, "text": text}, threshold)


class InnerCaptured(io.ComfyNode):
    """The dear part: text encoder and head."""

    @classmethod
    def define_schema(cls) -> Any:
        """See ComfyNode."""
        return schema(
            node_id="LDZNetInnerCaptured",
            display_name="Segment Captured: features",
            category=INNER,
            description="What Segment Captured expands to. Use that node.",
            is_dev_only=True,
            inputs=[*captured_inputs(), text_input()],
            outputs=[
                SegmentationType.Output(
                    "segmentation", display_name="segmentation", tooltip="The soft maps and scores of every phrase."
                )
            ],
        )

    @classmethod
    def execute(cls, latent: Any, capture: Capture, clip: Any, head: Any, text: str) -> Any:
        """See ComfyNode."""
        samples = vae_latents_of(latent)
        require_blocks(capture, list(head.config.tap_specs))
        run = capture.of(samples)

        def make() -> Segmented:
            return captured_maps(capture, run, (clip, head), read_phrases(text), samples)

        return io.NodeOutput(head.memo.get([run, clip, samples], text, make))


def captured_maps(
    capture: Capture, run: Run, models: tuple[Any, Any], phrases: Sequence[str], vae_latents: torch.Tensor
) -> Segmented:
    """Of a sampler's run, (CLIP, head), and the latents before the scale factor that it returned."""
    from ..ldznet.hosts import comfyui

    notes, (clip, head) = capture.notes(run), models
    host = comfyui.ComfyHost(capture.model, clip)
    with socket("head"):
        predictor = Predictor(host, comfyui.RunningHead(head), progress=comfyui.Progress())
    latents = comfyui.model_space(capture.model, vae_latents)
    with socket("latent"):
        predictor.set_latents(latents, taps=_taps(run, predictor, latents))
    with socket("text"):
        result = predictor.predict(phrases)
    if not run.rows:
        result = dataclasses.replace(result, scores=torch.zeros_like(result.scores))
    _, size, offset = frame(vae_latents, None)
    return Segmented(at_rest(result, comfyui.outputs_device()), size, offset, tuple(notes))


def _taps(run: Run, predictor: Predictor, latents: torch.Tensor) -> dict[str, torch.Tensor]:
    """The run's taps; of zeros where only crops ran, since nothing will be found then."""
    if run.rows:
        return run.taps()
    sizes = {block: spec.channels for block, spec in predictor.config.tap_specs.items()}
    return {block: latents.new_zeros(len(latents), channels, 1, 1) for block, channels in sizes.items()}
