"""What every node keeps, over the stand-in of comfy_api: a new node is tested by standing in `NODES`."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from comfyui import host, standin, write_texts

REGISTRY = Path(__file__).parent / "registry.json"  # ids, inputs and outputs that saved workflows may name
NAMES = json.loads(REGISTRY.read_text(encoding="utf-8"))
TEXTS = json.loads((host.ROOT / "locales/en/nodeDefs.json").read_text(encoding="utf-8"))
DOCS = host.ROOT / "web" / "docs"


@pytest.fixture(params=sorted(NAMES))
def node(request: pytest.FixtureRequest, nodes: ModuleType) -> Any:
    """Each node that saved workflows may name."""
    found = {node.GET_SCHEMA().node_id: node for node in nodes.working_nodes()}
    assert request.param in found, "a node that saved workflows name is gone"
    return found[request.param]


def test_every_node_is_in_the_list(nodes: ModuleType) -> None:
    assert [node.GET_SCHEMA().node_id for node in nodes.working_nodes()] == list(nodes.NODES) == list(NAMES)


def test_names_and_their_order_are_only_appended_to(node: Any) -> None:
    info = standin.object_info(node)
    committed = NAMES[info["name"]]
    for part in ("required", "optional"):
        assert list(info["input"].get(part, {}))[: len(committed[part])] == committed[part]
    assert info["output_name"][: len(committed["outputs"])] == committed["outputs"]


def test_inputs_are_those_of_execute(node: Any) -> None:
    parameters = inspect.signature(node.execute).parameters
    inputs = standin.object_info(node)["input"]
    required, optional = inputs["required"], inputs.get("optional", {})
    assert set(parameters) == {*required, *optional}
    assert all(parameters[name].default == options.get("default") for name, (_, options) in optional.items())
    assert all(parameters[name].default is inspect.Parameter.empty for name in required)


def test_ids_categories_and_tooltips(node: Any) -> None:
    schema, info = node.GET_SCHEMA(), standin.object_info(node)
    assert schema.node_id.startswith("LDZNet")
    assert schema.category.split("/")[0] == "LD-ZNet"
    assert schema.display_name
    assert schema.description
    for part in info["input"].values():
        for name, (_, options) in part.items():
            assert len(options["tooltip"]) > 10, name
    assert all(len(text) > 5 for text in info["output_tooltips"])
    assert all(info["output_name"])


@pytest.mark.parametrize(
    ("typed", "node_id"),
    [
        *((typed, "LDZNetSegment") for typed in ("mask by text", "mask from prompt", "attention map", "text mask")),
        *(
            (typed, "LDZNetSegment")
            for typed in ("clipseg", "sam", "grounding dino", "segment", "inpaint mask", "daam")
        ),
        *((typed, "LDZNetSegmentCaptured") for typed in ("mask by text", "attention map")),
        *((typed, "LDZNetCapture") for typed in ("attention map", "cross attention")),
        *((typed, "LDZNetMask") for typed in ("inpaint mask", "grow mask", "expand mask", "blur mask")),
        *((typed, "LDZNetLabelMap") for typed in ("segs", "bbox", "segmentation map")),
        *((typed, "LDZNetRegionPrompts") for typed in ("regional prompt", "prompt mask")),
        ("preview mask", "LDZNetPreview"),
    ],
)
def test_what_people_type_finds_it(nodes: ModuleType, typed: str, node_id: str) -> None:
    """In the page's search, which looks into names and aliases; test_page.py asks the page itself."""
    schema = next(node.GET_SCHEMA() for node in nodes.working_nodes() if node.GET_SCHEMA().node_id == node_id)
    assert typed in [alias.lower() for alias in schema.search_aliases]


def test_ids_are_one_s_own(node: Any) -> None:
    """ComfyUI 0.3.64 refuses a schema in which an output has an input's id."""
    schema = node.GET_SCHEMA()
    ids = [part.id for part in (*schema.inputs, *schema.outputs)]
    assert len(ids) == len(set(ids))


def test_a_seed_is_fixed_and_text_is_taken_as_it_is(node: Any) -> None:
    for part in standin.object_info(node)["input"].values():
        for name, (kind, options) in part.items():
            assert name != "seed" or options["control_after_generate"] is False
            assert kind != "STRING" or name == "background" or options["dynamicPrompts"] is False


def test_a_help_page_and_the_texts_of_the_page(node: Any) -> None:
    schema, info = node.GET_SCHEMA(), standin.object_info(node)
    if schema.is_dev_only:
        return
    page = (DOCS / f"{schema.node_id}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {schema.display_name}\n")
    for picture in re.findall(r"!\[[^]]+]\(([^)]+)\)", page):
        assert (DOCS / picture).exists(), picture
    texts = TEXTS[schema.node_id]
    assert texts["display_name"] == schema.display_name
    assert texts["description"] == schema.description
    for part in info["input"].values():
        for name, (_, options) in part.items():
            assert texts["inputs"][name]["tooltip"] == options["tooltip"]
    names = [texts["outputs"][str(i)]["name"] for i in range(len(info["output_name"]))]
    assert names == info["output_name"]


LANGUAGES = ("zh", "zh-TW", "ja", "ko", "fr")


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_is_in_every_language(language: str) -> None:
    """Whole, nothing stale, as the tables say, and with the sizes of the English text."""
    words = write_texts.translations()[language]
    written = json.loads((host.ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    english = write_texts.every_text(TEXTS)
    assert english - set(words) == set(), "translate them in tests/comfyui/translations, then run write_texts.py"
    assert set(words) - english == set(), "no longer in use"
    assert written == write_texts.translated(TEXTS, words), "run tests/comfyui/write_texts.py"
    for text, other in words.items():
        assert sorted(re.findall(r"\d+\.\d|\d{2,}", other)) == sorted(re.findall(r"\d+\.\d|\d{2,}", text)), other


def test_one_bad_node_leaves_the_others(nodes: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    registry = {"LDZNetBroken": "load.NoSuchClass", "LDZNetGone": "no_such_module.Node", **nodes.NODES}
    with caplog.at_level(logging.CRITICAL):
        assert len(nodes.working_nodes(registry)) == len(nodes.NODES)


def test_a_schema_that_raises_leaves_the_others(nodes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = nodes.working_nodes()[1]
    monkeypatch.setattr(broken, "define_schema", classmethod(lambda cls: 1 / 0))
    assert broken not in nodes.working_nodes()
    assert len(nodes.working_nodes()) == len(nodes.NODES) - 1


def test_the_host_gets_all_nodes_from_the_entry_point(nodes: ModuleType) -> None:
    extension = nodes.extension()
    assert len(asyncio.run(extension.get_node_list())) == len(nodes.NODES)


def test_heads_are_those_without_a_file_and_safetensors(nodes: ModuleType) -> None:
    options = standin.object_info(nodes.working_nodes()[0])["input"]["required"]["head"][1]["options"]
    assert options == [
        "attention (no download)",
        "concept attention (no download)",
        "tiny (embedded)",
        "a.safetensors",
    ]
