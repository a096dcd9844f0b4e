"""The texts that a sampler's positive prompt is made of, found by walking a ComfyUI prompt. Imports nothing.

A prompt, as the API takes it, is {node id: {"class_type": …, "inputs": {name: value or [node id, output]}}}; the page
has flattened subgraphs and left out its own reroutes by then. What a node does is told by the names of its inputs
alone, so that nodes of other packs can be walked through. A walk may find too much: who asks compares contexts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

Graph = Mapping[str, Mapping[str, Any]]
POSITIVE = ("positive", "conditioning", "cond1", "cond2")  # of samplers and guiders
TEXTS = ("text", "prompt", "string", "positive")  # what the names of a text encoder's texts hold


class Encoder(NamedTuple):
    """A text encoder of the graph: its text, or a link to it, and the link of its CLIP."""

    text: Any
    clip: Sequence[Any]


def encoders_of(graph: Graph, captured_model: Sequence[Any]) -> list[Encoder]:
    """The text encoders that lead to the positive inputs of samplers and guiders whose model comes from the link
    `captured_model`; each once."""
    found: list[Encoder] = []
    seen: set[tuple[Any, Any]] = set()
    for link in _conditionings(graph, captured_model):
        found += [encoder for encoder in _behind(graph, link, seen) if encoder not in found]
    return found


def is_link(value: Any) -> bool:
    """Whether an input is [node id, output]."""
    return isinstance(value, (list, tuple)) and len(value) == 2 and isinstance(value[0], str) and value[1] in range(99)


def _conditionings(graph: Graph, start: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """The links of positive prompts of the first samplers and guiders downstream of `start`."""
    waiting, seen = [start[0]], {start[0]}
    first = True
    while waiting:
        source = waiting.pop(0)
        for name, node in graph.items():
            links = {key: value for key, value in node["inputs"].items() if is_link(value) and value[0] == source}
            if first:  # the model alone: the capture leads to nodes that read it
                links = {key: value for key, value in links.items() if value[1] == start[1]}
            if not links or name in seen:
                continue
            seen.add(name)
            positive = [node["inputs"][key] for key in POSITIVE if is_link(node["inputs"].get(key))]
            yield from positive
            if not positive:
                waiting.append(name)
        first = False


def _behind(graph: Graph, link: Sequence[Any], seen: set[tuple[Any, Any]]) -> Iterator[Encoder]:
    """The text encoders upstream of a conditioning."""
    if tuple(link) in seen or link[0] not in graph:
        return
    seen.add((link[0], link[1]))
    inputs = graph[link[0]]["inputs"]
    if is_link(inputs.get("clip")):
        texts = [value for name, value in inputs.items() if _is_text(name, value)]
        yield from (Encoder(text, inputs["clip"]) for i, text in enumerate(texts) if text not in texts[:i])
        return
    for further in _conditionings_of(inputs, link[1]):
        yield from _behind(graph, further, seen)


def _is_text(name: str, value: Any) -> bool:
    """Whether an input of a text encoder is what it encodes."""
    return any(part in name.lower() for part in TEXTS) and (isinstance(value, str) or is_link(value))


def _conditionings_of(inputs: Mapping[str, Any], output: int) -> list[Sequence[Any]]:
    """The links that a node makes its `output` of: of positive and negative ones by place, as ControlNets give them."""
    links = {name: value for name, value in inputs.items() if is_link(value)}
    if "positive" in links:
        return [links[("positive", "negative")[output]]] if output < 2 and "negative" in links else [links["positive"]]
    return [link for name, link in links.items() if name.startswith("cond")] or list(links.values())
