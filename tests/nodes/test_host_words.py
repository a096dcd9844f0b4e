"""Words alone in a real ComfyUI: no head, nothing to preview with, and the prompt's own words without a wire."""

from __future__ import annotations

from typing import Any

import pytest
from comfyui import graphs, host

pytestmark = pytest.mark.host


def run(server: host.Server, prompt: graphs.Prompt) -> dict[str, Any]:
    """A prompt that must work."""
    entry = server.run(prompt)
    assert host.error_of(entry) is None, host.error_of(entry)
    return entry


def shown_in(entry: dict[str, Any], node_id: str) -> dict[str, Any]:
    """What the page shows in a node, of whatever it expanded to."""
    return next(entry["outputs"][key] for key, meta in entry["meta"].items() if meta["display_node"] == node_id)


def without_head(prompt: graphs.Prompt) -> graphs.Prompt:
    """The same with no head loaded anywhere."""
    for node in prompt.values():
        node["inputs"].pop("head", None)
    return {name: node for name, node in prompt.items() if node["class_type"] != "LDZNetLoadHead"}


def test_one_node_more_than_a_sampler_is_enough(server: host.Server) -> None:
    """It is shown in the node; a threshold that moves takes no pass, and the picture changes."""
    prompt = without_head({**graphs.sampled(seed=61), "segment": graphs.segment()})
    prompt["counted"] = graphs.node("ProbeModel", model=["world", 0], kind="counted")
    prompt["segment"]["inputs"]["model"] = ["counted", 0]
    first = shown_in(run(server, prompt), "segment")
    assert len(first["images"]) == 1
    assert first["text"][0].splitlines()[0].startswith("a red star: ")
    picture = server.picture(first["images"][0])
    prompt["segment"]["inputs"]["threshold"] = 0.9
    prompt["state"] = graphs.node("ProbeState", model=["counted", 0], after=["segment", 0])
    prompt["save"] = graphs.save(["state", 0], "state")
    before = shown_in(run(server, prompt), "segment")
    calls = server.saved("state")
    prompt["segment"]["inputs"]["threshold"] = 0.1
    after = shown_in(run(server, prompt), "segment")
    assert server.saved("state") == calls
    pictures = {picture, *(server.picture(seen["images"][0]) for seen in (before, after))}
    assert len(pictures) == 3


def test_a_capture_without_a_head_is_of_attention(server: host.Server) -> None:
    prompt = without_head(graphs.captured("a red star", seed=62))
    prompt["segment"]["inputs"]["prompt"] = prompt["positive"]["inputs"]["text"]
    seen = shown_in(run(server, prompt), "segment")
    assert 'read from the sampling itself: "a red star"' in seen["text"][0]
    assert len(seen["images"]) == 1
