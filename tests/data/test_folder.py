"""A folder as people make one: rotated pictures, missing files, malformed lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data import making
from PIL import Image

from ldznet.data import FolderDataset
from ldznet.data.folder import read_mask
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
    for name in ("a.png", "b.png"):
        making.picture(tmp_path / name, (8, 8))
    assert [record["image"] for record in FolderDataset(tmp_path).records] == ["a.png", "b.png"]


def test_a_file_that_the_index_lists_in_vain_is_named(tmp_path: Path) -> None:
    making.folder(tmp_path)
    (tmp_path / "a_left.png").unlink()
    with pytest.raises(InputError, match=r"none at .*a_left\.png\. docs/datasets\.md"):
        FolderDataset(tmp_path)


@pytest.mark.parametrize(("content", "says"), [(None, "found none"), (b"\n\n", "got none"), (b"\xff\xfe{", "UTF-8")])
def test_an_index_that_is_none(content: bytes | None, says: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "index.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=says):
        FolderDataset(tmp_path)


def test_masks_are_white_where_their_phrase_is(tmp_path: Path) -> None:
    making.folder(tmp_path)
    assert np.unique(FolderDataset(tmp_path, size=64)[0].masks.mean(axis=(1, 2))).tolist() == [0.5]


LEFT = np.arange(40) < 20  # columns of the masks below that are their phrase's
GREYS = np.tile(LEFT, (30, 1))


def palette(colours: list[int]) -> Image.Image:
    image = Image.fromarray(GREYS.astype(np.uint8), "P")
    image.putpalette(colours)
    return image


def over(grey: int, alpha: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack([np.full((30, 40, 3), grey, np.uint8), alpha.astype(np.uint8)]))


def soft() -> Image.Image:
    """Blurred to both sides of its edge, which stays where it is half."""
    ramp = np.clip(np.linspace(0, 1, 40) * 10 - 4.5, 0, 1)[::-1]
    image = Image.fromarray(np.tile(ramp * 255, (30, 1)).astype(np.uint8))
    return image.resize((400, 300), Image.Resampling.BICUBIC)


MASKS = {  # all of them the left half, as people save it
    "0 and 1": Image.fromarray(GREYS.astype(np.uint8)),
    "0 and 100": Image.fromarray(GREYS.astype(np.uint8) * 100),
    "0 and 255": Image.fromarray(GREYS.astype(np.uint8) * 255),
    "0, 1 and 255 (a border)": Image.fromarray(np.where(np.arange(40) == 19, 255, GREYS).astype(np.uint8)),
    "instances": Image.fromarray((GREYS * (1 + np.arange(40) // 8)).astype(np.uint8)),
    "one bit": Image.fromarray(GREYS),
    "a palette of dark red": palette([0, 0, 0, 128, 0, 0]),
    "a palette with white first": palette([255, 255, 255, 0, 0, 0]).transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "a palette of black alone": palette([0, 0, 0, 0, 0, 0]),
    "blue on black": Image.fromarray(np.dstack([0 * GREYS, 0 * GREYS, GREYS]).astype(np.uint8) * 9),
    "16 bits": Image.fromarray(GREYS.astype(np.uint16)),
    "32 bits": Image.fromarray(GREYS.astype(np.int32) * 70_000),
    "alpha over black": over(0, GREYS * 255),
    "alpha over white": over(255, GREYS * 255),
    "opaque alpha": Image.merge(
        "RGBA", [*Image.fromarray(GREYS.astype(np.uint8) * 40).convert("RGB").split()] + [Image.new("L", (40, 30), 255)]
    ),
    "transparent palette": palette([9, 9, 9, 9, 9, 9]),
    "soft": soft(),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_as_people_save_them(name: str, tmp_path: Path) -> None:
    options = {"transparency": 0} if name == "transparent palette" else {}
    suffix = "tif" if name == "32 bits" else "png"
    MASKS[name].save(tmp_path / f"m.{suffix}", **options)
    making.picture(tmp_path / "a.png", (40, 30))
    record = {"image": "a.png", "masks": {"red": f"m.{suffix}"}}
    plane = FolderDataset(making.index(tmp_path, record), size=30)[0].masks[0]
    assert (plane == (np.arange(30) < 15)).all()


def test_a_lossy_mask_is_halved(tmp_path: Path) -> None:
    MASKS["0 and 255"].save(tmp_path / "m.jpg", quality=40)
    assert 0 < np.asarray(Image.open(tmp_path / "m.jpg"))[:, 20:].max() < 60  # what any value but zero would take in
    assert (read_mask(tmp_path / "m.jpg") == LEFT).all()


def test_an_empty_mask_stays_empty(tmp_path: Path) -> None:
    Image.new("L", (40, 30)).save(tmp_path / "m.png")
    assert not read_mask(tmp_path / "m.png").any()


def test_a_mask_upright_as_its_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    MASKS["0 and 255"].save(tmp_path / "m.png", exif=exif)
    assert (read_mask(tmp_path / "m.png") == LEFT[:, None]).all()


def test_a_photograph_is_no_mask(tmp_path: Path) -> None:
    Image.linear_gradient("L").save(tmp_path / "photo.png")
    making.picture(tmp_path / "a.png", (256, 256))
    making.index(tmp_path, {"image": "a.png", "masks": {"red": "photo.png"}})
    with pytest.raises(InputError, match=r"mask in .*photo.png, black but .* got 256 grey values, of which 80%"):
        FolderDataset(tmp_path)[0]


@pytest.mark.parametrize(("size", "fits"), [((60, 80), False), ((80, 80), False), ((40, 30), True), ((27, 20), True)])
def test_a_mask_of_another_aspect_is_refused(size: tuple[int, int], fits: bool, tmp_path: Path) -> None:
    making.picture(tmp_path / "a.png", (80, 60))
    making.mask(tmp_path / "m.png", size)
    data = FolderDataset(making.index(tmp_path, {"image": "a.png", "masks": {"red": "m.png"}}), size=60)
    if fits:
        assert abs(data[0].masks.mean() - 0.5) < 0.04
        return
    with pytest.raises(InputError, match=rf"aspect in .*m.png, got {size[0]} x {size[1]} for a picture of 80 x 60"):
        data[0]


def test_pictures_are_read_as_the_predictor_reads_them(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 32_896, np.uint16)).save(tmp_path / "grey.png")
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    making.index(tmp_path, {"image": "grey.png"}, {"image": "clear.png"})
    data = FolderDataset(tmp_path, size=8)
    assert np.unique(data[0].image).tolist() == [128]
    assert np.unique(data[1].image).tolist() == [255]
