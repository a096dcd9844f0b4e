"""A blueprint in a graph of the tiny world, as a user would put it there: every input connected, outputs shown."""

from __future__ import annotations

import copy
from typing import Any

WORDS = {"text": "a red star\ngrass", "prompt": "a photo of a blue fish on grass"}
WORDS |= {"regions": "grass => a photo of sand", "details": "grass => a photo of sand"}
SETTINGS = {"steps": 6, "cfg": 5.0, "side": 128, "seed": 3}  # widgets of nodes in the blueprint, by name
SOURCES = {  # of an input, by its name: a node's type, its widgets, what it needs, and which output
    "model": ("LDZNetTinyWorld", [], [], 0),
    "clip": ("LDZNetTinyWorld", [], [], 1),
    "vae": ("LDZNetTinyWorld", [], [], 2),
    "positive": ("CLIPTextEncode", ["a photo of a red star on grass"], ["clip"], 0),
    "negative": ("CLIPTextEncode", [""], ["clip"], 0),
    "latent_image": ("EmptyLatentImage", [128, 128, 1], [], 0),
    "latent": (
        "KSampler",
        [3, "fixed", 6, 5.0, "euler", "normal", 1.0],
        ["model", "positive", "negative", "latent_image"],
        0,
    ),
    "image": ("VAEDecode", [], ["samples", "vae"], 0),
}
PORTS = {  # of those nodes: names and types of inputs, and types of outputs
    "LDZNetTinyWorld": ([], ["MODEL", "CLIP", "VAE"]),
    "CLIPTextEncode": ([("clip", "CLIP")], ["CONDITIONING"]),
    "EmptyLatentImage": ([], ["LATENT"]),
    "KSampler": (
        [("model", "MODEL"), ("positive", "CONDITIONING"), ("negative", "CONDITIONING"), ("latent_image", "LATENT")],
        ["LATENT"],
    ),
    "VAEDecode": ([("samples", "LATENT"), ("vae", "VAE")], ["IMAGE"]),
    "PreviewImage": ([("images", "IMAGE")], []),
    "MaskPreview": ([("mask", "MASK")], []),
}
SHOWN = {"IMAGE": "PreviewImage", "MASK": "MaskPreview"}
ALIASES = {"samples": "latent"}


class _Graph:
    """A workflow in the page's format that grows around one node."""

    def __init__(self, workflow: dict[str, Any]) -> None:
        self.workflow = copy.deepcopy(workflow)
        self.nodes: dict[int, dict[str, Any]] = {node["id"]: node for node in self.workflow["nodes"]}
        self.sources: dict[Any, int] = {}
        self.links: list[list[Any]] = []

    def add(self, kind: str, widgets: list[Any]) -> int:
        """A node; its id."""
        number, (inputs, outputs) = max(self.nodes) + 1, PORTS[kind]
        self.nodes[number] = {
            **{"id": number, "type": kind, "pos": [400 * number, 500], "size": [300, 200], "flags": {}},
            **{"order": number, "mode": 0, "properties": {}, "widgets_values": widgets},
            "inputs": [{"name": name, "type": kind, "link": None} for name, kind in inputs],
            "outputs": [{"name": kind, "type": kind, "links": None} for kind in outputs],
        }
        return number

    def source(self, name: str) -> tuple[int, int]:
        """The node and output that an input of that name gets."""
        kind, widgets, needed, output = SOURCES[ALIASES.get(name, name)]
        key = (kind, str(widgets))
        if key not in self.sources:
            self.sources[key] = number = self.add(kind, widgets)
            for slot, part in enumerate(needed):
                self.link(*self.source(part), number, slot)
        return self.sources[key], output

    def link(self, source: int, output: int, target: int, slot: int) -> None:
        """A wire."""
        number, port = len(self.links) + 1, self.nodes[source]["outputs"][output]
        port["links"] = [*(port["links"] or []), number]
        self.nodes[target]["inputs"][slot]["link"] = number
        self.links.append([number, source, output, target, slot, port["type"]])

    def finished(self) -> dict[str, Any]:
        """The workflow."""
        counts = {"last_node_id": max(self.nodes), "last_link_id": len(self.links)}
        return {**self.workflow, **counts, "nodes": list(self.nodes.values()), "links": self.links}


def in_a_graph(blueprint: dict[str, Any]) -> dict[str, Any]:
    """A workflow for the page."""
    graph = _Graph(blueprint)
    (whole,) = graph.workflow["nodes"]
    for slot, port in enumerate(whole["inputs"]):
        if "widget" not in port and port["name"] in SOURCES:
            graph.link(*graph.source(port["name"]), whole["id"], slot)
    for output, port in enumerate(whole["outputs"]):
        if port["type"] in SHOWN:
            graph.link(whole["id"], output, graph.add(SHOWN[port["type"]], []), 0)
    for node in graph.workflow["definitions"]["subgraphs"][0]["nodes"]:
        values, place = node["widgets_values"], 0
        for name in [port["widget"]["name"] for port in node["inputs"] if "widget" in port]:
            values[place] = {**WORDS, **SETTINGS}.get(name, values[place])
            place += 2 if values[place + 1 : place + 2] == ["fixed"] else 1  # behind a seed stands its control
    return graph.finished()
