"""Tiny World: the embedded model as real MODEL, CLIP and VAE."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ._schema import CATEGORY, schema


class TinyWorld(io.ComfyNode):
    """A Stable Diffusion of 128 x 128 pixels that comes with the pack."""

    @classmethod
    def define_schema(cls) -> Any:
        """How ComfyUI shows the node: names, inputs, outputs."""
        return schema(
            node_id="LDZNetTinyWorld",
            display_name="Tiny World",
            category=CATEGORY,
            description="The embedded toy model: everything can be tried on a CPU, in seconds, without a download. It "
            "draws simple scenes of 128 x 128 pixels (stars, fish, houses on grass, sand, night …).",
            inputs=[],
            outputs=[
                io.Model.Output("model", display_name="model", tooltip="A Stable Diffusion 1.x UNet of toy size."),
                io.Clip.Output("clip", display_name="clip", tooltip="Its text encoder, with a small vocabulary."),
                io.Vae.Output("vae", display_name="vae", tooltip="Its autoencoder."),
            ],
        )

    @classmethod
    def execute(cls) -> Any:
        """The embedded models in ComfyUI's own classes."""
        from ..ldznet.hosts import comfyui_world

        return io.NodeOutput(*comfyui_world.tiny_models())
