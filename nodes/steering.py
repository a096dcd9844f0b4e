"""Region Prompts While Sampling, what it found, and Stop If Missing: masks that steer the very run they come from."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..ldznet.errors import InputError
from ..ldznet.predictor import Predictor
from ..ldznet.segmentation import Segmentation
from ..ldznet.steering import Plan, Region, Run, areas_of, lines_of, missing_in
from ._boundary import Segmented, frame, require_latents, require_reading_samplers, small, socket, vae_latents_of
from ._phrases import read_phrases, read_regions
from ._schema import (
    CATEGORY,
    FOLLOW,
    INNER,
    RAW,
    SegmentationType,
    SteeringType,
    head_input,
    schema,
    segment_outputs,
    text_input,
    threshold_input,
)
from .segment import at_rest, expanded, model_inputs

WAYS = ("cross-attention", "masked conditionings")
END, KEEP = "end the run with an error", "keep what there is"
SAMPLED, ENCODER = "The model that the sampler would get: SD 1.x, SD 2.x or SDXL.", "The model's text encoder."
UNKNOWN = (
    "nothing was steered of this latent: no sampler with the steered model returned it as it is, or its result came "
    "from the cache (then a new seed runs it again)"
)


class RegionPromptsWhileSampling(io.ComfyNode):
    """A MODEL whose samplers find regions by words, and go on with a prompt of its own in each."""

    @classmethod
    def define_schema(cls) -> Any:
        """How ComfyUI shows the node: names, inputs, outputs."""
        return schema(
            node_id="LDZNetSteer",
            display_name="Region Prompts While Sampling",
            category=CATEGORY,
            description='Lines "phrase => prompt": after a quarter of the steps each phrase is found in the picture '
            "that is being made, and its prompt takes over there. One sampler, one run, no mask to draw.",
            search_aliases=["regional prompt", "attention couple", "area prompt", "conditioning mask", "steer"],
            inputs=[
                *model_inputs(model=SAMPLED, clip=ENCODER),
                io.String.Input(
                    "regions",
                    multiline=True,
                    default="",
                    placeholder="a red star => a photo of a blue fish\ngrass => sand",
                    dynamic_prompts=False,
                    tooltip='Lines "phrase => prompt": where the phrase is found, its prompt goes on.',
                ),
                _after_input(
                    "after this share of the sampler's steps the phrases are looked for, and the prompts enter"
                ),
                io.Int.Input(
                    "refresh",
                    default=0,
                    min=0,
                    max=10000,
                    tooltip="Looks again after every so many steps. 0: once.",
                ),
                threshold_input(),
                io.Int.Input("grow", default=0, min=-512, max=512, tooltip="Grows each region by this many pixels."),
                io.Combo.Input(
                    "way",
                    options=list(WAYS),
                    default=WAYS[0],
                    tooltip="cross-attention: each region attends to its own prompt, at next to no cost. masked "
                    "conditionings: as with Conditioning (Set Mask), and a UNet row more for each region and step.",
                ),
                _head_input(),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                io.Model.Output("steered_model", display_name="model", tooltip="For the sampler."),
                SteeringType.Output("steering", display_name="steering", tooltip="For Regions Found."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        regions: str,
        after: float,
        refresh: int,
        threshold: float,
        grow: int,
        way: str,
        head: Any = None,
    ) -> Any:
        """A clone of the model, and what its samplers will leave. The given model stays as it is."""
        from ..ldznet.hosts import comfyui, comfyui_steering

        pairs = [Region(*pair) for pair in read_regions(regions)]
        phrases = list(dict.fromkeys(region.phrase for region in pairs))
        read_phrases("\n".join(phrases))

        def areas(found: Segmentation, size: tuple[int, int]) -> torch.Tensor | None:
            each = [region.phrase for region in pairs]
            return areas_of(found, each, size, threshold, grow, comfyui.raise_if_cancelled)

        look = _Looking(model, clip, head, phrases)
        texts = [comfyui_steering.Text.of(clip, region.prompt) for region in pairs]
        kind = comfyui_steering.BY_WAY[way]
        steering = kind(Plan(after / 100, refresh), look, areas, texts)
        steering.regions, steering.threshold = pairs, threshold
        if look.head.reads_attention:
            look.words = steering.words = comfyui_steering.Words(model, clip, look.config, cls.hidden.unique_id)
        return io.NodeOutput(comfyui_steering.steered(model, steering, look.additional), steering)


class RegionsFound(io.ComfyNode):
    """Where a sampler's regions were."""

    @classmethod
    def define_schema(cls) -> Any:
        """How ComfyUI shows the node: names, inputs, outputs."""
        return schema(
            node_id="LDZNetSteered",
            display_name="Regions Found",
            category=CATEGORY,
            description="What Region Prompts While Sampling found in the run of a sampler: masks, a report, and "
            "both in the node itself.",
            search_aliases=["regional prompt", "attention map", "preview mask"],
            inputs=_found_inputs(RAW),
            outputs=segment_outputs(),
            hidden=[io.Hidden.extra_pnginfo],
            enable_expand=True,
            is_output_node=True,
        )

    @classmethod
    def execute(cls, latent: Any, steering: Any) -> Any:
        """The two inner nodes that do the work. What is linked comes as links, and goes on as links."""
        from ..ldznet.hosts import comfyui

        links = {"latent": latent, "steering": steering}
        return expanded(cls, comfyui.GraphBuilder(), "LDZNetInnerSteered", links, FOLLOW)


class InnerSteered(io.ComfyNode):
    """What a run has found, as a segmentation."""

    @classmethod
    def define_schema(cls) -> Any:
        """How ComfyUI shows the node: names, inputs, outputs."""
        return schema(
            node_id="LDZNetInnerSteered",
            display_name="Regions Found: maps",
            category=INNER,
            description="What Regions Found expands to. Use that node.",
            is_dev_only=True,
            inputs=_found_inputs(),
            outputs=[
                SegmentationType.Output(
                    "segmentation", display_name="segmentation", tooltip="The soft maps and scores of every phrase."
                )
            ],
        )

    @classmethod
    def execute(cls, latent: Any, steering: Any) -> Any:
        """The soft maps of the last look; nothing, with the reason, where there was none."""
        from ..ldznet.hosts import comfyui

        samples = vae_latents_of(latent)
        _, size, offset = frame(samples, None)
        run = steering.returned(samples)
        found = None if run is None else run.found
        if found is None:
            phrases = tuple(dict.fromkeys(region.phrase for region in steering.regions))
            nothing = torch.full(
                (len(samples), len(phrases), *samples.shape[2:]), -20.0, dtype=torch.float32, device=samples.device
            )
            absent = torch.zeros(len(samples), len(phrases), dtype=torch.float32, device=samples.device)
            found = Segmentation(nothing, phrases, size, absent)
        notes = [UNKNOWN] if run is None else lines_of(run, steering.regions)
        picture = small(comfyui.colours_of(steering.model, comfyui.model_space(steering.model, samples)))
        result = at_rest(found, comfyui.outputs_device())
        return io.NodeOutput(Segmented(result, size, offset, tuple(notes), steering.threshold, picture))


class StopIfMissing(io.ComfyNode):
    """A MODEL whose samplers end early where what was asked for is not coming about."""

    @classmethod
    def define_schema(cls) -> Any:
        """How ComfyUI shows the node: names, inputs, outputs."""
        return schema(
            node_id="LDZNetStop",
            display_name="Stop If Missing",
            category=CATEGORY,
            description="Looks into the picture that is being made, and ends the run early where a phrase is not "
            "there: a bad seed costs a part of its time.",
            search_aliases=["early stop", "abort", "cancel", "check", "if", "steer"],
            inputs=[
                *model_inputs(model=SAMPLED, clip=ENCODER),
                text_input(),
                _after_input("after this share of the sampler's steps the phrases are looked for", 40.0),
                io.Combo.Input(
                    "missing",
                    options=[END, KEEP],
                    default=END,
                    tooltip="What happens where a phrase is missing: the run ends with a sentence that says which, or "
                    "with the picture as far as it is.",
                ),
                _head_input("; it must tell what is absent, which attention cannot on Stable Diffusion"),
            ],
            outputs=[io.Model.Output("watched_model", display_name="model", tooltip="For the sampler.")],
        )

    @classmethod
    def execute(cls, model: Any, clip: Any, text: str, after: float, missing: str, head: Any = None) -> Any:
        """A clone of the model. The given model stays as it is."""
        from ..ldznet.hosts import comfyui_steering

        phrases = read_phrases(text)
        look = _Looking(model, clip, head, phrases)
        if not look.calibrated:
            raise InputError(
                "Expected a head that tells what is absent, got one whose scores are not calibrated for this model. "
                "Load a trained head. (socket: head)"
            )

        def required(guider: Any, run: Run) -> Segmentation:
            found = look(guider, run)
            sentence = missing_in(found, run)
            if sentence and missing == KEEP and run.estimate is not None:
                raise comfyui_steering.Enough(run.estimate)
            if sentence:
                raise InputError(f"{sentence} Take another seed, or another prompt. (Stop If Missing)")
            return found

        steering = comfyui_steering.Steering(Plan(after / 100), required, lambda found, size: None)
        return io.NodeOutput(comfyui_steering.steered(model, steering, look.additional))


class _Looking:
    """Segments a sampler's estimate for `phrases`; all that a text encoder has to do is done before."""

    def __init__(self, model: Any, clip: Any, head: Any, phrases: list[str]) -> None:
        from ..ldznet.hosts import comfyui_heads, comfyui_steering

        head = head or comfyui_heads.attention_head(model)
        require_latents(head.config)
        require_reading_samplers(head)
        self.clip, self.head, self.phrases = clip, head, phrases
        self.encoded: dict[str, dict[str, torch.Tensor]] = {}
        host = comfyui_steering.SamplingHost(model, clip, self.encoded)
        with socket("head"):
            self.config = Predictor(host, head.running()).config
        with socket("clip"):
            host.encode(self.config, phrases)
        self.words: Any = None
        self.calibrated = self.config.calibrated
        self.additional = [] if head.reads_attention else [head.patcher]

    def __call__(self, guider: Any, run: Run) -> Segmentation:
        from ..ldznet.hosts import comfyui_steering

        host = comfyui_steering.SamplingHost(guider.model_patcher, self.clip, self.encoded)
        predictor = Predictor(host, self.head.running())
        seen = None if self.words is None else self.words.seen(host, self.phrases)
        if seen is not None and seen.captured is not None:
            run.notes = seen.notes
        assert run.estimate is not None  # or nobody would look
        predictor.set_latents(run.estimate, captured=None if seen is None else seen.captured)
        return predictor.predict(self.phrases)


def _found_inputs(raw: dict[str, bool] | None = None) -> list[Any]:
    return [
        io.Latent.Input("latent", extra_dict=raw, tooltip="As the sampler with the steered model gave it."),
        SteeringType.Input("steering", extra_dict=raw, tooltip="From the Region Prompts While Sampling before it."),
    ]


def _after_input(what: str, default: float = 25.0) -> Any:
    return io.Float.Input(
        "after", default=default, min=0.0, max=100.0, step=1.0, tooltip=f"In %: {what}. Never before the second step."
    )


def _head_input(more: str = "") -> Any:
    return head_input(f"What finds the phrases{more}.")
