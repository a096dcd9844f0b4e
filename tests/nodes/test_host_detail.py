"""Detail by Words in a real ComfyUI: crops where things are, everything else as it was."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from comfyui import graphs, host
from PIL import Image

from ldznet.tinyworld import scene

pytestmark = pytest.mark.host

SETTINGS = {"seed": 3, "steps": 4, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 0.7}
CROPS = {"side": 128, "padding": 8, "feather": 2}
SEED, THING, ABSENT = 21, "a heart", "a yellow cat"  # also there: a red bird, a green key


def detail(server: host.Server, details: str, **changes: Any) -> graphs.Prompt:
    """A scene beside its mirror image, so that its heart is there twice and far apart; and Detail by Words."""
    one = scene(SEED, "photo").image
    Image.fromarray(np.concatenate([one, one[:, ::-1]], axis=1)).save(server.base / "input" / "two.png")
    links = {
        "model": ["world", 0],
        "clip": ["world", 1],
        "vae": ["world", 2],
        "image": ["loaded", 0],
        "head": ["head", 0],
    }
    inputs = {**links, "details": details, "threshold": 0.5, **SETTINGS, **CROPS, **changes}
    inputs = {name: value for name, value in inputs.items() if value is not None}
    prompt = {**graphs.base(), "loaded": graphs.node("LoadImage", image="two.png")}
    prompt["detail"] = graphs.node("LDZNetDetail", **inputs)
    saves = {"before": ["loaded", 0], "after": ["detail", 0], "mask": ["detail", 1], "report": ["detail", 2]}
    return prompt | {f"save {name}": graphs.save(link, name) for name, link in saves.items()}


def run(server: host.Server, prompt: graphs.Prompt) -> dict[str, Any]:
    """What a prompt that must work has saved."""
    entry = server.run(prompt)
    assert host.error_of(entry) is None, host.error_of(entry)
    return {name: server.saved(name)[0] for name in ("before", "after", "mask", "report")}


def test_two_finds_are_two_crops_and_the_rest_stays(server: host.Server) -> None:
    found = run(server, detail(server, f"{THING} => a photo of a yellow heart on grass"))
    lines = found["report"].splitlines()
    assert len(lines) == 2
    widths = [int(width) for width in re.findall(r": (\d+) x \d+ at", found["report"])]
    assert len(widths) == 2
    assert max(widths) < 128
    before, after, mask = found["before"], found["after"], found["mask"]
    assert after.shape == before.shape
    assert torch.equal(after[mask == 0], before[mask == 0])
    halves = (mask[0, :, :128] == 1).sum(), (mask[0, :, 128:] == 1).sum()
    assert min(halves) > 64
    for half in (slice(0, 128), slice(128, 256)):
        inside = mask[0, :, half] == 1
        assert (after[0, :, half] - before[0, :, half]).abs()[inside].mean() > 0.02


def test_what_is_not_there_leaves_the_picture(server: host.Server) -> None:
    """Neither its colour nor its kind is in the scene: a green fish would be, for the tiny head, the green key."""
    found = run(server, detail(server, f"{ABSENT} => a red fish"))
    assert found["report"] == f'image 1, "{ABSENT}": nothing to paint'
    assert torch.equal(found["after"], found["before"])
    assert not found["mask"].any()


def test_latents_in_a_batch(server: host.Server) -> None:
    """Each image has crops of its own; what is not painted is what VAE Decode gives."""
    prompt = detail(server, "grass => a photo of sand", image=None, latent=["latent", 0])
    prompt["size"] = graphs.node("EmptyLatentImage", width=128, height=128, batch_size=2)
    prompt["latent"] = graphs.sampler(["world", 0], ["size", 0], seed=5)
    prompt["decoded"] = graphs.node("VAEDecode", samples=["latent", 0], vae=["world", 2])
    prompt["save before"] = graphs.save(["decoded", 0], "before")
    found = run(server, prompt)
    assert found["after"].shape == found["before"].shape == (2, 128, 128, 3)
    assert torch.equal(found["after"][found["mask"] == 0], found["before"][found["mask"] == 0])
    assert 'image 2, "grass": ' in found["report"]


def test_nothing_to_look_at_is_said(server: host.Server) -> None:
    prompt = detail(server, f"{THING} => a star", image=None)
    assert "Expected an image or a latent, got neither" in (host.error_of(server.run(prompt)) or "")
