"""The head without a download in a real ComfyUI: SD 1.x, SD 2.x and SDXL, and what a sampler leaves behind."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from comfyui import graphs, host

from ldznet import Predictor, load_head
from ldznet.attention import CONFIGS
from ldznet.hosts.tiny import TinyHost

pytestmark = pytest.mark.host

ATTENTION = "attention (no download)"
SCALE = 0.18215
PROMPT = "a photo of a red star on grass"  # graphs.base's
PRESENCE = len(CONFIGS["tiny"].presence.timesteps)  # passes that say whether a phrase is there


def run(server: host.Server, prompt: graphs.Prompt) -> None:
    """A prompt that must work."""
    entry = server.run(prompt)
    assert host.error_of(entry) is None, host.error_of(entry)


def by_attention(prompt: graphs.Prompt) -> graphs.Prompt:
    """The same with the head that needs no download."""
    return {**prompt, "head": graphs.node("LDZNetLoadHead", head=ATTENTION)}


@pytest.mark.parametrize("text", ["a red star", "a red star\ngrass - a red star\nsnow"])
def test_probabilities_are_the_core_s(server: host.Server, text: str) -> None:
    prompt = by_attention({**graphs.sampled(2, 128, 192), "segment": graphs.segment(text)})
    prompt |= {"maps": graphs.save(["segment", 2], "maps"), "report": graphs.save(["segment", 4], "report")}
    prompt["latents"] = graphs.save(["latent", 0], "latents")
    run(server, prompt)
    predictor = Predictor(TinyHost.load(), load_head("attention"))
    predictor.set_latents(server.saved("latents")[0]["samples"] * SCALE)
    expected, maps = predictor.predict(text.splitlines()), server.saved("maps")[0]
    assert (maps["probabilities"] - expected.probabilities).abs().max() < 1e-3
    assert (maps["scores"] - expected.scores).abs().max() < 1e-3
    assert ("cannot tell absent" in server.saved("report")[0]) != CONFIGS["tiny"].calibrated


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_other_families(server: host.Server, family: str) -> None:
    """Eight phrases in one pass, over latents of two pictures; a trained head says that it does not fit."""
    prompt = by_attention(graphs.base())
    prompt["family"] = graphs.node("ProbeFamily", family=family)
    prompt["counted"] = graphs.node("ProbeModel", model=["family", 0], kind="counted")
    prompt["latent"] = graphs.node("ProbeLatent", shape="2 4 32 48", fill=0.5)
    phrases = ["the dog", "a cup", "sky", "a (red) car", "grass", "trees", "a man", "a hat - the dog"]
    links = {"model": ["counted", 0], "clip": ["family", 1], "resolution": "native"}
    prompt["segment"] = graphs.segment("\n".join(phrases), **links)
    prompt["state"] = graphs.node("ProbeState", model=["counted", 0], after=["segment", 0])
    prompt |= {"maps": graphs.save(["segment", 2], "maps"), "show": graphs.save(["state", 0], "state")}
    run(server, prompt)
    assert server.saved("maps")[0]["probabilities"].shape == (2, 8, 256, 384)
    assert server.saved("maps")[0]["probabilities"].isfinite().all()
    assert server.saved("state") == ["2 calls, 0 hooks"]  # one of each picture
    prompt["head"] = graphs.node("LDZNetLoadHead", head="tiny (embedded)")
    refused = r"Expected a host of context width 64, which this head was trained on, got (1024|2048)"
    assert re.search(refused, host.error_of(server.run(prompt)) or "")


def captured(text: str, prompted: str | None = PROMPT, **changes: Any) -> graphs.Prompt:
    """A sampler under a capture of attention, counted; and what Segment Captured makes of it."""
    prompt = by_attention(graphs.captured(text, **changes))
    prompt["counted"] = graphs.node("ProbeModel", model=["world", 0], kind="counted")
    prompt["capture"]["inputs"]["model"] = ["counted", 0]
    if prompted is not None:
        prompt["segment"]["inputs"]["prompt"] = prompted
    prompt["before"] = graphs.node("ProbeState", model=["counted", 0], after=["latent", 0])
    prompt["after"] = graphs.node("ProbeState", model=["counted", 0], after=["segment", 0])
    values = {"latents": ["latent", 0], "maps": ["segment", 2], "report": ["segment", 4]}
    values |= {"before": ["before", 0], "after": ["after", 0]}
    return prompt | {f"save {name}": graphs.save(link, name) for name, link in values.items()}


def passes(server: host.Server) -> int:
    """UNet calls that Segment Captured made."""
    before, after = (int(server.saved(name)[0].split()[0]) for name in ("before", "after"))
    return after - before


def test_words_of_the_prompt_take_no_pass(server: host.Server) -> None:
    plain = graphs.sampled(2, seed=31)
    plain["show"] = graphs.save(["latent", 0], "plain")
    run(server, plain)
    run(server, captured("a red star\ngrass", batch=2, seed=31))
    assert torch.equal(server.saved("plain")[0]["samples"], server.saved("latents")[0]["samples"])
    assert server.saved("maps")[0]["probabilities"].shape == (2, 2, 128, 128)
    assert 'read from the sampling itself: "a red star", "grass"' in server.saved("report")[0]
    assert server.saved("after")[0].endswith("0 hooks")
    assert passes(server) == 0


@pytest.mark.parametrize(
    ("text", "prompted", "told"),
    [
        ("a red star\na fish\nsnow", PROMPT, 'itself: "a red star"'),
        ("a fish", PROMPT, "itself: no phrase"),
        ("a red star", "a photo of a red star on sand", "not the text that was sampled with"),
    ],
)
def test_other_phrases_take_one(server: host.Server, text: str, prompted: str | None, told: str) -> None:
    """One for all masks, and those of presence."""
    run(server, captured(text, prompted, seed=32))
    assert told in server.saved("report")[0]
    assert passes(server) == 1 + PRESENCE
    assert server.saved("maps")[0]["probabilities"].isfinite().all()


def test_what_was_read_is_said_where_one_looks(server: host.Server) -> None:
    """Below the legend of the preview, for the report need not be connected."""
    prompt = captured("grass", "a photo of snow", seed=35)
    del prompt["save report"]
    prompt["preview"] = graphs.node("LDZNetPreview", segmentation=["segment", 2], threshold=-1.0, opacity=0.6)
    (text,) = server.run(prompt)["outputs"]["preview"]["text"]
    assert "the prompt is not the text that was sampled with" in text


def test_weights_in_a_prompt_and_a_longer_negative(server: host.Server) -> None:
    """The prompt is encoded as CLIP Text Encode does; its context is repeated to the negative one's length."""
    said = "a photo of a (red star:1.3) on grass"
    prompt = captured("a red star", said, seed=33)
    prompt["positive"]["inputs"]["text"] = said
    prompt["negative"]["inputs"]["text"] = "snow, " * 60
    run(server, prompt)
    assert passes(server) == 0


def test_heads_of_two_kinds_do_not_mix(server: host.Server) -> None:
    prompt = captured("a red star", seed=34)
    prompt["other"] = graphs.node("LDZNetLoadHead", head="tiny (embedded)")
    prompt["segment"]["inputs"]["head"] = ["other", 0]
    assert "Connect the same head to both nodes" in (host.error_of(server.run(prompt)) or "")
