"""Detail by Words over the stand-ins: what it expands to, crop by crop."""

from __future__ import annotations

from collections import Counter
from types import ModuleType
from typing import Any

import pytest
import torch
from comfyui import running

SAMPLING = {"seed": 7, "steps": 4, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 0.5}
SETTINGS = {**SAMPLING, "side": 128, "padding": 4, "feather": 2}
LINKS = {name: [name, 0] for name in ("model", "clip", "vae")}
DETAILS = "a star => a blue star\ngrass => sand"


def two_stars() -> torch.Tensor:
    """Two stars far apart in the first of two images; none, and no grass, in the second."""
    maps = torch.full((2, 2, 96, 200), 0.02)
    maps[0, 0, 40:60, 10:30], maps[0, 0, 30:60, 150:180] = 0.9, 0.9
    return maps


def test_each_find_is_a_crop(nodes: ModuleType, segmented: Any) -> None:
    given = {
        **LINKS,
        "segmentation": segmented(two_stars()),
        "found": ["f", 0],
        "image": ["i", 0],
        "negative": ["n", 0],
    }
    out = running.execute(nodes, "LDZNetInnerDetail", **given, details=DETAILS, **SETTINGS)
    kinds = Counter(node["class_type"] for node in out.expand.values())
    assert (kinds["KSampler"], kinds["ImageFromBatch"], kinds["ImageBatch"]) == (2, 2, 1)
    samplers = [node["inputs"] for node in out.expand.values() if node["class_type"] == "KSampler"]
    assert [inputs["seed"] for inputs in samplers] == [7, 8]
    assert all(inputs["model"] == ["model", 0] and inputs["negative"] == ["n", 0] for inputs in samplers)
    composites = [node["inputs"] for node in out.expand.values() if node["class_type"] == "ImageCompositeMasked"]
    assert out.expand[composites[1]["destination"][0]]["class_type"] == "ImageCompositeMasked"  # what the first painted
    assert [(inputs["x"], inputs["y"]) for inputs in composites] == [(141, 21), (1, 31)]  # the larger first
    mask, report = out[1], out[2]
    assert mask.shape == (2, 96, 200)
    assert not mask[1].any()
    assert mask[0, 40:60, 10:30].min() == mask[0, 30:60, 150:180].min() == 1
    assert mask[0, :, 45:135].max() == 0
    assert report.splitlines() == [
        'image 1, "a star": 48 x 48 at 141, 21, sampled at 128 x 128',
        'image 1, "a star": 38 x 38 at 1, 31, sampled at 128 x 128',
        'image 1, "grass": nothing to paint',
        'image 2, "a star": nothing to paint',
        'image 2, "grass": nothing to paint',
    ]


def test_a_piece_is_what_the_mask_says(nodes: ModuleType, segmented: Any) -> None:
    there = segmented(two_stars())
    pieces = [
        running.execute(nodes, "LDZNetInnerPiece", segmentation=there, image=0, phrase=0, piece=k, feather=0)[0]
        for k in range(2)
    ]
    assert [int(piece.sum()) for piece in pieces] == [900, 400]
    assert torch.equal(torch.stack(pieces).sum(0), there.masks(0.5)[:1, 0])


@pytest.mark.parametrize("source", ["image", "latent"])
def test_what_is_segmented_and_what_is_painted(nodes: ModuleType, source: str) -> None:
    given = {**LINKS, source: [source, 0]}
    out = running.execute(nodes, "LDZNetDetail", **given, details=DETAILS, threshold=0.3, **SETTINGS)
    by_kind = {node["class_type"]: node["inputs"] for node in out.expand.values()}
    assert by_kind["LDZNetInnerSegment"]["text"] == "a star\ngrass"
    assert by_kind["LDZNetInnerSegment"][source] == [source, 0]
    assert by_kind["LDZNetInnerMasks"]["threshold"] == 0.3
    assert ("VAEDecode" in by_kind) == (source == "latent")
    assert by_kind["LDZNetInnerDetail"]["segmentation"] == by_kind["LDZNetInnerDetail"]["found"]


def test_lines_are_checked_at_once(nodes: ModuleType) -> None:
    with pytest.raises(ValueError, match=r'Expected lines "phrase => prompt".*socket: details'):
        running.execute(nodes, "LDZNetDetail", **LINKS, image=["i", 0], details="a star", threshold=0.3, **SETTINGS)
