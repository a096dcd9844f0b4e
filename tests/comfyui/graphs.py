"""Prompts for the API, on the tiny world."""

from __future__ import annotations

from typing import Any

Prompt = dict[str, Any]


def node(class_type: str, /, **inputs: Any) -> dict[str, Any]:
    """A node; links are [id, output]."""
    return {"class_type": class_type, "inputs": inputs}


def base(prompt: str = "a photo of a red star on grass") -> Prompt:
    """World, head and two prompts."""
    return {
        "world": node("LDZNetTinyWorld"),
        "head": node("LDZNetLoadHead", head="tiny (embedded)"),
        "positive": node("CLIPTextEncode", clip=["world", 1], text=prompt),
        "negative": node("CLIPTextEncode", clip=["world", 1], text=""),
    }


def sampler(model: list[Any], latent: list[Any], **changes: Any) -> dict[str, Any]:
    """A KSampler of few steps."""
    settings = {"seed": 1, "steps": 6, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    links = {"model": model, "positive": ["positive", 0], "negative": ["negative", 0], "latent_image": latent}
    return node("KSampler", **{**links, **settings, **changes})


def sampled(batch: int = 1, height: int = 128, width: int = 128, **changes: Any) -> Prompt:
    """Latents from a sampler, under "latent"."""
    size = node("EmptyLatentImage", width=width, height=height, batch_size=batch)
    return {**base(), "size": size, "latent": sampler(["world", 0], ["size", 0], **changes)}


def segment(text: str = "a red star\ngrass", **changes: Any) -> dict[str, Any]:
    """Segment by Text; of the latent under "latent" unless `changes` say otherwise."""
    links = {"model": ["world", 0], "clip": ["world", 1], "head": ["head", 0], "latent": ["latent", 0]}
    settings = {"text": text, "threshold": 0.5, "seed": 0, "ensemble": 1, "resolution": "head"}
    inputs = {**links, **settings, **changes}
    return node("LDZNetSegment", **{name: value for name, value in inputs.items() if value is not None})


def captured(text: str = "a red star\ngrass", **changes: Any) -> Prompt:
    """A sampler under a capture, and Segment Captured under "segment"."""
    prompt = sampled(**changes)
    prompt["capture"] = node("LDZNetCapture", model=["world", 0], head=["head", 0])
    prompt["latent"]["inputs"]["model"] = ["capture", 0]
    links = {"latent": ["latent", 0], "capture": ["capture", 1], "clip": ["world", 1], "head": ["head", 0]}
    prompt["segment"] = node("LDZNetSegmentCaptured", **links, text=text, threshold=0.5)
    return prompt


def save(value: list[Any], name: str) -> dict[str, Any]:
    """Writes a value for the test to read: `server.saved(name)`."""
    return node("ProbeSave", value=value, name=name)
