"""Workflows as the page saves them, made into prompts for the API. The page's own `app.graphToPrompt` is the reference;
this does as much of it as the workflows of this pack need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
NOTES = ("Note", "MarkdownNote")
SEEDS = ("seed", "noise_seed")  # such an input has "control after generate" behind it unless it says otherwise


def widgets_of(info: dict[str, Any]) -> list[str | None]:
    """Names of a node's widgets in the order in which the page stores their values; None for one that is not sent."""
    names: list[str | None] = []
    for part in ("required", "optional"):
        for name, (kind, *rest) in info["input"].get(part, {}).items():
            options = rest[0] if rest else {}
            if (isinstance(kind, list) or kind in WIDGETS) and not options.get("forceInput"):
                names.append(name)
                if options.get("control_after_generate", kind == "INT" and name in SEEDS):
                    names.append(None)
                if options.get("image_upload"):  # the button that uploads a picture
                    names.append(None)
    return names


def to_prompt(path: Path, infos: dict[str, Any]) -> dict[str, Any]:
    """The prompt of the workflow at `path`; `infos` is the host's /object_info."""
    page = json.loads(path.read_text(encoding="utf-8"))
    links = {link[0]: [str(link[1]), link[2]] for link in page["links"]}
    prompt = {}
    for node in page["nodes"]:
        if node["type"] in NOTES:
            continue
        names, values = widgets_of(infos[node["type"]]), node.get("widgets_values", [])
        if not node["type"].startswith("LDZNet"):
            values = values[: len(names)]  # the page too drops values of widgets that only a later ComfyUI has
        assert len(names) == len(values), (path.name, node["type"], names)
        inputs = {name: value for name, value in zip(names, values, strict=True) if name}
        inputs |= {port["name"]: links[port["link"]] for port in node.get("inputs", []) if port.get("link") is not None}
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt
