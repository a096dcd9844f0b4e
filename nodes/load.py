"""Load LD-ZNet Head: a file of models/ldznet, or the embedded tiny head."""

from __future__ import annotations

import os
from typing import Any

from comfy_api.latest import io

from ..ldznet.errors import CheckpointError
from ._schema import CATEGORY, HeadType, schema

FOLDER = "ldznet"
TINY = "tiny (embedded)"
EXTENSION = ".safetensors"


def register_folder() -> None:
    """Makes models/ldznet one of ComfyUI's model folders; extra_model_paths.yaml may have added others."""
    import folder_paths

    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))


def head_names() -> list[str]:
    """What the list shows: the embedded head, then files. An empty or missing folder is no error."""
    import folder_paths

    try:
        names = folder_paths.get_filename_list(FOLDER)
    except KeyError:
        names = []
    return [TINY, *(name for name in names if name.lower().endswith(EXTENSION))]


def head_path(name: str) -> str:
    """Where the head `name` lies; the embedded one has a name for a path."""
    import folder_paths

    if name == TINY:
        return "tiny"
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None:
        raise CheckpointError(f"Expected {name} in models/{FOLDER}, found none. Put it there, or choose another head.")
    return path


class LoadHead(io.ComfyNode):
    """A head, in ComfyUI's memory management."""

    @classmethod
    def define_schema(cls) -> Any:
        """See ComfyNode."""
        return schema(
            node_id="LDZNetLoadHead",
            display_name="Load LD-ZNet Head",
            category=CATEGORY,
            description="Loads what turns a Stable Diffusion 1.x model's features into masks.",
            search_aliases=["segment", "text mask", "txt2mask", "clipseg"],
            inputs=[
                io.Combo.Input(
                    "head",
                    options=head_names(),
                    default=TINY,
                    tooltip="Files of models/ldznet, and the embedded head for the Tiny World. The published head: "
                    "download LDZNet_txt2mask.ckpt and run, in the pack's folder, "
                    "python install.py convert LDZNet_txt2mask.ckpt --dtype float16. The help page says more.",
                )
            ],
            outputs=[HeadType.Output("loaded_head", display_name="head", tooltip="For the segmenting nodes.")],
        )

    @classmethod
    def fingerprint_inputs(cls, head: str) -> Any:
        """A file that was replaced is loaded again."""
        path = head_path(head)
        return (head, os.path.getmtime(path), os.path.getsize(path)) if os.path.exists(path) else head

    @classmethod
    def execute(cls, head: str) -> Any:
        """See ComfyNode."""
        from ..ldznet.hosts import comfyui

        return io.NodeOutput(comfyui.open_head(head_path(head), head))
