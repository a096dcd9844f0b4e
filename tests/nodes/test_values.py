"""What the nodes after a segmentation give, pixel by pixel: Mask, Label Map, Preview, Region Prompts."""

from __future__ import annotations

import dataclasses
import math
from types import ModuleType
from typing import Any

import pytest
import torch
from comfyui import running

PHRASES = ("a star", "grass", "a fish")
SIZE = 48


def box(top: int, bottom: int, left: int, right: int, value: float = 0.9, rest: float = 0.02) -> torch.Tensor:
    """A soft map h w of one box."""
    maps = torch.full((SIZE, SIZE), rest)
    maps[top:bottom, left:right] = value
    return maps


def mask_of(nodes: ModuleType, segmentation: Any, **changes: Any) -> tuple[torch.Tensor, bool]:
    """What Mask from Segmentation gives, with everything off but what `changes` say."""
    shape = {"refine": "none", "fill_holes": False, "drop_specks": 0, "grow": 0, "feather": 0}
    plain = {"phrases": "", "mode": "threshold", "threshold": 0.5, **shape}
    mask, found = running.execute(nodes, "LDZNetMask", segmentation=segmentation, **{**plain, **changes})
    return mask, found


def disc(mask: torch.Tensor, radius: int) -> torch.Tensor:
    """True where a pixel of `mask` (h w, true or false) is at most `radius` away."""
    inside = mask.nonzero().float()
    pixels = torch.cartesian_prod(torch.arange(SIZE), torch.arange(SIZE)).float()
    return (torch.cdist(pixels, inside).amin(dim=1) <= radius).view(SIZE, SIZE)


def blurred(mask: torch.Tensor, deviation: float) -> torch.Tensor:
    """h w under a Gaussian, with the edges repeated."""
    apart = torch.arange(-40, 41).float()
    kernel = torch.exp(-(apart**2) / (2 * deviation**2))
    kernel = kernel / kernel.sum()
    index = torch.arange(SIZE)[:, None] + torch.arange(-40, 41)[None]
    rows = (mask[index.clamp(0, SIZE - 1)] * kernel[None, :, None]).sum(1)
    return (rows.T[index.clamp(0, SIZE - 1)] * kernel[None, :, None]).sum(1).T


def test_a_mask_is_all_that_was_chosen_and_found(nodes: ModuleType, segmented: Any) -> None:
    maps = torch.stack([box(4, 10, 4, 10), box(20, 30, 20, 30, 0.6), box(40, 44, 40, 44)])[None]
    there = segmented(maps, [[1.0, 0.5, 0.49]])
    star, grass = ((part > 0.5).float() for part in maps[0, :2])
    mask, found = mask_of(nodes, there)
    assert torch.equal(mask[0], torch.maximum(star, grass))
    assert found is True
    assert torch.equal(mask_of(nodes, there, threshold=0.7)[0][0], star)
    assert torch.equal(mask_of(nodes, there, phrases="2")[0][0], grass)
    assert torch.equal(mask_of(nodes, there, phrases="a star")[0][0], star)
    nothing, found = mask_of(nodes, there, phrases="a fish")
    assert found is False
    assert not nothing.any()
    soft, _ = mask_of(nodes, there, phrases="grass", mode="soft", threshold=0.0)
    assert soft[0, 25, 25] == pytest.approx((0.6 - 0.1) / 0.8, abs=1e-4)
    assert soft[0, 0, 0] == 0


@pytest.mark.parametrize(("grow", "feather"), [(3, 0), (-3, 0), (0, 6), (4, 6), (-4, 6)])
def test_a_mask_is_grown_first_and_feathered_then(nodes: ModuleType, segmented: Any, grow: int, feather: int) -> None:
    """By a disc of true pixels, shrunk below 0; then by a Gaussian of half the feather's deviation."""
    inside = box(12, 33, 12, 33) > 0.5
    inside[22, 40] = True  # alone: grown it stays, feathered first it would be lost
    mask, _ = mask_of(nodes, segmented(torch.where(inside, 0.9, 0.02)[None, None]), grow=grow, feather=feather)
    hard = disc(inside, grow) if grow >= 0 else ~disc(~inside, -grow)
    expected = blurred(hard.float(), feather / 2) if feather else hard.float()
    assert (mask[0] - expected).abs().max() < 0.02
    assert torch.equal(mask[0] > 0.5, expected > 0.5) or feather


def test_one_threshold_unless_a_node_has_its_own(nodes: ModuleType, segmented: Any) -> None:
    """Below 0 each node takes the one that was segmented with."""
    maps = torch.stack([box(4, 20, 4, 20, 0.6), box(30, 40, 30, 40, 0.9)])[None]
    there = dataclasses.replace(segmented(maps), threshold=0.7)
    high, low = (maps[0, 1] > 0.7).float(), (maps[0].amax(0) > 0.5).float()
    for own, expected in ((-1.0, high), (0.5, low)):
        assert torch.equal(mask_of(nodes, there, threshold=own)[0][0], expected)
        labels = running.execute(nodes, "LDZNetLabelMap", segmentation=there, background=own)[0]
        assert torch.equal((labels[0] > 0).float(), expected)
        given = {"segmentation": there, "threshold": own}
        preview = running.execute(nodes, "LDZNetPreview", **given, opacity=1.0, image=None)[0]
        outlined = disc(expected > 0, 1).float()  # a pixel wide, outside of the mask
        assert torch.equal(((preview[0] - 0.5).abs().amax(-1) > 0.1).float(), outlined)
        regions = {"regions": "1 => a\n2 => b", "background": "", "strength": 1.0, "grow": 0}
        free = running.execute(nodes, "LDZNetRegionPrompts", **given, **regions, clip=Clip())[1]
        assert torch.equal(1 - free[0], expected)


def test_specks_go_and_holes_fill_before_growth(nodes: ModuleType, segmented: Any) -> None:
    inside = box(10, 30, 10, 30) > 0.5
    inside[18:20, 18:20] = False
    clean = inside.clone()
    inside[40:42, 40:42] = True
    there = segmented(torch.where(inside, 0.9, 0.02)[None, None])
    assert torch.equal(mask_of(nodes, there, drop_specks=5)[0][0] > 0, clean)
    assert torch.equal(mask_of(nodes, there, drop_specks=5, grow=4)[0][0] > 0, disc(clean, 4))
    whole = box(10, 30, 10, 30) > 0.5
    assert torch.equal(mask_of(nodes, there, drop_specks=5, fill_holes=True, grow=-3)[0][0] > 0, ~disc(~whole, 3))
    small = segmented(box(20, 22, 20, 22)[None, None])  # of 4 pixels; grown it would pass for more
    assert not mask_of(nodes, small, drop_specks=9, grow=4)[0].any()


@pytest.mark.parametrize("refine", ["guided filter", "PAMR"])
def test_edges_go_to_the_image_s_before_the_threshold(nodes: ModuleType, segmented: Any, refine: str) -> None:
    picture = torch.full((1, SIZE, SIZE, 3), 0.1)
    picture[:, :, 24:, 0] = 0.9
    slope = (torch.arange(SIZE).float() - 21).div(6).sigmoid()[None].expand(SIZE, -1).contiguous()  # off by 3 px
    there = segmented(slope[None, None])
    plain, _ = mask_of(nodes, there, image=picture)
    assert int(plain[0, 24].argmax()) == 22
    mask, _ = mask_of(nodes, there, image=picture, refine=refine)
    assert int(mask[0, 24].argmax()) == 24
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(mask_of(nodes, there, refine=refine)[0], plain)


def test_labels_colours_boxes_and_segs(nodes: ModuleType, segmented: Any) -> None:
    """The likeliest over the background, among what was found."""
    maps = torch.stack([box(4, 20, 4, 12), box(10, 30, 8, 40, 0.6), box(0, SIZE, 0, SIZE, 0.99)])[None]
    there = segmented(maps, [[0.75, 0.5, 0.1]])
    labels, colours, segs, boxes, legend, _ = running.execute(
        nodes, "LDZNetLabelMap", segmentation=there, background=0.5
    )
    expected = torch.zeros(SIZE, SIZE)
    expected[10:30, 8:40] = 2
    expected[4:20, 4:12] = 1
    assert torch.equal((labels[0] * 255).round(), expected)
    assert colours.shape == (1, SIZE, SIZE, 3)
    assert colours[0, 5, 5].tolist() == [1, 0, 0]  # red is the first
    assert colours[0, 0, 0].tolist() == [0, 0, 0]
    assert colours[0, 25, 30].tolist() != [1, 0, 0]
    lines = legend.splitlines()
    assert lines[0] == "#ff0000 a star"
    grass = "#" + "".join(f"{round(255 * c):02x}" for c in colours[0, 25, 30].tolist())
    assert lines[1] == f"{grass} grass"
    assert [(b["label"], b["x"], b["y"], b["width"], b["height"]) for b in boxes[0]] == [
        ("a star", 4, 4, 8, 16),
        ("grass", 8, 10, 32, 20),
    ]
    assert [b["score"] for b in boxes[0]] == pytest.approx([0.75, 0.5])
    (size, regions), *_ = segs
    assert size == (SIZE, SIZE)
    for seg, (number, left, top, right, bottom) in zip(regions, [(1, 4, 4, 12, 20), (2, 8, 10, 40, 30)], strict=True):
        assert seg.label == PHRASES[number - 1]
        assert tuple(seg.bbox) == (left, top, right, bottom)
        x0, y0, x1, y1 = seg.crop_region
        assert torch.equal(torch.as_tensor(seg.cropped_mask), (expected == number)[y0:y1, x0:x1].float())
    assert [seg.confidence for seg in regions] == pytest.approx([0.75, 0.5])
    bare = running.execute(nodes, "LDZNetLabelMap", segmentation=there, background=0.7)[0]
    assert torch.equal((bare[0] * 255).round(), (box(4, 20, 4, 12) > 0.5).float())


def test_a_preview_lies_over_the_picture(nodes: ModuleType, segmented: Any) -> None:
    maps = torch.stack([box(4, 20, 4, 20, 0.6), box(30, 40, 30, 40), box(0, SIZE, 0, SIZE)])[None]
    there = segmented(maps, [[1.0, 0.9, 0.2]])
    picture = torch.rand(1, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(0))
    given = {"segmentation": there, "threshold": 0.5, "opacity": 0.5, "image": picture}
    out = running.execute(nodes, "LDZNetPreview", **given)
    overlay = out[0]
    assert overlay.shape == picture.shape
    hue = overlay[0, 4, 4]  # the outline is in the colour itself
    torch.testing.assert_close(overlay[0, 12, 12], picture[0, 12, 12] / 2 + hue / 2)
    assert torch.equal(overlay[0, 25, :25], picture[0, 25, :25])  # "a fish" was not found
    stricter = running.execute(nodes, "LDZNetPreview", **{**given, "threshold": 0.7})[0]
    assert torch.equal(stricter[0, 12, 12], picture[0, 12, 12])
    (shown,) = out.ui["images"]
    assert shown.shape[0] > shown.shape[1] >= 256  # a legend below
    no_picture = running.execute(nodes, "LDZNetPreview", **{**given, "image": None, "opacity": 0.0})[0]
    inside = ~disc(~(maps[0, :2] > 0.5).any(0), 1)  # of the outline
    assert torch.equal(no_picture[0][inside], torch.full((int(inside.sum()), 3), 0.5))


class Clip:
    """Tells prompts apart."""

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, text: str) -> list[Any]:
        return [[text, {"pooled_output": text.upper()}]]


def test_prompts_are_bound_to_their_regions(nodes: ModuleType, segmented: Any) -> None:
    maps = torch.stack([box(4, 20, 4, 20), box(16, 40, 16, 40), box(0, SIZE, 0, SIZE)])[None]
    there = segmented(maps, [[1.0, 0.9, 0.2]])
    given = {"segmentation": there, "clip": Clip(), "threshold": 0.5, "strength": 0.7, "grow": 2}
    text = "a star => a blue fish\n2 => sand\na fish => nothing"
    conditioning, uncovered = running.execute(nodes, "LDZNetRegionPrompts", **given, regions=text, background="sky")
    star, grass = (disc(part > 0.5, 2).float() for part in maps[0, :2])
    rest = 1 - torch.maximum(star, grass)
    expected = [("a blue fish", star, 0.7), ("sand", grass, 0.7), ("sky", rest, 1.0)]
    for (context, options), (prompt, area, strength) in zip(conditioning, expected, strict=True):
        assert context == prompt
        assert options["pooled_output"] == prompt.upper()
        assert torch.equal(options["mask"][0], area)
        assert options["mask_strength"] == strength
        assert options["set_area_to_bounds"] is False
    assert torch.equal(uncovered[0], rest)
    everywhere = segmented(torch.full((1, 1, SIZE, SIZE), 0.9))
    only, none = running.execute(
        nodes, "LDZNetRegionPrompts", **{**given, "segmentation": everywhere}, regions="1 => sand", background="sky"
    )
    assert [context for context, _ in only] == ["sand"]
    assert not none.any()


def test_a_feather_falls_off_over_its_length(nodes: ModuleType, segmented: Any) -> None:
    """Beside a straight edge: the Gaussian's integral."""
    mask, _ = mask_of(nodes, segmented(box(0, SIZE, 24, SIZE)[None, None]), feather=8)
    for x in range(12, 36):
        expected = 0.5 * (1 + math.erf((x + 0.5 - 24) / 4 / math.sqrt(2)))
        assert float(mask[0, 24, x]) == pytest.approx(expected, abs=0.02)
