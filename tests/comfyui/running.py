"""Runs nodes over the stand-ins as ComfyUI would run them: by id, links resolved, expansions carried out."""

from __future__ import annotations

from types import ModuleType
from typing import Any


def execute(nodes: ModuleType, node_id: str, /, **inputs: Any) -> Any:
    """What a node's `execute` returns."""
    return _classes(nodes)[node_id].execute(**inputs)


def expand(nodes: ModuleType, node_id: str, values: dict[str, Any], /, **inputs: Any) -> tuple[Any, ...]:
    """The outputs of a node that expands. Its linked inputs are [name, 0], and `values` says what comes from them."""
    outer = execute(nodes, node_id, **inputs)
    done: dict[str, Any] = {name: (value,) for name, value in values.items()}

    def resolved(value: Any) -> Any:
        return done[value[0]][value[1]] if isinstance(value, list) else value

    for name, node in outer.expand.items():
        found = _classes(nodes)[node["class_type"]]
        given = {key: resolved(value) for key, value in node["inputs"].items()}
        if found.GET_SCHEMA().is_input_list:
            given = {key: [value] for key, value in given.items()}
        done[name] = found.execute(**given)
    return tuple(resolved(output) for output in outer)


def _classes(nodes: ModuleType) -> dict[str, Any]:
    return {node.GET_SCHEMA().node_id: node for node in nodes.working_nodes()}
