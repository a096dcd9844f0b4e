"""A folder as people make one: rotated pictures, missing files, malformed lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data import making

from ldznet.data import FolderDataset
from ldznet.errors import InputError

RED, BLUE = (255, 0, 0), (0, 0, 255)


def test_image_and_masks_cover_the_same_pixels(tmp_path: Path) -> None:
    item = making.folder(tmp_path)[0]
    assert item.phrases == ("red", "left")
    assert item.captions == ("one", "two")
    half = making.SIDE // 2
    assert item.masks[0][:, :half].all()
    assert not item.masks[0][:, half:].any()
    assert (item.image[:, : half - 4] == RED).all()
    assert (item.image[:, half + 4 :] == BLUE).all()


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    item = making.folder(tmp_path)[1]  # stored with red on the left, meant with red on top
    half = making.SIDE // 2
    assert (item.image[: half - 4] == RED).all()
    assert (item.image[half + 4 :] == BLUE).all()


def test_what_is_not_told_is_empty(tmp_path: Path) -> None:
    item = making.folder(tmp_path)[2]
    assert (item.phrases, item.absent, item.kinds, item.captions) == ((), (), (), ("",))
    assert item.masks.shape == (0, making.SIDE, making.SIDE)


def test_masks_make_the_caption_where_there_is_none(tmp_path: Path) -> None:
    making.folder(tmp_path)
    making.index(tmp_path, {"image": "a.png", "masks": {"red": "a_red.png", "left": "a_left.png"}})
    assert FolderDataset(tmp_path, size=8)[0].captions == ("red, left",)


def test_a_wide_picture_is_cropped_in_the_middle(tmp_path: Path) -> None:
    making.picture(tmp_path / "wide.png", (400, 100))
    item = FolderDataset(making.index(tmp_path, {"image": "wide.png"}), size=50)[0]
    assert (item.image[:, :22] == RED).all()
    assert (item.image[:, 28:] == BLUE).all()


@pytest.mark.parametrize("record", [{"image": "none.png"}, {"image": "a.png", "masks": {"x": "none.png"}}])
def test_a_missing_file_is_named(record: dict[str, Any], tmp_path: Path) -> None:
    making.folder(tmp_path)
    with pytest.raises(InputError, match=r"none\.png"):
        FolderDataset(making.index(tmp_path, record))[0]


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG and no more")
    with pytest.raises(InputError, match=r"a\.png"):
        FolderDataset(making.index(tmp_path, {"image": "a.png"}))[0]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "3",
        '"a.png"',
        "{}",
        '{"image": 3}',
        '{"image": "a.png", "masks": ["m.png"]}',
        '{"image": "a.png", "masks": {"a dog": 3}}',
        '{"image": "a.png", "captions": "a dog"}',
        '{"image": "a.png", "absent": [3]}',
    ],
)
def test_a_malformed_line_is_told_by_its_number(line: str, tmp_path: Path) -> None:
    making.index(tmp_path, {"image": "a.png"}, "", line)
    with pytest.raises(InputError, match=r'Expected \{"image".* on line 3 of index\.jsonl, got'):
        FolderDataset(tmp_path)


def test_an_index_of_windows_is_read(tmp_path: Path) -> None:
    (tmp_path / "index.jsonl").write_bytes(b'\xef\xbb\xbf{"image": "a.png"}\r\n{"image": "b.png"}\r\n')
    assert [record["image"] for record in FolderDataset(tmp_path).records] == ["a.png", "b.png"]


@pytest.mark.parametrize(("content", "says"), [(None, "found none"), (b"\n\n", "got none"), (b"\xff\xfe{", "UTF-8")])
def test_an_index_that_is_none(content: bytes | None, says: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "index.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=says):
        FolderDataset(tmp_path)


def test_masks_are_white_where_their_phrase_is(tmp_path: Path) -> None:
    making.folder(tmp_path)
    assert np.unique(FolderDataset(tmp_path, size=64)[0].masks.mean(axis=(1, 2))).tolist() == [0.5]
