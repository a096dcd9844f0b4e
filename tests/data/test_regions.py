"""Outlines to masks, held to what the datasets' own code draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ldznet.data.regions import coco_mask, points, polygon_mask

# What pycocotools 2.0.11 decodes of this polygon in 8 x 8, and what it encodes that as.
POLYGON = [1.3, 0.6, 7.2, 2.1, 5.5, 6.9, 0.4, 4.2]
DRAWN = """
........
.####...
.######.
.######.
.#####..
...###..
.....#..
........
"""
# What scikit-image 0.26's polygon2mask gives for the same points, and for a square of whole numbers.
BY_CENTRES = """
........
..#.....
.######.
.######.
.######.
..#####.
....##..
........
"""


def drawing(mask: np.ndarray) -> str:
    return "\n" + "".join("".join(".#"[int(v)] for v in row) + "\n" for row in mask)


def runs(mask: np.ndarray) -> list[int]:
    """Lengths down the columns, outside first."""
    flat = mask.T.reshape(-1)
    ends = np.flatnonzero(np.diff(np.concatenate([[False], flat, [not flat[-1]]])))
    return np.diff(np.concatenate([[0], ends])).tolist()


def test_a_polygon_covers_what_cocos_code_covers() -> None:
    assert drawing(coco_mask([POLYGON], (8, 8))) == DRAWN


def test_polygons_of_one_thing_are_united_and_cut_at_the_border() -> None:
    mask = coco_mask([[-3, -3, 2, -3, 2, 2, -3, 2], [1, 1, 9, 1, 9, 3, 1, 3]], (4, 6))
    assert drawing(mask) == "\n##....\n######\n.#####\n......\n"


def test_runs_are_read_down_the_columns() -> None:
    assert drawing(coco_mask({"size": [2, 3], "counts": [1, 2, 3]}, (2, 3))) == "\n.#.\n#..\n"


def test_runs_in_text_are_those_in_numbers() -> None:
    mask = coco_mask([POLYGON], (8, 8))
    assert runs(mask) == [9, 4, 4, 4, 4, 5, 3, 5, 4, 5, 3, 2, 12]
    compressed = "944001O010OM9"
    assert np.array_equal(coco_mask({"size": [8, 8], "counts": runs(mask)}, (8, 8)), mask)
    assert np.array_equal(coco_mask({"size": [8, 8], "counts": compressed}, (8, 8)), mask)


def test_a_long_run_takes_several_characters() -> None:
    mask = coco_mask({"size": [40, 80], "counts": "P[2Pi0"}, (40, 80))
    assert not mask[:, :60].any()
    assert mask[:, 60:].all()


def test_a_list_may_hold_runs() -> None:
    assert coco_mask([{"size": [1, 2], "counts": [0, 1, 1]}], (1, 2)).tolist() == [[True, False]]


def test_a_phrasecut_polygon_covers_what_clipsegs_code_covers() -> None:
    assert drawing(polygon_mask(points(POLYGON, (8, 8)), (8, 8))) == BY_CENTRES
    square = points([[1, 1], [3, 1], [3, 3], [1, 3]], (5, 5))
    assert drawing(polygon_mask(square, (5, 5))) == "\n.....\n.###.\n.###.\n.###.\n.....\n"
    triangle = points([[1, 0], [5, 2], [1, 4]], (5, 7))  # of which a corner lies in a row
    assert drawing(polygon_mask(triangle, (5, 7))) == "\n.#.....\n.###...\n.#####.\n.###...\n.#.....\n"


@pytest.mark.parametrize("polygon", [[], [3, 3], [1, 1, 5, 5]])
def test_what_encloses_nothing_covers_nothing_of_cocos(polygon: list[int]) -> None:
    assert not coco_mask([polygon], (8, 8)).any()


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([], "no outline"),
        (None, "polygon"),
        ([[1, 2, 3]], "no pairs"),
        ([["a", "b"]], "numbers"),
        ([[0, 0, 1e9, 0, 1, 1]], "far outside"),
        ([[0, 0, float("nan"), 0, 1, 1]], "far outside"),
        ({"size": [8, 8], "counts": [8]}, "8 pixels"),
        ({"size": [4, 16], "counts": [64]}, "64 pixels"),
        ({"size": [8, 8], "counts": [65, -1]}, "counts"),
        ({"size": [8, 8]}, "counts"),
        ({"size": [8, 8], "counts": "PR"}, "cut short"),
        ({"size": [8, 8], "counts": "é"}, "characters"),
        ({"size": [8, 8], "counts": "o" * 99}, "characters"),
    ],
)
def test_what_is_no_outline_says_why(segmentation: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        coco_mask(segmentation, (8, 8))
