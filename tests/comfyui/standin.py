"""As much of comfy_api.latest as schemas and `execute` need, so that nodes are tested without a host.

`object_info(node)` is what ComfyUI's /object_info says of it; test_host.py holds the two against each other.
"""

from __future__ import annotations

import dataclasses
import enum
import sys
import types
from typing import Any, ClassVar

from . import tinycomfy

RENAMED = {"dynamic_prompts": "dynamicPrompts", "force_input": "forceInput"}
DEFAULTS = {"STRING": {"multiline": False}, "COMBO": {"multiselect": False}}


class _Part:
    def __init__(self, id: str, display_name: str | None = None, **fields: Any) -> None:
        self.id, self.display_name, self.fields = id, display_name, fields
        self.extra_dict = fields.pop("extra_dict", None) or {}


class _Widget(_Part):
    def __init__(self, id: str, display_name: str | None = None, **fields: Any) -> None:
        if "extra_dict" in fields:
            raise TypeError("ComfyUI 0.3.64 takes no extra_dict for an input with a widget")
        super().__init__(id, display_name, **fields)


class _Type:
    def __init__(self, io_type: str, part: type[_Part] = _Part) -> None:
        self.Input = type("Input", (part,), {"io_type": io_type})
        self.Output = type("Output", (_Part,), {"io_type": io_type})


FLAGS = ["is_output_node", "is_input_list", "is_dev_only", "enable_expand"]
FIELDS = ["node_id", "display_name", "category", "description", "inputs", "outputs", "hidden", "search_aliases", *FLAGS]
Schema: Any = dataclasses.make_dataclass("Schema", [(name, Any, None) for name in FIELDS])


class ComfyNode:
    hidden: Any = types.SimpleNamespace(dynprompt=None, unique_id=None, extra_pnginfo=None)  # what an execution gives

    @classmethod
    def GET_SCHEMA(cls) -> Schema:
        return cls.define_schema()


class NodeOutput(tuple):
    """The outputs of a node in order, what it shows (`ui`), and the nodes that it expands to."""

    ui: Any
    expand: dict[str, Any] | None

    def __new__(cls, *outputs: Any, ui: Any = None, expand: dict[str, Any] | None = None) -> NodeOutput:
        made = super().__new__(cls, outputs)
        made.ui, made.expand = ui, expand
        return made


class PreviewImage:
    """An IMAGE that a node shows."""

    def __init__(self, image: Any, cls: Any = None) -> None:
        self.image, self.cls = image, cls

    def as_dict(self) -> dict[str, Any]:
        """The pictures themselves, where ComfyUI has the files that it wrote."""
        return {"images": list(self.image), "animated": (False,)}


class ImageSaveHelper:
    """Keeps in `saved` what would be written, by file name."""

    saved: ClassVar[dict[str, Any]] = {}

    @classmethod
    def save_images(cls, images: Any, filename_prefix: str, **_: Any) -> list[dict[str, str]]:
        files = [f"{filename_prefix}_{len(cls.saved) + i}.png" for i in range(len(images))]
        cls.saved.update(zip(files, images, strict=True))
        return [{"filename": file, "subfolder": "", "type": "temp"} for file in files]


def object_info(node: type) -> dict[str, Any]:
    """Ids, inputs in order with types, defaults and ranges, outputs with types, names and list flags."""
    schema = node.GET_SCHEMA()
    inputs: dict[str, dict[str, Any]] = {"required": {}}
    for part in schema.inputs:
        fields = {RENAMED.get(name, name): value for name, value in part.fields.items()}
        optional = fields.pop("optional", False)
        options = {**DEFAULTS.get(part.io_type, {}), **fields, **part.extra_dict}
        if part.display_name:
            options["display_name"] = part.display_name
        inputs.setdefault("optional" if optional else "required", {})[part.id] = [part.io_type, options]
    outputs = {
        "output": [part.io_type for part in schema.outputs],
        "output_name": [part.display_name for part in schema.outputs],
        "output_is_list": [part.fields.get("is_output_list", False) for part in schema.outputs],
        "output_tooltips": [part.fields["tooltip"] for part in schema.outputs],
    }
    return {"name": schema.node_id, "input": inputs, **outputs}


def install() -> None:
    """Puts the stand-in, and an empty folder_paths, where a host would have its own."""
    basic, shown = ["String", "Int", "Float", "Boolean", "Combo"], ["Latent", "Image", "Mask", "Conditioning", "SEGS"]
    io = types.SimpleNamespace(**{kind: _Type(kind.upper()) for kind in ["Model", "Clip", "Vae", *shown]})
    vars(io).update({kind: _Type(kind.upper(), _Widget) for kind in basic})
    io.BoundingBox, io.Custom, io.Schema, io.ComfyNode = _Type("BOUNDING_BOX"), _Type, Schema, ComfyNode
    io.FolderType = enum.Enum("FolderType", ["temp"])
    io.Hidden, io.NodeOutput = enum.Enum("Hidden", ["prompt", "extra_pnginfo", "dynprompt", "unique_id"]), NodeOutput
    latest = types.ModuleType("comfy_api.latest")
    latest.io, latest.ui, latest.ComfyExtension = (
        io,
        types.SimpleNamespace(PreviewImage=PreviewImage, ImageSaveHelper=ImageSaveHelper),
        object,
    )
    paths = types.ModuleType("folder_paths")
    paths.models_dir, paths.get_filename_list = "models", lambda folder: ["a.safetensors", "notes.txt"]
    paths.add_model_folder_path, paths.get_full_path = lambda name, path: None, lambda folder, name: None
    sys.modules.update({"comfy_api": types.ModuleType("comfy_api"), "comfy_api.latest": latest, "folder_paths": paths})
    tinycomfy.install()
