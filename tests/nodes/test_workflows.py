"""Workflows still mean what they meant: those in workflows/, and those of earlier commits under tests/data/workflows.

The page stores widget values by position and outputs by index, and fills what is missing at the end with defaults.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from comfyui import host, page, standin

BLUEPRINTS = sorted((host.ROOT / "subgraphs").glob("*.json"))
PRESENT = sorted((host.ROOT / "workflows").glob("*.json"))
EARLIER = sorted((host.ROOT / "tests" / "data" / "workflows").glob("*/*.json"))  # by the commit they come from
TYPES: dict[str, tuple[type, ...]] = {
    "INT": (int,),
    "FLOAT": (int, float),
    "STRING": (str,),
    "BOOLEAN": (bool,),
    "COMBO": (str,),
}


@pytest.fixture(scope="module")
def infos(nodes: ModuleType) -> dict[str, Any]:
    """What /object_info says of our nodes."""
    return {info["name"]: info for info in map(standin.object_info, nodes.working_nodes())}


def inputs_of(info: dict[str, Any]) -> dict[str, Any]:
    """(type, options) of every input by its name, in order."""
    return {**info["input"]["required"], **info["input"].get("optional", {})}


def require_value(value: Any, kind: str, options: dict[str, Any], name: str) -> None:
    """A stored value of a widget is one that the widget takes."""
    assert isinstance(value, TYPES[kind]), (name, value)
    if kind in ("INT", "FLOAT"):
        assert options["min"] <= value <= options["max"], (name, value)
    if kind == "COMBO" and name != "head":  # heads are files of the user's
        assert value in options["options"], (name, value)


@pytest.mark.parametrize("path", PRESENT + EARLIER, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_ports_and_widgets_are_where_the_file_says(path: Path, infos: dict[str, Any]) -> None:
    stored = json.loads(path.read_text(encoding="utf-8"))
    ours = [node for node in stored["nodes"] if node["type"].startswith("LDZNet")]
    assert ours
    for node in ours:
        info, inputs = infos[node["type"]], inputs_of(infos[node["type"]])
        for port in node.get("inputs", []):
            assert inputs[port["name"]][0] == port["type"], (node["type"], port["name"])
        for i, port in enumerate(node["outputs"]):
            assert (info["output_name"][i], info["output"][i]) == (port["name"], port["type"]), node["type"]
        widgets, values = page.widgets_of(info), node.get("widgets_values", [])
        assert len(values) <= len(widgets), node["type"]
        for name, value in zip(widgets, values, strict=False):
            assert name is not None, node["type"]  # no seed of ours has a control behind it
            require_value(value, *inputs[name], name)
        for name in widgets[len(values) :]:
            assert "default" in inputs[str(name)][1], (node["type"], name)
        linked = {port["name"] for port in node.get("inputs", []) if port.get("link") is not None}
        needed = set(info["input"]["required"]) - {name for name in widgets if name}
        assert needed <= linked, (node["type"], needed - linked)


@pytest.mark.parametrize("path", PRESENT, ids=lambda path: path.stem)
def test_links_start_and_end_at_the_ports_that_they_name(path: Path) -> None:
    stored = json.loads(path.read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in stored["nodes"]}
    assert path.with_suffix(".jpg").exists()
    assert any(node["type"] == "MarkdownNote" for node in nodes.values())
    for link, source, output, target, port, kind in stored["links"]:
        assert link in nodes[source]["outputs"][output]["links"]
        assert nodes[target]["inputs"][port]["link"] == link
        assert kind == nodes[source]["outputs"][output]["type"]


@pytest.mark.parametrize("path", PRESENT, ids=lambda path: path.stem)
def test_app_mode_shows_what_people_change_and_what_comes_out(path: Path, infos: dict[str, Any]) -> None:
    """The page keeps an app's inputs and outputs as node ids and names of widgets, under extra.linearData."""
    stored = json.loads(path.read_text(encoding="utf-8"))
    nodes, chosen = {node["id"]: node for node in stored["nodes"]}, stored["extra"]["linearData"]
    for number, name in chosen["inputs"]:
        kind = nodes[number]["type"]
        known = {"KSampler": ["seed", "denoise"], "CLIPTextEncode": ["text"], "LoadImage": ["image"]}.get(kind)
        assert name in (known or page.widgets_of(infos[kind])), (kind, name)
    assert {nodes[number]["type"] for number in chosen["outputs"]} == {"PreviewImage"}
    assert any(nodes[number]["type"].startswith("LDZNet") for number, _ in chosen["inputs"])


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_a_blueprint_is_one_node_whose_ports_lead_inside(path: Path, infos: dict[str, Any]) -> None:
    """write_blueprints.py made it; a renamed input or another order of widgets shows here."""
    stored = json.loads(path.read_text(encoding="utf-8"))
    ((whole,), (inner,)) = stored["nodes"], stored["definitions"]["subgraphs"]
    assert (whole["type"], whole["title"]) == (inner["id"], path.stem)
    for side in ("inputs", "outputs"):
        assert [(port["name"], port["type"]) for port in whole[side]] == [
            (port["name"], port["type"]) for port in inner[side]
        ]
    nodes = {node["id"]: node for node in inner["nodes"]}
    for link in inner["links"]:
        outside = inner["inputs"][link["origin_slot"]] if link["origin_id"] == -10 else None
        source = outside or nodes[link["origin_id"]]["outputs"][link["origin_slot"]]
        port = inner["outputs"] if link["target_id"] == -20 else nodes[link["target_id"]]["inputs"]
        assert source["type"] == port[link["target_slot"]]["type"] == link["type"]
        assert link["id"] in (source["linkIds"] if outside else source["links"])
    ours = [node for node in inner["nodes"] if node["type"].startswith("LDZNet")]
    assert ours
    for node in ours:
        inputs, widgets = inputs_of(infos[node["type"]]), page.widgets_of(infos[node["type"]])
        assert {port["name"]: port["type"] for port in node["inputs"]} == {name: inputs[name][0] for name in inputs}
        assert [port["type"] for port in node["outputs"]] == infos[node["type"]]["output"]
        for name, value in zip(widgets, node["widgets_values"], strict=True):
            if name not in ("sampler_name", "scheduler"):  # of the real host, which has more than the stand-in
                require_value(value, *inputs[str(name)], str(name))
    for number, name in whole["properties"]["proxyWidgets"]:
        assert any(port.get("widget") == {"name": name} for port in nodes[int(number)]["inputs"])
