"""Captures beside what other packs and core nodes do to a model: the picture stays as it is, and there are masks.

What reads both kinds of attention is a small SD 1.x of random weights: the tiny world's configuration reads one.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfyui import graphs, host

pytestmark = pytest.mark.host

ATTENTION = "attention (no download)"
PROMPT = "a photo of a dog on grass"
PHRASES = "a dog\ngrass"
BESIDE: dict[str, tuple[str, dict[str, Any]]] = {
    "merged tokens": ("TomePatchModel", {"ratio": 0.5}),
    "tiles": ("HyperTile", {"tile_size": 64, "swap_size": 1, "max_depth": 0, "scale_depth": False}),
    "most steps skipped": (
        "EasyCache",
        {"reuse_threshold": 3.0, "start_percent": 0.15, "end_percent": 1.0, "verbose": False},
    ),
    "compiled": ("ProbeBeside", {"kind": "compiled"}),
    "deep cache": ("ProbeBeside", {"kind": "deep cache"}),
    "own forward": ("ProbeBeside", {"kind": "own forward"}),
}


def run(server: host.Server, prompt: graphs.Prompt) -> None:
    """A prompt that must work."""
    failed = host.error_of(server.run(prompt))
    assert failed is None, failed


def sd1(kind: str | None, seed: int, steps: int = 8) -> graphs.Prompt:
    """A sampler on the small SD 1.x with `kind` beside it, under "latent"; its model before that under "counted"."""
    prompt = graphs.sampled(seed=seed, steps=steps)
    prompt |= {
        "family": graphs.node("ProbeFamily", family="sd1"),
        "head": graphs.node("LDZNetLoadHead", head=ATTENTION),
        "positive": graphs.node("CLIPTextEncode", clip=["family", 1], text=PROMPT),
        "negative": graphs.node("CLIPTextEncode", clip=["family", 1], text=""),
        "counted": graphs.node("ProbeModel", model=["family", 0], kind="counted"),
        "show latent": graphs.save(["latent", 0], "latents"),
    }
    beside = ["counted", 0]
    if kind is not None:
        class_type, settings = BESIDE[kind]
        prompt["beside"], beside = graphs.node(class_type, model=beside, **settings), ["beside", 0]
    prompt["latent"]["inputs"]["model"] = beside
    return prompt


def tiny(kind: str, seed: int) -> graphs.Prompt:
    """As `sd1`, on the tiny world with its trained head."""
    class_type, settings = BESIDE[kind]
    prompt = {**graphs.sampled(seed=seed, steps=8), "show latent": graphs.save(["latent", 0], "latents")}
    prompt["counted"] = graphs.node("ProbeModel", model=["world", 0], kind="counted")
    prompt["beside"] = graphs.node(class_type, model=["counted", 0], **settings)
    prompt["latent"]["inputs"]["model"] = ["beside", 0]
    return prompt


def under_a_capture(prompt: graphs.Prompt, clip: list[Any], text: str, prompted: str | None) -> graphs.Prompt:
    """The same with its sampler under a capture, Segment Captured, and UNet calls counted before and after that."""
    beside, prompt = prompt["latent"]["inputs"]["model"], {**prompt}
    prompt["capture"] = graphs.node("LDZNetCapture", model=beside, head=["head", 0])
    prompt["latent"] = {**prompt["latent"], "inputs": {**prompt["latent"]["inputs"], "model": ["capture", 0]}}
    links = {"latent": ["latent", 0], "capture": ["capture", 1], "clip": clip, "head": ["head", 0]}
    prompt["segment"] = graphs.node("LDZNetSegmentCaptured", **links, text=text, threshold=0.5)
    if prompted is not None:
        prompt["segment"]["inputs"]["prompt"] = prompted
    prompt["before"] = graphs.node("ProbeState", model=["counted", 0], after=["latent", 0])
    prompt["after"] = graphs.node("ProbeState", model=["counted", 0], after=["segment", 0])
    values = {"maps": ["segment", 2], "report": ["segment", 4], "before": ["before", 0], "after": ["after", 0]}
    return prompt | {f"save {name}": graphs.save(link, name) for name, link in values.items()}


def require_untouched_picture(server: host.Server, prompt: graphs.Prompt, clip: list[Any], text: str = PHRASES) -> None:
    """`prompt` runs with and without a capture, and paints the same; Segment by Text of it is saved as "by a pass"."""
    run(server, prompt)
    plain = server.saved("latents")[0]["samples"]
    prompt = under_a_capture(prompt, clip, text, PROMPT)
    links = {"model": ["counted", 0], "clip": clip}
    prompt |= {"plain": graphs.segment(text, **links), "save plain": graphs.save(["plain", 2], "by a pass")}
    prompt["plain"]["inputs"]["latent"] = ["after the captured", 0]
    prompt["after the captured"] = graphs.node("ProbeLater", value=["latent", 0], after=["after", 0])
    run(server, prompt)
    assert torch.equal(server.saved("latents")[0]["samples"], plain)


def require_masks_by_passes(server: host.Server, said: str) -> None:
    """The masks are those of Segment by Text, and the report says why."""
    assert said in server.saved("report")[0]
    maps, by_a_pass = (server.saved(name)[0]["probabilities"] for name in ("maps", "by a pass"))
    assert maps.std() > 0.05
    assert torch.allclose(maps, by_a_pass, atol=1e-5)


def passes(server: host.Server) -> int:
    """UNet calls that Segment Captured made."""
    before, after = (int(server.saved(name)[0].split()[0]) for name in ("before", "after"))
    assert server.saved("after")[0].endswith("0 hooks")
    return after - before


def test_alone_no_pass_is_needed(server: host.Server) -> None:
    run(server, under_a_capture(sd1(None, 50), ["family", 1], PHRASES, PROMPT))
    assert passes(server) == 0
    assert 'read from the sampling itself: "a dog", "grass"' in server.saved("report")[0]


@pytest.mark.parametrize("kind", ["merged tokens", "tiles", "most steps skipped"])
def test_cross_attention_is_used_and_self_attention_takes_a_pass(server: host.Server, kind: str) -> None:
    require_untouched_picture(server, sd1(kind, seed=51), ["family", 1])
    assert 'read from the sampling itself: "a dog", "grass"; self-attention from a pass' in server.saved("report")[0]
    assert passes(server) == 1
    maps, by_a_pass = (server.saved(name)[0]["probabilities"] for name in ("maps", "by a pass"))
    assert maps.std() > 0.05
    assert not torch.allclose(maps, by_a_pass, atol=0.01)


def test_steps_that_are_whole_are_enough(server: host.Server) -> None:
    require_untouched_picture(server, sd1("deep cache", seed=52), ["family", 1])
    *_, read, prompt = server.saved("report")[0].splitlines()
    assert read == 'read from the sampling itself: "a dog", "grass"'
    assert prompt == f'the prompt: "{PROMPT}"'
    assert passes(server) == 0


@pytest.mark.parametrize("kind", ["compiled", "own forward"])
def test_where_no_attention_was_read_it_takes_a_pass(server: host.Server, kind: str) -> None:
    require_untouched_picture(server, sd1(kind, seed=53), ["family", 1])
    require_masks_by_passes(server, "compiles or replaces the model's calls; all phrases took a pass")
    assert passes(server) == 1


@pytest.mark.parametrize("kind", ["most steps skipped", "compiled", "own forward"])
def test_where_no_features_were_read_they_take_a_pass(server: host.Server, kind: str) -> None:
    """The trained head, on the model that it was trained on."""
    require_untouched_picture(server, tiny(kind, seed=54), ["world", 1], "a red star\ngrass")
    require_masks_by_passes(server, "nothing was captured while sampling")
    assert passes(server) == 1  # both phrases' rows in one call


def test_steps_that_are_whole_leave_features(server: host.Server) -> None:
    require_untouched_picture(server, tiny("deep cache", seed=55), ["world", 1], "a red star\ngrass")
    assert passes(server) == 0
    assert "nothing was captured" not in server.saved("report")[0]
