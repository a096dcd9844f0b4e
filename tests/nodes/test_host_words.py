"""Words alone in a real ComfyUI: no head, nothing to preview with, and the prompt's own words without a wire."""

from __future__ import annotations

import re
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


def captured_words(text: str = "", said: str = "a photo of a red star on grass", **changes: Any) -> graphs.Prompt:
    """A sampler under a capture, its UNet counted; Segment Captured without a head and without a prompt."""
    prompt = without_head(graphs.captured(text, **changes))
    prompt["positive"]["inputs"]["text"] = said
    prompt["counted"] = graphs.node("ProbeModel", model=["world", 0], kind="counted")
    prompt["capture"]["inputs"]["model"] = ["counted", 0]
    prompt["before"] = graphs.node("ProbeState", model=["counted", 0], after=["latent", 0])
    prompt["after"] = graphs.node("ProbeState", model=["counted", 0], after=["segment", 0])
    saves = {"before": ["before", 0], "after": ["after", 0], "report": ["segment", 4], "maps": ["segment", 2]}
    return prompt | {f"save {name}": graphs.save(link, name) for name, link in saves.items()}


def passes(server: host.Server) -> int:
    """UNet calls that Segment Captured made."""
    before, after = (int(server.saved(name)[0].split()[0]) for name in ("before", "after"))
    return after - before


def phrases_of(server: host.Server) -> list[str]:
    """The phrases that a report has lines of."""
    return re.findall(r'^image 1, "([^"]+)"', server.saved("report")[0], re.MULTILINE)


def test_the_prompt_finds_itself_and_an_edit_is_seen(server: host.Server) -> None:
    """The capture's node stays cached when the prompt alone changes."""
    prompt = captured_words(seed=63)
    run(server, prompt)
    assert phrases_of(server) == ["red star", "grass"]
    assert 'the prompt: "a photo of a red star on grass"' in server.saved("report")[0]
    assert passes(server) == 0
    prompt["positive"]["inputs"]["text"] = "a photo of a blue fish on (sand:1.2)"
    run(server, prompt)
    assert phrases_of(server) == ["blue fish", "sand"]
    assert 'itself: "blue fish", "sand"' in server.saved("report")[0]
    assert passes(server) == 0


def through(prompt: graphs.Prompt, kind: str) -> list[str]:
    """Changes how the texts lead to the sampler; gives the phrases that are to be found."""
    prompt["other"] = graphs.node("CLIPTextEncode", clip=["world", 1], text="a blue fish on sand")
    both = {"conditioning_1": ["positive", 0], "conditioning_2": ["other", 0]}
    parts = {"conditioning_to": ["positive", 0], "conditioning_from": ["other", 0]}
    if kind == "clip skip":
        prompt["skip"] = graphs.node("CLIPSetLastLayer", clip=["world", 1], stop_at_clip_layer=-2)
        prompt["positive"]["inputs"]["clip"] = ["skip", 0]
        return ["red star", "grass"]
    if kind == "text by wire":
        prompt["text"] = graphs.node("PrimitiveString", value="a red star on snow")
        prompt["positive"]["inputs"]["text"] = ["text", 0]
        return ["red star", "snow"]
    made = {
        "combine": graphs.node("ConditioningCombine", **both),
        "concat": graphs.node("ConditioningConcat", **parts),
        "average": graphs.node("ConditioningAverage", **parts, conditioning_to_strength=0.5),
    }
    prompt["made"] = made[kind]
    prompt["latent"]["inputs"]["positive"] = ["made", 0]
    return ["red star", "grass", "blue fish", "sand"]


@pytest.mark.parametrize("kind", ["clip skip", "text by wire", "combine", "concat", "average"])
def test_texts_on_their_way_to_the_sampler(server: host.Server, kind: str) -> None:
    """An average is no text: its words are asked all the same, by passes, and the report says so."""
    prompt = captured_words(seed=64)
    expected = through(prompt, kind)
    run(server, prompt)
    assert sorted(phrases_of(server)) == sorted(expected)
    assert ("not the text that was sampled with" in server.saved("report")[0]) == (kind == "average")
    assert (passes(server) == 0) == (kind != "average")


def test_every_word_of_the_prompt_with_a_trained_head(server: host.Server) -> None:
    prompt = graphs.captured("", seed=65)
    prompt["show"] = graphs.save(["segment", 4], "report")
    run(server, prompt)
    assert phrases_of(server) == ["red star", "grass"]


def test_an_empty_box_and_no_prompt_is_said(server: host.Server) -> None:
    prompt = captured_words(said="masterpiece, 8k", seed=66)
    assert "Expected a prompt with phrases in it" in (host.error_of(server.run(prompt)) or "")
