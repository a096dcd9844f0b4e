"""Taps in a real ComfyUI: those of the pack's host are the tiny host's, and captured ones are those of a pass alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfyui import graphs, host

from ldznet import load_head
from ldznet.hosts.tiny import TinyHost
from ldznet.taps import extract_taps

pytestmark = pytest.mark.host

SCALE = 0.18215
PROMPT = "a photo of a red star on grass"  # graphs.base's


@pytest.fixture(scope="module")
def tiny() -> TinyHost:
    """The core's own host of the same model."""
    return TinyHost.load()


def run(server: host.Server, prompt: graphs.Prompt) -> None:
    """A prompt that must work."""
    entry = server.run(prompt)
    assert host.error_of(entry) is None, host.error_of(entry)


@pytest.mark.parametrize("timestep", [50, 400])
def test_taps_are_those_of_the_tiny_host(server: host.Server, tiny: TinyHost, timestep: int) -> None:
    """Every block, of a batch of two that is not square."""
    links: dict[str, Any] = {"model": ["world", 0], "clip": ["world", 1], "head": ["head", 0], "latent": ["latent", 0]}
    prompt = graphs.sampled(2, 128, 192, seed=41, steps=3)
    prompt["taps"] = graphs.node("ProbeTaps", **links, text="a red star", timestep=timestep)
    prompt |= {"save": graphs.save(["taps", 0], "taps"), "latents": graphs.save(["latent", 0], "latents")}
    run(server, prompt)
    found, clean = server.saved("taps")[0], server.saved("latents")[0]["samples"] * SCALE
    noise, steps = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)), torch.full((2,), timestep)
    context = tiny.encode_text(["a red star"]).expand(2, -1, -1)
    expected = tiny.extract(tiny.add_noise(clean, noise, steps), steps, context, list(tiny.specs))
    assert set(found) == set(expected)
    for block, tap in expected.items():
        torch.testing.assert_close(found[block], tap, atol=2e-3, rtol=0)
        assert tap.std() > 0.1


def test_captured_taps_are_those_of_a_pass_over_the_same_latents(server: host.Server, tiny: TinyHost) -> None:
    prompt = graphs.captured(batch=2, seed=42)
    prompt["recorded"] = graphs.node("ProbeModel", model=["world", 0], kind="recorded")
    prompt["capture"]["inputs"]["model"] = ["recorded", 0]
    links = {"capture": ["capture", 1], "latent": ["latent", 0], "model": ["recorded", 0]}
    prompt["seen"] = graphs.node("ProbeCaptured", **links)
    prompt["save"] = graphs.save(["seen", 0], "seen")
    run(server, prompt)
    seen = server.saved("seen")[0]
    positive = (seen["context"] - tiny.encode_text([PROMPT])).abs().amax(dim=(1, 2)) < 1e-3
    assert positive.tolist().count(True) == 2  # of four rows, two without the prompt
    x, timesteps, context = (seen[name][positive] for name in ("x", "timesteps", "context"))
    config = load_head("tiny").head_config
    assert abs(float(timesteps[0]) - config.timestep) < 150
    blocks = list(config.tap_specs)
    with torch.no_grad():
        expected = extract_taps(tiny.models.unet, blocks, lambda: tiny.models.unet(x, timesteps.long(), context))
    assert set(seen) == {"x", "timesteps", "context", *blocks}
    for block in blocks:
        torch.testing.assert_close(seen[block], expected[block], atol=2e-3, rtol=0)
