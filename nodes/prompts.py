"""The prompt that a sampler was given, found without a wire: what Segment Captured expands to for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

from ..ldznet.hosts.comfyui_graph import encoders_of
from ._schema import INNER, PromptsType, schema


class InnerPrompt(io.ComfyNode):
    """A text of the graph, encoded with the CLIP that the graph has for it."""

    @classmethod
    def define_schema(cls) -> Any:
        """How ComfyUI shows the node: names, inputs, outputs."""
        return schema(
            node_id="LDZNetInnerPrompt",
            display_name="Segment Captured: prompt",
            category=INNER,
            description="What Segment Captured expands to. Use that node.",
            is_dev_only=True,
            inputs=[
                io.Clip.Input("clip", tooltip="As the prompt's own text encoder has it."),
                io.String.Input("text", force_input=True, dynamic_prompts=False, tooltip="The prompt."),
                PromptsType.Input("earlier", optional=True, tooltip="Prompts that this one is put behind."),
            ],
            outputs=[PromptsType.Output("prompts", display_name="prompts", tooltip="All prompts so far, encoded.")],
        )

    @classmethod
    def execute(cls, clip: Any, text: str, earlier: Any = None) -> Any:
        """One more prompt, behind the earlier ones."""
        from ..ldznet.hosts import comfyui

        return io.NodeOutput([*(earlier or []), comfyui.typed(clip, text)])


def prompts_in(graph: Any, nodes: Any, capture: Sequence[Any]) -> Any:
    """A link to all prompts that lead to samplers of the model of `capture`, which is a link; None where there are
    none. `nodes` are those that run, and `graph` builds what is to run."""
    link = None
    for encoder in encoders_of(nodes, [capture[0], 0]):
        earlier: dict[str, Any] = {} if link is None else {"earlier": link}
        link = graph.node("LDZNetInnerPrompt", clip=encoder.clip, text=encoder.text, **earlier).out(0)
    return link
