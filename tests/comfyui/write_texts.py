"""Writes what follows from the schemas: locales/*/nodeDefs.json, and new names into tests/nodes/registry.json.

    python tests/comfyui/write_texts.py

Run it after adding a node, an input or an output; the tests over the registry say when. What a text is in another
language stands in translations/LANGUAGE.json beside this file, by the English text; one that is missing there stays
English, is listed, and fails a test.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))  # as pytest's own settings have it

from comfyui import standin  # noqa: E402

LOCALES, REGISTRY = ROOT / "locales", ROOT / "tests/nodes/registry.json"
TRANSLATIONS = Path(__file__).parent / "translations"


def working_nodes() -> list[Any]:
    """The nodes, over the stand-in."""
    standin.install()
    spec = importlib.util.spec_from_file_location(
        "a_pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None
    sys.modules["a_pack"] = importlib.util.module_from_spec(spec)
    return importlib.import_module("a_pack.nodes").working_nodes()


def texts_of(node: Any) -> dict[str, Any]:
    """As ComfyUI's page reads them."""
    schema, info = node.GET_SCHEMA(), standin.object_info(node)
    inputs = {**info["input"]["required"], **info["input"].get("optional", {})}
    labels = {name: options.get("display_name", name) for name, (_, options) in inputs.items()}
    outputs = zip(info["output_name"], info["output_tooltips"], strict=True)
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": {name: {"name": labels[name], "tooltip": inputs[name][1]["tooltip"]} for name in inputs},
        "outputs": {str(i): {"name": name, "tooltip": tooltip} for i, (name, tooltip) in enumerate(outputs)},
    }


def translations() -> dict[str, dict[str, str]]:
    """For each language but English: what the English texts are in it."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(TRANSLATIONS.glob("*.json"))}


def every_text(content: Any) -> set[str]:
    """All texts within nested dictionaries."""
    return {content} if isinstance(content, str) else set().union(*map(every_text, content.values()), set())


def translated(content: Any, words: dict[str, str]) -> Any:
    """The same nested dictionaries with each text in another language; a text that `words` lacks stays as it is."""
    if isinstance(content, str):
        return words.get(content, content)
    return {key: translated(value, words) for key, value in content.items()}


def names_of(node: Any) -> dict[str, list[str]]:
    """Inputs and outputs in order."""
    info = standin.object_info(node)
    optional = list(info["input"].get("optional", {}))
    return {"required": list(info["input"]["required"]), "optional": optional, "outputs": info["output_name"]}


def require_appended(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Nodes, inputs and outputs that saved workflows name must stay where they are; what was required may become
    optional."""
    for node_id, parts in before.items():
        optional = after.get(node_id, {}).get("optional", [])
        for part, names in parts.items():
            now = after.get(node_id, {}).get(part, [])
            names = [name for name in names if part != "required" or name not in optional]
            if now[: len(names)] != names:
                sys.exit(f"Expected {node_id}'s {part} to begin with {names}, got {now}. Append only.")


def write(path: Path, content: Any) -> None:
    """As JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    nodes = {node.GET_SCHEMA().node_id: node for node in working_nodes()}
    english = {node_id: texts_of(node) for node_id, node in nodes.items()}
    write(LOCALES / "en/nodeDefs.json", english)
    for language, words in translations().items():
        write(LOCALES / language / "nodeDefs.json", translated(english, words))
        for text in sorted(every_text(english) ^ set(words)):
            print(f"{language}: {'not in use any more' if text in words else 'not translated'}: {text}")
    names = {node_id: names_of(node) for node_id, node in nodes.items()}
    require_appended(json.loads(REGISTRY.read_text(encoding="utf-8")), names)
    write(REGISTRY, names)
