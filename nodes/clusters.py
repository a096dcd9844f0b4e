"""Regions without Words, and Smooth over Frames."""

from __future__ import annotations

import dataclasses
from typing import Any

from comfy_api.latest import io

from ..ldznet import clustering, frames
from ..ldznet.predictor import Predictor
from ._boundary import Segmented, socket, vae_latents_of
from ._schema import CATEGORY, SegmentationType, schema, seed_input, segmentation_input
from .segment import model_inputs, require_picture, soft_maps


class RegionsWithoutWords(io.ComfyNode):
    """What the model itself sees as one."""

    @classmethod
    def define_schema(cls) -> Any:
        """How ComfyUI shows the node: names, inputs, outputs."""
        return schema(
            node_id="LDZNetClusters",
            display_name="Regions without Words",
            category=CATEGORY,
            description="Parts a picture into so many regions that the model sees alike (k-means over its features or "
            "its self-attention). They have numbers, no names.",
            search_aliases=["cluster", "k-means", "segment everything", "auto mask", "superpixel", "unsupervised"],
            inputs=[
                *model_inputs(model="The model whose features are read: SD 1.x, SD 2.x or SDXL. LoRAs are kept."),
                io.Int.Input(
                    "count",
                    default=5,
                    min=2,
                    max=clustering.MOST,
                    tooltip="How many regions. The largest is region 1.",
                ),
                io.Combo.Input(
                    "source",
                    options=list(clustering.KINDS),
                    default=clustering.KINDS[0],
                    tooltip="features: hidden states of the UNet's early blocks. self-attention: where each place "
                    "looks.",
                ),
                seed_input("Of the noise, and of the places that the regions grow from."),
                io.Latent.Input("latent", optional=True, tooltip="From a KSampler or VAE Encode."),
                io.Image.Input("image", optional=True, tooltip="With vae: the picture. With latent: its size alone."),
                io.Vae.Input("vae", optional=True, tooltip="Needed with an image and no latent."),
            ],
            outputs=[
                SegmentationType.Output(
                    "segmentation",
                    display_name="segmentation",
                    tooltip="Regions 1, 2, 3 … for Label Map, Mask from Segmentation, Preview.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        count: int,
        source: str,
        seed: int,
        latent: Any = None,
        image: Any = None,
        vae: Any = None,
    ) -> Any:
        """A segmentation whose phrases are the regions' names."""
        from ..ldznet.hosts import comfyui

        samples = None if latent is None else vae_latents_of(latent)
        if samples is None:
            require_picture(image, vae)
        head = clustering.ClusterHead(source)
        with socket("model"):
            host = comfyui.ComfyHost(model, clip, vae)
            predictor = Predictor(host, head, seed=seed, progress=comfyui.Progress())
        names = [f"region {i + 1}" for i in range(count)]
        return io.NodeOutput(soft_maps(predictor, names, samples, image))


class SmoothOverFrames(io.ComfyNode):
    """Masks of a video that flicker less."""

    @classmethod
    def define_schema(cls) -> Any:
        """How ComfyUI shows the node: names, inputs, outputs."""
        return schema(
            node_id="LDZNetFrames",
            display_name="Smooth over Frames",
            category=CATEGORY,
            description="Where the pictures are the frames of a video: soft maps and scores smoothed over time, so "
            "that masks flicker less.",
            search_aliases=["video", "temporal", "flicker", "frames", "stabilize mask"],
            inputs=[
                segmentation_input(),
                io.Float.Input(
                    "strength",
                    default=0.5,
                    min=0.0,
                    max=frames.MOST,
                    step=0.01,
                    tooltip="0: as it is. A frame at distance n weighs about strength to the power of n. Less for what "
                    "moves fast.",
                ),
            ],
            outputs=[
                SegmentationType.Output(
                    "smoothed", display_name="segmentation", tooltip="The same, smoothed, for the nodes that follow."
                )
            ],
        )

    @classmethod
    def execute(cls, segmentation: Segmented, strength: float) -> Any:
        """The same segmentation with other maps."""
        result = frames.steadied(segmentation.result, strength)
        return io.NodeOutput(dataclasses.replace(segmentation, result=result))
