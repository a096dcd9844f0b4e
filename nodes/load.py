"""Load LD-ZNet Head: the head that needs no download, a file of models/ldznet, or the embedded tiny head."""

from __future__ import annotations

import os
from typing import Any

from comfy_api.latest import io

from ..ldznet.errors import CheckpointError
from ._schema import CATEGORY, HeadType, schema

FOLDER = "ldznet"
TINY = "tiny (embedded)"
ATTENTION = "attention (no download)"
CONCEPTS = "concept attention (no download)"
WITHOUT_FILE = {
    ATTENTION: "attention",
    CONCEPTS: "concepts",
    TINY: "tiny",
}  # what the list shows, and what `load_head` calls it
EXTENSION = ".safetensors"


def register_folder() -> None:
    """Makes models/ldznet one of ComfyUI's model folders; extra_model_paths.yaml may have added others."""
    import folder_paths

    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))


def head_names() -> list[str]:
    """What the list shows: heads without a file, then files. An empty or missing folder is no error."""
    import folder_paths

    try:
        names = folder_paths.get_filename_list(FOLDER)
    except KeyError:
        names = []
    return [*WITHOUT_FILE, *(name for name in names if name.lower().endswith(EXTENSION))]


def head_path(name: str) -> str:
    """Where the head `name` lies; those without a file of the user's have a name for a path."""
    import folder_paths

    if name in WITHOUT_FILE:
        return WITHOUT_FILE[name]
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None:
        raise CheckpointError(f"Expected {name} in models/{FOLDER}, found none. Put it there, or choose another head.")
    return path


class LoadHead(io.ComfyNode):
    """A head, in ComfyUI's memory management."""

    @classmethod
    def define_schema(cls) -> Any:
        """How ComfyUI shows the node: names, inputs, outputs."""
        return schema(
            node_id="LDZNetLoadHead",
            display_name="Load LD-ZNet Head",
            category=CATEGORY,
            description="Loads what turns a Stable Diffusion model's features or attention into masks.",
            search_aliases=["segmentation model", "text mask", "txt2mask", "clipseg", "attention map"],
            inputs=[
                io.Combo.Input(
                    "head",
                    options=head_names(),
                    default=ATTENTION,
                    tooltip="attention reads the model's own attention: SD 1.x, 2.x, SDXL, SD 3, Flux, "
                    "Qwen-Image, Z-Image and others, nothing to download. concept attention does so for Flux.1 and "
                    "Chroma in another way, without captures. "
                    "tiny is trained for the Tiny World. Files come from models/ldznet. The published head for SD 1.x: "
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
    def validate_inputs(cls, head: str = ATTENTION) -> bool | str:
        """What to do about a file that is not there, in the place of ComfyUI's "Value not in list".

        Where `head` is linked, ComfyUI calls this without it, and the node says the same when it runs.
        """
        try:
            head_path(head)
        except CheckpointError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, head: str) -> Any:
        """The head, under ComfyUI's memory management. A node shows one sentence; what deviates in a file, name by
        name, is in the log."""
        from ..ldznet.hosts import comfyui_heads

        try:
            return io.NodeOutput(comfyui_heads.open_head(head_path(head), head))
        except CheckpointError as error:
            sentence = str(error).partition("\n")[0]
            raise CheckpointError(f"{sentence} (socket: head)") from error
