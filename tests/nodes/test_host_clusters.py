"""Regions without Words and Smooth over Frames in a real ComfyUI."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from comfyui import graphs, host

from ldznet.clustering import KINDS
from ldznet.frames import steadied
from ldznet.segmentation import Segmentation

pytestmark = pytest.mark.host

COUNT, STRENGTH = 4, 0.6


def run(server: host.Server, prompt: graphs.Prompt) -> None:
    """A prompt that must work."""
    failed = host.error_of(server.run(prompt))
    assert failed is None, failed


def clusters(source: str, model: str = "world", **links: Any) -> dict[str, Any]:
    """The node, of the latent under "latent" unless `links` say otherwise."""
    links = {"latent": ["latent", 0], **links}
    inputs = {"model": [model, 0], "clip": [model, 1], "count": COUNT, "source": source, "seed": 0, **links}
    return graphs.node("LDZNetClusters", **{name: value for name, value in inputs.items() if value is not None})


def parted(server: host.Server, prompt: graphs.Prompt) -> tuple[torch.Tensor, torch.Tensor]:
    """Soft maps and shares of the regions under "regions"."""
    run(server, {**prompt, "show": graphs.save(["regions", 0], "regions")})
    found = server.saved("regions")[0]
    return found["probabilities"], found["scores"]


@pytest.mark.parametrize("source", KINDS)
def test_every_place_is_in_one_region(server: host.Server, source: str) -> None:
    """In each picture of a batch; the largest first; the same again; and no hook is left."""
    prompt = graphs.sampled(batch=2, height=96, width=128)
    prompt["regions"] = clusters(source)
    prompt["state"] = graphs.node("ProbeState", model=["world", 0], after=["regions", 0])
    maps, shares = parted(server, {**prompt, "show state": graphs.save(["state", 0], "state")})
    assert server.saved("state")[0].endswith(" 0 hooks")
    assert maps.shape == (2, COUNT, 96, 128)
    assert ((maps > 0.5).sum(1) == 1).float().mean() > 0.9  # but for edges, drawn finer than they were found
    assert torch.equal(shares, shares.sort(dim=1, descending=True).values)
    assert shares.sum(1).sub(1).abs().max() < 0.02
    assert shares.min() > 0
    assert not torch.equal(maps[0], maps[1])
    prompt["regions"]["inputs"]["seed"] = 1
    other, _ = parted(server, prompt)
    assert not torch.equal(other, maps)


def test_regions_become_masks_and_labels(server: host.Server) -> None:
    prompt = graphs.sampled()
    prompt["regions"] = clusters("features")
    settings = {"mode": "threshold", "threshold": -1.0, "phrases": "1", "fill_holes": False, "drop_specks": 0}
    shape = {"grow": 0, "feather": 0, "refine": "none"}
    prompt["mask"] = graphs.node("LDZNetMask", segmentation=["regions", 0], **settings, **shape)
    prompt["labels"] = graphs.node("LDZNetLabelMap", segmentation=["regions", 0], background=0.0)
    values = {"mask": ["mask", 0], "labels": ["labels", 0], "legend": ["labels", 4]}
    maps, _ = parted(server, {**prompt, **{f"save {name}": graphs.save(link, name) for name, link in values.items()}})
    assert torch.equal(server.saved("mask")[0], (maps[:, 0] > 0.5).float())
    assert torch.equal((server.saved("labels")[0] * 255).round() - 1, maps.argmax(1).float())
    assert [line.split(maxsplit=1)[1] for line in server.saved("legend")[0].splitlines()] == [
        f"region {i + 1}" for i in range(COUNT)
    ]


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("source", KINDS)
def test_other_families(server: host.Server, family: str, source: str) -> None:
    """Small models of random weights."""
    prompt = {"family": graphs.node("ProbeFamily", family=family), "regions": clusters(source, "family")}
    prompt |= {key: node for key, node in graphs.sampled(width=192).items() if key != "head"}
    maps, shares = parted(server, prompt)
    assert maps.shape == (1, COUNT, 128, 192)
    assert maps.isfinite().all()
    assert 0 < shares.min() <= shares.max() < 1


def test_of_a_picture(server: host.Server) -> None:
    prompt = {**graphs.sampled(), "picture": graphs.node("VAEDecode", samples=["latent", 0], vae=["world", 2])}
    prompt["regions"] = clusters("features", latent=None, image=["picture", 0], vae=["world", 2])
    maps, _ = parted(server, prompt)
    prompt["regions"] = clusters("features")
    of_latents, _ = parted(server, prompt)
    assert maps.shape == (1, COUNT, 128, 128)
    assert (maps[:, 0] - of_latents[:, 0]).abs().mean() < 0.2  # the same picture, encoded again


@pytest.mark.parametrize(
    ("links", "wanted"),
    [
        ({"latent": None}, r"Expected a latent, or an image and a vae, got neither"),
        ({"model": "other"}, r"Expected a UNet \(SD 1.x, SD 2.x or SDXL\) in the socket model, got Qwen-Image"),
    ],
)
def test_what_does_not_fit_is_said(server: host.Server, links: Any, wanted: str) -> None:
    prompt = {**graphs.sampled(), "other": graphs.node("ProbeTransformer", family="qwen")}
    prompt["regions"] = clusters("features", **links)
    failed = host.error_of(server.run({**prompt, "show": graphs.save(["regions", 0], "regions")})) or ""
    assert re.search(wanted, failed), failed


def test_frames_are_smoothed_over_time(server: host.Server) -> None:
    """As the library does it; a strength of 0 is nothing; what follows sees the smoothed masks."""
    prompt = graphs.sampled(batch=3)
    prompt |= {"segment": graphs.segment(), "frames": smoothed(STRENGTH), "none": smoothed(0.0)}
    links = {"before": ["segment", 2], "after": ["frames", 0], "unchanged": ["none", 0]}
    run(server, prompt | {f"save {name}": graphs.save(link, name) for name, link in links.items()})
    before, after, unchanged = (server.saved(name)[0] for name in links)
    assert torch.equal(unchanged["probabilities"], before["probabilities"])
    expected = steadied(Segmentation(before["logits"], ("", ""), (128, 128), before["scores"]), STRENGTH)
    assert torch.allclose(after["logits"], expected.logits, atol=1e-5)
    assert torch.allclose(after["scores"], expected.scores, atol=1e-6)
    assert flicker(after["probabilities"]) < 0.7 * flicker(before["probabilities"])


def smoothed(strength: float) -> dict[str, Any]:
    """Smooth over Frames of the segmentation under "segment"."""
    return graphs.node("LDZNetFrames", segmentation=["segment", 2], strength=strength)


def flicker(maps: torch.Tensor) -> float:
    """Mean distance between neighbouring frames."""
    return float((maps[1:] - maps[:-1]).abs().mean())
