"""What people ask of masks, legends and regions: sizes, ends, pieces, inverse, words in any script."""

from __future__ import annotations

import dataclasses
import importlib
from types import ModuleType
from typing import Any

import pytest
import torch
from comfyui import running

OFF = {"refine": "none", "fill_holes": False, "drop_specks": 0, "grow": 0, "feather": 0}
PLAIN = {"phrases": "", "mode": "threshold", "threshold": 0.5, **OFF}


def blob(height: int, width: int, top: float, left: float, radius: float) -> torch.Tensor:
    """A soft map as a sigmoid gives it: 0.5 on a circle, at no pixel 0 or 1."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return ((radius - ((y - top) ** 2 + (x - left) ** 2).sqrt()) / 1.5).clamp(-8, 8).sigmoid()


def mask_of(nodes: ModuleType, segmentation: Any, **changes: Any) -> Any:
    return running.execute(nodes, "LDZNetMask", segmentation=segmentation, **{**PLAIN, **changes})


def composite(destination: torch.Tensor, source: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """As ComfyUI's ImageCompositeMasked."""
    return mask[..., None] * source + (1 - mask[..., None]) * destination


@pytest.mark.parametrize("changes", [{}, {"refine": "guided filter"}, {"grow": 5}, {"feather": 6}, {"invert": True}])
def test_outside_of_a_soft_mask_a_composite_is_the_picture_to_the_bit(
    nodes: ModuleType, segmented: Any, changes: dict[str, Any]
) -> None:
    there = segmented(blob(96, 80, 40, 40, 24)[None, None])
    after = torch.rand(1, 96, 80, 3, generator=torch.Generator().manual_seed(0))
    before = 0.8 * (blob(96, 80, 40, 40, 24) > 0.5).float()[None, :, :, None] + 0.2 * after.flip(1)
    mask, found = mask_of(nodes, there, mode="soft", image=before, **changes)
    assert found
    outside, inside = mask == 0, mask == 1
    assert (mask > 0.2).any()
    assert outside.float().mean() > 0.1
    assert inside.float().mean() > 0.04
    assert (mask > 0).logical_and(mask < 1).any()
    result = composite(before, after, mask)
    assert torch.equal(result[outside], before[outside])
    assert torch.equal(result[inside], after[inside])


def test_the_inverse_is_everything_else_and_all_where_nothing_was_found(nodes: ModuleType, segmented: Any) -> None:
    maps = blob(40, 40, 20, 20, 9)[None, None]
    mask, found = mask_of(nodes, segmented(maps), grow=3)
    inverse, also = mask_of(nodes, segmented(maps), grow=3, invert=True)
    assert torch.equal(inverse, 1 - mask)
    assert (found, also) == (True, True)
    absent = segmented(maps, [[0.1]])
    for mode in ("threshold", "soft"):
        everything, found = mask_of(nodes, absent, mode=mode, invert=True)
        assert torch.equal(everything, torch.ones(1, 40, 40))
        assert found is False


def test_found_is_false_where_the_mask_is_empty(nodes: ModuleType, segmented: Any) -> None:
    there = segmented((0.6 * blob(40, 40, 20, 20, 9))[None, None])
    assert mask_of(nodes, there)[1] is True
    assert mask_of(nodes, there, threshold=0.7)[1] is False
    assert mask_of(nodes, there, drop_specks=1000)[1] is False
    assert mask_of(nodes, there, grow=-12)[1] is False


def test_the_report_says_found_only_where_there_is_a_mask(nodes: ModuleType, segmented: Any) -> None:
    maps = torch.stack([blob(100, 100, 50, 50, 20), 0.4 * blob(100, 100, 50, 50, 20), blob(100, 100, 2, 2, 2)])[None]
    given = segmented(maps, [[0.9, 0.9, 0.2]])
    inner = {"segmentation": [given], "threshold": [0.5]}
    *_, found, report, _ = running.execute(nodes, "LDZNetInnerMasks", **inner)
    assert found is True
    assert report.splitlines() == [
        'image 1, "a star": found, 12.4 % of the picture, score 0.90',
        'image 1, "grass": nothing over the threshold, score 0.90',
        'image 1, "a fish": not found, score 0.20',
    ]
    alone = dataclasses.replace(given, result=given.result.select([1, 2]))
    assert running.execute(nodes, "LDZNetInnerMasks", **{**inner, "segmentation": [alone]})[2] is False
    assert given.result.state(0, 0, 0.0004) == "found, under 0.1 %"


def place(mask: torch.Tensor) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of what is inside."""
    rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
    return int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])


@pytest.mark.parametrize("refine", ["none", "guided filter", "PAMR"])
def test_the_photograph_that_was_encoded_is_the_frame(nodes: ModuleType, segmented: Any, refine: str) -> None:
    """203 x 301 pixels, of which VAE Encode leaves 200 x 296 from (1, 2) on, segmented as a latent alone."""
    photograph = torch.full((1, 203, 301, 3), 0.2)
    photograph[:, 51:101, 42:92] = 0.9
    inner = torch.full((200, 296), 0.02)
    inner[50:100, 40:90] = 0.98  # the same pixels of the cut picture
    there = segmented(inner[None, None])
    mask, _ = mask_of(nodes, there, image=photograph, refine=refine)
    assert mask.shape == (1, 203, 301)
    assert place(mask[0] > 0) == (51, 100, 42, 91)
    overlay, *_ = running.execute(
        nodes, "LDZNetPreview", segmentation=there, threshold=0.5, opacity=0.6, image=photograph
    )
    assert overlay.shape == photograph.shape
    assert place((overlay - photograph).abs().amax(-1)[0] > 0) == (50, 101, 41, 92)  # with its outline
    whole = dataclasses.replace(there, size=(203, 301), offset=(1, 2))
    back, _ = mask_of(nodes, whole, image=photograph[:, 1:201, 2:298])
    assert place(back[0] > 0) == (50, 99, 40, 89)


def test_a_scaled_picture_scales_the_mask(nodes: ModuleType, segmented: Any) -> None:
    maps = torch.full((1, 1, 64, 96), 0.02)
    maps[:, :, 16:32, 24:48] = 0.98
    mask, _ = mask_of(nodes, segmented(maps), image=torch.rand(1, 128, 192, 3))
    assert place(mask[0] > 0) == (32, 63, 48, 95)
    moved = dataclasses.replace(segmented(maps), size=(67, 100), offset=(1, 2))
    mask, _ = mask_of(nodes, moved, image=torch.rand(1, 134, 200, 3))
    assert place(mask[0] > 0) == (34, 65, 52, 99)


@pytest.mark.parametrize("node", ["LDZNetMask", "LDZNetPreview"])
def test_another_aspect_or_number_is_refused_in_a_sentence(nodes: ModuleType, segmented: Any, node: str) -> None:
    settings = PLAIN if node == "LDZNetMask" else {"threshold": 0.5, "opacity": 0.6}
    for maps, shape, sentence in [
        ((1, 1, 128, 128), (1, 300, 400, 3), r"of 128 x 128 \(height x width\) or of that aspect, got 300 x 400\."),
        ((1, 1, 128, 128), (3, 128, 128, 3), r"Expected one image, got 3\."),
        ((2, 1, 128, 128), (3, 128, 128, 3), r"Expected one image or 2, got 3\."),
    ]:
        there = segmented(torch.full(maps, 0.9))
        with pytest.raises(ValueError, match=rf"{sentence} Connect the images? .*socket: image"):
            running.execute(nodes, node, segmentation=there, **settings, image=torch.rand(shape))


def two_stars() -> torch.Tensor:
    """A small star on the left, a large one on the right, and a speck of 9 pixels below; grass in between."""
    star = torch.full((64, 96), 0.02)
    star[20:30, 4:14], star[10:40, 60:90], star[60:63, 50:53] = 0.92, 0.9, 0.9
    grass = torch.full((64, 96), 0.02)
    grass[40:60, 30:50] = 0.8
    return torch.stack([star, grass])[None]


SMALL, LARGE, SPECK, GRASS = (4, 20, 14, 30), (60, 10, 90, 40), (50, 60, 53, 63), (30, 40, 50, 60)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [LARGE, SMALL, GRASS]),
        ({"min_area": 0}, [LARGE, SMALL, SPECK, GRASS]),
        ({"min_area": 101}, [LARGE, GRASS]),
        ({"min_area": 10**6}, []),
        ({"order": "largest first"}, [LARGE, GRASS, SMALL]),
        ({"order": "left to right"}, [SMALL, GRASS, LARGE]),
        ({"order": "top to bottom"}, [LARGE, SMALL, GRASS]),
        ({"min_percent": 2.0}, [LARGE, GRASS]),
        ({"max_percent": 10.0, "min_area": 0}, [SMALL, SPECK, GRASS]),
        ({"most": 2, "order": "largest first"}, [LARGE, GRASS]),
        ({"order": "most probable first", "most": 2}, [SMALL, LARGE]),
        ({"pieces": False}, [(4, 10, 90, 40), GRASS]),
        ({"pieces": False, "min_area": 0}, [(4, 10, 90, 63), GRASS]),
    ],
)
def test_each_connected_piece_is_a_region(
    nodes: ModuleType, segmented: Any, settings: dict[str, Any], expected: list[tuple[int, ...]]
) -> None:
    there, maps = segmented(two_stars(), [[0.75, 0.5]]), two_stars()[0]
    labels, _, (segs,), (boxes,), _, each = running.execute(
        nodes, "LDZNetLabelMap", segmentation=there, background=0.5, **settings
    )
    size, regions = segs
    assert size == (64, 96)
    assert [region.bbox for region in regions] == [region.crop_region for region in regions] == expected
    assert [(b["x"], b["y"], b["x"] + b["width"], b["y"] + b["height"]) for b in boxes] == expected
    for region, box in zip(regions, boxes, strict=True):
        assert (box["label"], box["score"], box["calibrated"]) == (region.label, region.confidence, True)
        left, top, right, bottom = region.bbox
        number = ["a star", "grass"].index(region.label)
        whole = (maps[number, top:bottom, left:right] > 0.5).float()
        assert torch.equal(torch.as_tensor(region.cropped_mask), whole)
    assert [int(mask.sum()) for mask in each] == [int(region.cropped_mask.sum()) for region in regions] or [0]
    assert int((labels > 0).sum()) == int((maps > 0.5).sum())  # labels keep every speck
    assert regions == [] or regions[0]._fields[:6] == (
        *("cropped_image", "cropped_mask", "confidence", "crop_region", "bbox", "label"),
    )


@pytest.mark.parametrize("mode", ["threshold", "soft"])
def test_one_mask_of_each_piece(nodes: ModuleType, segmented: Any, mode: str) -> None:
    """Largest first, image by image; together they are the mask that all of them make; each grows by itself."""
    there = segmented(torch.cat([two_stars(), two_stars().flip(3)]))
    together, _ = mask_of(nodes, there, mode=mode, phrases="1")
    apart, found = mask_of(nodes, there, mode=mode, phrases="1", pieces="one mask each")
    assert found
    assert [place(mask > 0.5) for mask in apart[:3]] == [(10, 39, 60, 89), (20, 29, 4, 13), (60, 62, 50, 52)]
    assert [int((mask > 0.5).sum()) for mask in apart] == [900, 100, 9] * 2
    assert torch.equal(torch.stack([apart[:3].sum(0), apart[3:].sum(0)]), together)
    grown, _ = mask_of(nodes, there, mode=mode, phrases="1", pieces="one mask each", grow=40, most=2)
    assert grown.shape == (4, 64, 96)
    assert (grown[0] > 0.5).logical_and(grown[1] > 0.5).any()
    nothing, found = mask_of(nodes, there, phrases="1", pieces="one mask each", threshold=0.95)
    assert (nothing.shape, float(nothing.sum()), found) == ((1, 64, 96), 0.0, False)


@pytest.mark.parametrize(
    ("sizes", "areas"),
    [
        ({"min_percent": 1.0}, [900, 100]),
        ({"max_percent": 10.0}, [100, 9]),
        ({"min_percent": 1.0, "max_percent": 10.0}, [100]),
        ({"most": 1}, [900]),
        ({"min_percent": 50.0}, [0]),
        ({}, [900, 100, 9]),
    ],
)
def test_pieces_by_size(nodes: ModuleType, segmented: Any, sizes: dict[str, Any], areas: list[int]) -> None:
    there = segmented(two_stars()[:, :1])
    assert [int(mask.sum()) for mask in mask_of(nodes, there, pieces="one mask each", **sizes)[0]] == areas
    assert int(mask_of(nodes, there, **sizes)[0].sum()) == sum(areas)


def uncalibrated(given: Any) -> Any:
    """The same from a head that cannot tell absent phrases."""
    return dataclasses.replace(given, result=dataclasses.replace(given.result, calibrated=False))


def test_scores_that_mean_little_are_shown_as_such(nodes: ModuleType, segmented: Any) -> None:
    there = segmented(torch.full((1, 1, 32, 32), 0.9), [[0.5]])
    for given in (there, uncalibrated(there)):
        out = running.execute(nodes, "LDZNetPreview", segmentation=given, threshold=0.5, opacity=0.6)
        (text,) = out.ui["text"]
        *_, boxes, legend, _ = running.execute(nodes, "LDZNetLabelMap", segmentation=given, background=0.5)
        if given is there:
            assert text == "a star: found, 100.0 %, score 0.50"
            assert legend == "#ff0000 a star"
            continue
        assert text.splitlines()[0] == "a star: found?, 100.0 %, score 0.50 (not calibrated)"
        assert text.splitlines()[1] == legend.splitlines()[1] == given.result.caveat
        assert boxes[0][0]["calibrated"] is False
        page = out.ui["images"][0].shape[0]
    assert (
        page
        > running.execute(nodes, "LDZNetPreview", segmentation=there, threshold=0.5, opacity=0.6)
        .ui["images"][0]
        .shape[0]
    )  # the caveat stands in the picture too


def test_how_it_was_made_is_said_below_the_legend(nodes: ModuleType, segmented: Any) -> None:
    """Where one looks, and not in an unconnected report alone: a note of the node, a hint on how a phrase was read."""
    there = segmented(torch.full((1, 1, 32, 32), 0.9), [[0.5]])
    hinted = dataclasses.replace(there.result, hints=("read as a star",))
    given = dataclasses.replace(there, result=hinted, notes=("prompt is not connected",))
    shown = [
        running.execute(nodes, "LDZNetPreview", segmentation=s, threshold=0.5, opacity=0.6) for s in (there, given)
    ]
    assert shown[1].ui["text"] == ["a star: found, 100.0 %, score 0.50\nread as a star\nprompt is not connected"]
    assert shown[1].ui["images"][0].shape[0] > shown[0].ui["images"][0].shape[0]


def test_work_on_masks_stops_where_the_user_cancels(
    nodes: ModuleType, segmented: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    comfyui = importlib.import_module(f"{nodes.__name__.split('.')[0]}.ldznet.hosts.comfyui")

    def cancelled() -> None:
        raise InterruptedError

    there = segmented(blob(40, 40, 20, 20, 9)[None, None])
    image = torch.rand(1, 40, 40, 3)
    monkeypatch.setattr(comfyui.memory, "throw_exception_if_processing_interrupted", cancelled)
    for changes in ({"grow": 4}, {"grow": -4}, {"feather": 4}, {"refine": "guided filter"}, {"refine": "PAMR"}):
        with pytest.raises(InterruptedError):
            mask_of(nodes, there, image=image, **changes)
    with pytest.raises(InterruptedError):
        running.execute(nodes, "LDZNetPreview", segmentation=there, threshold=0.5, opacity=0.6)
    text = {"regions": "1 => a", "background": "", "strength": 1.0, "threshold": 0.5}
    with pytest.raises(InterruptedError):
        running.execute(nodes, "LDZNetRegionPrompts", segmentation=there, clip=None, grow=4, **text)
