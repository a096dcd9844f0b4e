"""A model that no head reads: what is said of it, and what works beside it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from comfyui import graphs, host

pytestmark = pytest.mark.host

HEADS = ["attention (no download)", "tiny (embedded)"]


def beside(head: str = HEADS[0], **links: Any) -> graphs.Prompt:
    """Segment by Text with a head, and a small relative of Z-Image with its VAE beside; `links` replace some."""
    if reason := host.lacking("ZImage"):
        pytest.skip(reason)
    prompt = {**graphs.base(), "head": graphs.node("LDZNetLoadHead", head=head), "other": graphs.node("ProbeZImage")}
    prompt["picture"] = graphs.node("EmptyImage", width=128, height=128, batch_size=1, color=0x40A040)
    prompt["latent"] = graphs.node("ProbeLatent", shape="1 16 16 16", fill=0.5)
    given = {"latent": None, "image": ["picture", 0], "vae": ["world", 2], **links}
    prompt["segment"] = graphs.segment("grass", **given)
    return {**prompt, "show": graphs.save(["segment", 2], "maps"), "state": graphs.save(["segment", 4], "report")}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("picture", [{}, {"latent": ["latent", 0]}], ids=["image", "latent"])
def test_a_model_without_a_head_is_sent_to_one_beside_it(server: host.Server, head: str, picture: Any) -> None:
    failed = host.error_of(server.run(beside(head, model=["other", 0], **picture))) or ""
    wanted = r"Expected a Stable Diffusion .* in the socket model, got a NextDiT.*Load Checkpoint.*as image.*Workflow 8"
    assert re.search(wanted, failed), failed
    assert "take the head" not in failed


def test_so_does_capturing_while_it_samples(server: host.Server) -> None:
    prompt = beside()
    prompt["capture"] = graphs.node("LDZNetCapture", model=["other", 0], head=["head", 0])
    prompt["save"] = graphs.save(["capture", 0], "nothing")
    assert "Workflow 8" in (host.error_of(server.run(prompt)) or "")


@pytest.mark.parametrize(
    ("links", "wanted"),
    [
        ({"latent": ["latent", 0]}, r"latent of 4 channels.*got 16.*Give the picture itself.*\(socket: latent\)"),
        ({"vae": ["other", 1]}, r"VAE of 4 latent channels, got one of 16.*\(socket: vae\)"),
    ],
)
def test_what_belongs_to_the_other_model_is_told_apart(server: host.Server, links: Any, wanted: str) -> None:
    failed = host.error_of(server.run(beside(**links))) or ""
    assert re.search(wanted, failed), failed


def test_its_picture_is_segmented(server: host.Server) -> None:
    failed = host.error_of(server.run(beside()))
    assert failed is None, failed
    maps = server.saved("maps")[0]["probabilities"]
    assert maps.shape == (1, 1, 128, 128)
    assert torch.isfinite(maps).all()
