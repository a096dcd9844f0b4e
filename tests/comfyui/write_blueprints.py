"""Writes subgraphs/: one node for each job, which ComfyUI's page offers in its node library. Needs a real ComfyUI.

    python tests/comfyui/write_blueprints.py

A blueprint is a workflow of one node, whose type is the id of a subgraph that stands under "definitions". Run it after
changing a node that one of them holds.
"""

from __future__ import annotations

import json
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import graphs
import host
import page

FOLDER = host.ROOT / "subgraphs"
IN, OUT = -10, -20  # ids of a subgraph's own inputs and outputs
WIDTH, HEIGHT, GAP = 340, 420, 60  # pixels of a node in the page, and between two
NAMESPACE = uuid.UUID("5f7c9f0e-7a58-4f4c-9a53-0d6a2f6f1d7b")  # so that ids stay from one writing to the next


class Blueprint(NamedTuple):
    """`nodes` by name, in order; an input ">name" is one of the whole. `outputs`: name → node and output."""

    description: str
    nodes: Mapping[str, dict[str, Any]]
    outputs: Mapping[str, tuple[str, int]]
    values: Mapping[str, Any] = {}  # of widgets of the whole, where the node's own default is not what the job wants


SAMPLER = {
    **{"model": ">model", "positive": ">positive", "negative": ">negative", "latent_image": ">latent_image"},
    **{"seed": ">seed", "steps": ">steps", "cfg": ">cfg", "sampler_name": ">sampler_name"},
    **{"scheduler": ">scheduler", "denoise": ">denoise"},
}
FOUND = {"model": ">model", "clip": ">clip", "head": ">head", "text": ">text", "threshold": ">threshold"}
BLUEPRINTS = {
    "Mask the Picture Just Made": Blueprint(
        "The mask of what you name, from a sampler's latent: nothing is decoded, nothing to load.",
        {
            "segment": graphs.node("LDZNetSegment", **FOUND, latent=">latent"),
            "mask": graphs.node(
                "LDZNetMask", segmentation=["segment", 2], refine="none", grow=">grow", feather=">feather"
            ),
        },
        {"mask": ("mask", 0), "segmentation": ("segment", 2), "report": ("segment", 4)},
    ),
    "Inpaint by Words": Blueprint(
        "Paints anew what you name, with a prompt of its own; the rest of the picture stays as it is.",
        {
            "segment": graphs.node("LDZNetSegment", **FOUND, latent=">latent"),
            "mask": graphs.node("LDZNetMask", segmentation=["segment", 2], refine="none", grow=">grow"),
            "before": graphs.node("VAEDecode", samples=">latent", vae=">vae"),
            "prompt": graphs.node("CLIPTextEncode", clip=">clip", text=">prompt"),
            "negative": graphs.node("CLIPTextEncode", clip=">clip", text=""),
            "masked": graphs.node("SetLatentNoiseMask", samples=">latent", mask=["mask", 0]),
            "sampler": graphs.node(
                "KSampler",
                **{**SAMPLER, "latent_image": ["masked", 0], "positive": ["prompt", 0], "negative": ["negative", 0]},
            ),
            "after": graphs.node("VAEDecode", samples=["sampler", 0], vae=">vae"),
            "composite": graphs.node(
                "ImageCompositeMasked", destination=["before", 0], source=["after", 0], mask=["mask", 0]
            ),
        },
        {"image": ("composite", 0), "mask": ("mask", 0), "report": ("segment", 4)},
        {"grow": 16},
    ),
    "Detail by Words": Blueprint(
        "Each thing that you name is cropped, painted anew at the model's own size, and put back.",
        {
            "detail": graphs.node(
                "LDZNetDetail",
                **{name: f">{name}" for name in ("model", "clip", "vae", "image", "details", "threshold", "seed")},
                **{name: f">{name}" for name in ("steps", "cfg", "denoise", "side", "negative", "head")},
            ),
            "show": graphs.node("PreviewImage", images=["detail", 0]),
        },
        {"image": ("detail", 0), "mask": ("detail", 1), "report": ("detail", 2)},
    ),
    "Region Prompts While Sampling": Blueprint(
        "A KSampler that finds what you name in the picture that it makes, and goes on with a prompt for each.",
        {
            "steer": graphs.node(
                "LDZNetSteer",
                **{name: f">{name}" for name in ("model", "clip", "regions", "after", "grow", "head")},
            ),
            "sampler": graphs.node("KSampler", **{**SAMPLER, "model": ["steer", 0]}),
            "found": graphs.node("LDZNetSteered", latent=["sampler", 0], steering=["steer", 1]),
            "decoded": graphs.node("VAEDecode", samples=["sampler", 0], vae=">vae"),
        },
        {"image": ("decoded", 0), "latent": ("sampler", 0), "mask": ("found", 0), "report": ("found", 4)},
        {"grow": 32},
    ),
    "Masks of the Prompt's Own Words": Blueprint(
        "A KSampler that leaves a mask of every phrase of its prompt, at no pass of its own.",
        {
            "capture": graphs.node("LDZNetCapture", model=">model", head=">head"),
            "sampler": graphs.node("KSampler", **{**SAMPLER, "model": ["capture", 0]}),
            "segment": graphs.node(
                "LDZNetSegmentCaptured",
                **{"latent": ["sampler", 0], "capture": ["capture", 1], "clip": ">clip"},
                **{"text": ">text", "threshold": ">threshold"},
            ),
            "decoded": graphs.node("VAEDecode", samples=["sampler", 0], vae=">vae"),
        },
        {"image": ("decoded", 0), "masks": ("segment", 1), "segmentation": ("segment", 2), "report": ("segment", 4)},
    ),
}


class Writer:
    """One blueprint as the page's JSON; `infos` is the host's /object_info."""

    def __init__(self, name: str, blueprint: Blueprint, infos: Mapping[str, Any]) -> None:
        self.name, self.blueprint, self.infos = name, blueprint, infos
        self.ids = {key: i + 1 for i, key in enumerate(blueprint.nodes)}
        self.links: list[dict[str, Any]] = []
        self.inputs: dict[str, dict[str, Any]] = {}  # the whole's, by name
        self.promoted: list[list[str]] = []  # widgets that the whole shows: node, name
        self.values: dict[str, Any] = {}  # of those

    def written(self) -> dict[str, Any]:
        """The file's content."""
        nodes = [self._node(key, i) for i, key in enumerate(self.blueprint.nodes)]
        outputs = [self._output(*item, i) for i, item in enumerate(self.blueprint.outputs.items())]
        for link in self.links:
            if link["origin_id"] != IN:
                port = nodes[link["origin_id"] - 1]["outputs"][link["origin_slot"]]
                port["links"] = [*(port["links"] or []), link["id"]]
        identity = self._id("subgraph")
        right = len(nodes) * (WIDTH + GAP)
        subgraph = {
            "id": identity,
            "version": 1,
            "state": {"lastGroupId": 0, "lastNodeId": len(nodes), "lastLinkId": len(self.links), "lastRerouteId": 0},
            "revision": 0,
            "config": {},
            "name": self.name,
            "description": self.blueprint.description,
            "category": "LD-ZNet",
            "inputNode": {"id": IN, "bounding": [-240, 0, 140, 40 + 20 * len(self.inputs)]},
            "outputNode": {"id": OUT, "bounding": [right, 0, 120, 40 + 20 * len(outputs)]},
            "inputs": list(self.inputs.values()),
            "outputs": outputs,
            "widgets": [],
            "nodes": nodes,
            "groups": [],
            "links": self.links,
            "extra": {},
        }
        return {
            "revision": 0,
            "last_node_id": 1,
            "last_link_id": 0,
            "nodes": [self._whole(identity)],
            "links": [],
            "version": 0.4,
            "definitions": {"subgraphs": [subgraph]},
            "extra": {},
        }

    def _whole(self, identity: str) -> dict[str, Any]:
        widgets = {name for _, name in self.promoted}
        ports = [
            {
                "name": name,
                "type": port["type"],
                "link": None,
                **({"widget": {"name": name}} if name in widgets else {}),
            }
            for name, port in self.inputs.items()
        ]
        outputs = [{"name": name, "type": self._type(*place), "links": None} for name, place in self._outputs()]
        size = [WIDTH, 60 + 26 * (len(ports) + len(self.promoted))]
        return {
            **{"id": 1, "type": identity, "pos": [0, 0], "size": size, "flags": {}, "order": 0, "mode": 0},
            **{"inputs": ports, "outputs": outputs, "title": self.name, "widgets_values": []},
            "properties": {"proxyWidgets": self.promoted},
        }

    def _node(self, key: str, place: int) -> dict[str, Any]:
        node = self.blueprint.nodes[key]
        info = self.infos[node["class_type"]]
        given, kinds = node["inputs"], {**info["input"]["required"], **info["input"].get("optional", {})}
        widgets = [name for name in page.widgets_of(info) if name]
        ports = []
        for name in [*(name for name in kinds if name not in widgets), *widgets]:
            value = given.get(name)
            linked = isinstance(value, list) or (isinstance(value, str) and value.startswith(">"))
            kind = "COMBO" if isinstance(kinds[name][0], list) else kinds[name][0]
            port = {"name": name, "type": kind, "link": None}
            if name in info["input"].get("optional", {}):
                port["shape"] = 7
            if name in widgets:
                port["widget"] = {"name": name}
            if linked:
                port["link"] = self._link(value, key, len(ports), kind, name if name in widgets else None)
            ports.append(port)
        outputs = zip(info["output_name"], info["output"], strict=True)
        return {
            **{"id": self.ids[key], "type": node["class_type"], "pos": [place * (WIDTH + GAP), 0]},
            **{"size": [WIDTH, HEIGHT], "flags": {}, "order": place, "mode": 0, "inputs": ports},
            "outputs": [{"name": name, "type": _plain(kind), "links": None} for name, kind in outputs],
            "properties": {"Node name for S&R": node["class_type"]},
            "widgets_values": [self._value(name, given, kinds) for name in page.widgets_of(info)],
        }

    def _value(self, name: str | None, given: Mapping[str, Any], kinds: Mapping[str, Any]) -> Any:
        if name is None:
            return "fixed"
        value = given.get(name)
        if value is not None and not isinstance(value, list) and not str(value).startswith(">"):
            return value
        if name in self.blueprint.values and isinstance(value, str):
            return self.blueprint.values[name]
        kind, options = [*kinds[name], {}][:2]
        choices = kind if isinstance(kind, list) else options.get("options") or [""]
        return options.get("default", choices[0])

    def _link(self, value: Any, key: str, slot: int, kind: str, widget: str | None) -> int:
        number = len(self.links) + 1
        origin = [IN, 0] if isinstance(value, str) else [self.ids[value[0]], value[1]]
        if isinstance(value, str):
            name = value[1:]
            port = self.inputs.setdefault(
                name, {"id": self._id(f"input {name}"), "name": name, "type": kind, "linkIds": []}
            )
            port["linkIds"].append(number)
            origin[1] = list(self.inputs).index(name)
            if widget and name not in {known for _, known in self.promoted}:
                self.promoted.append([str(self.ids[key]), widget])
        self.links.append(
            {
                **{"id": number, "origin_id": origin[0], "origin_slot": origin[1], "target_id": self.ids[key]},
                **{"target_slot": slot, "type": kind},
            }
        )
        return number

    def _output(self, name: str, place: tuple[str, int], slot: int) -> dict[str, Any]:
        number, kind = len(self.links) + 1, self._type(*place)
        self.links.append(
            {
                **{"id": number, "origin_id": self.ids[place[0]], "origin_slot": place[1], "target_id": OUT},
                **{"target_slot": slot, "type": kind},
            }
        )
        return {"id": self._id(f"output {name}"), "name": name, "type": kind, "linkIds": [number]}

    def _outputs(self) -> list[tuple[str, tuple[str, int]]]:
        return list(self.blueprint.outputs.items())

    def _type(self, key: str, output: int) -> str:
        return _plain(self.infos[self.blueprint.nodes[key]["class_type"]]["output"][output])

    def _id(self, what: str) -> str:
        return str(uuid.uuid5(NAMESPACE, f"{self.name}: {what}"))


def _plain(kind: Any) -> str:
    return "COMBO" if isinstance(kind, list) else kind


def write(infos: Mapping[str, Any]) -> None:
    """Every file."""
    FOLDER.mkdir(exist_ok=True)
    for name, blueprint in BLUEPRINTS.items():
        text = json.dumps(Writer(name, blueprint, infos).written(), indent=1, ensure_ascii=False)
        (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        running = host.Server(Path(folder))
        try:
            write(running.get("/object_info"))
        finally:
            running.stop()
