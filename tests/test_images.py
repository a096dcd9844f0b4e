"""Pictures of every mode, by the values of their pixels; and resizing that does not shift."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ldznet import images
from ldznet.errors import InputError
from ldznet.images import Picture, open_picture, resize, to_bytes, to_pixels


def transparent_palette() -> Image.Image:
    image = Image.new("P", (2, 1), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putpixel((1, 0), 0)
    image.info["transparency"] = 0
    return image


def sixteen_bits() -> Image.Image:
    return Image.fromarray(np.array([[0, 32_896]], np.uint16))


# A picture of two pixels, and what they are as red, green, blue.
PICTURES = {
    "RGB": (Image.fromarray(np.array([[[0, 0, 0], [255, 0, 51]]], np.uint8)), [[-1, -1, -1], [1, -1, -0.6]]),
    "L": (Image.fromarray(np.array([[0, 255]], np.uint8)), [[-1] * 3, [1] * 3]),
    "1": (Image.fromarray(np.array([[False, True]])), [[-1] * 3, [1] * 3]),
    "RGBA over white": (Image.new("RGBA", (2, 1), (0, 0, 0, 0)), [[1] * 3, [1] * 3]),
    "LA half": (Image.new("LA", (2, 1), (0, 51)), [[0.6] * 3, [0.6] * 3]),
    "palette": (transparent_palette(), [[1, -1, -1], [1, 1, 1]]),
    "I;16": (sixteen_bits(), [[-1] * 3, [0] * 3]),
    "I of bytes": (Image.fromarray(np.array([[0, 255]], np.int32)), [[-1] * 3, [1] * 3]),
    "F": (Image.fromarray(np.array([[-3, 255]], np.float32)), [[-1] * 3, [1] * 3]),
    "F of 0 .. 1": (Image.fromarray(np.array([[0, 1]], np.float32)), [[-1] * 3, [1] * 3]),
}


@pytest.mark.parametrize("name", PICTURES)
def test_every_mode_by_hand(name: str) -> None:
    image, expected = PICTURES[name]
    pixels = to_pixels(image)
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels[0, :, 0].T, torch.tensor(expected, dtype=torch.float32), atol=0.005, rtol=0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation(orientation: int) -> None:
    image = Image.new("RGB", (4, 2), "black")
    image.paste("white", (0, 0, 2, 2))  # the left half, as stored
    image.getexif()[0x0112] = orientation
    bright = {1: "left", 2: "right", 3: "right", 4: "left", 5: "top", 6: "top", 7: "bottom", 8: "bottom"}[orientation]
    pixels = to_pixels(image)[0, 0]
    height, width = pixels.shape
    assert (height, width) == ((2, 4) if orientation < 5 else (4, 2))
    halves = {"left": pixels[:, :2], "right": pixels[:, 2:], "top": pixels[:2], "bottom": pixels[2:]}
    assert (halves[bright] == 1).all()
    assert pixels.mean() == 0


def test_arrays_and_tensors_are_not_changed() -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)[:, ::-1]  # a view with a negative stride
    pixels = to_pixels(array)
    assert pixels[0, :, 0, 0].tolist() == pytest.approx([v / 127.5 - 1 for v in (9, 10, 11)])
    again = to_pixels(pixels.double().requires_grad_())
    assert torch.equal(again, pixels)
    assert not again.requires_grad


@pytest.mark.parametrize("value_range", [(0, 1), (-1, 1), (0, 255), (0.2, 0.4)])
def test_a_stated_range_is_read_as_stated(value_range: tuple[float, float]) -> None:
    array = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    share = torch.from_numpy(array).permute(2, 0, 1)[None].double() / 255
    low, high = value_range
    torch.testing.assert_close(to_pixels(low + (high - low) * share, value_range), to_pixels(array), atol=1e-5, rtol=0)


BRIGHT = torch.linspace(0, 1, 12).reshape(1, 3, 2, 2)  # of [0, 1], or a bright picture of [-1, 1]


def test_a_range_that_cannot_be_told_must_be_stated() -> None:
    with pytest.raises(InputError, match=r"pixels of 0.00 .. 1.00, got none.*value_range=\(0, 1\) or value_range=\(-1"):
        to_pixels(BRIGHT)
    assert torch.equal(to_pixels(BRIGHT, (-1, 1)), BRIGHT)
    assert torch.equal(to_pixels(BRIGHT, (0, 1)), BRIGHT * 2 - 1)
    assert torch.equal(to_pixels(BRIGHT - 0.1), BRIGHT - 0.1)  # one value below zero tells


@pytest.mark.parametrize("value_range", [(1, 0), (0, 0), (0,), "01", 1.0, (0, float("nan")), (None, 1)])
def test_a_range_that_is_none_is_refused(value_range: object) -> None:
    with pytest.raises(InputError, match="Expected a value_range such as"):
        to_pixels(BRIGHT, value_range)


def test_values_beyond_the_stated_range_are_refused() -> None:
    with pytest.raises(InputError, match=r"pixels in \[0, 1\], got 0.00 .. 2.00. Say what black and white are"):
        to_pixels(BRIGHT * 2, (0, 1))
    with pytest.raises(InputError, match="no value_range but with a float tensor"):
        to_pixels(np.zeros((2, 2, 3), np.uint8), (0, 1))


@pytest.mark.parametrize("size", [(16, 24), (90, 33), (64, 33), (40, 100), (30, 50)])
@pytest.mark.parametrize("make", [np.array, Image.fromarray, to_pixels], ids=["array", "PIL", "tensor"])
def test_bands_are_resized_as_the_whole_is(make, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(0).integers(0, 256, (64, 50, 3), dtype=np.uint8)
    expected = resize(to_pixels(array), size)
    monkeypatch.setattr(images, "BAND", 50 * 7)
    assert torch.equal(Picture.of(make(array)).at(size), expected)


@pytest.mark.parametrize("name", PICTURES)
def test_bytes_are_those_of_the_pixels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    upright = PICTURES[name][0].rotate(90, expand=True)
    upright.getexif()[0x0112] = 6
    expected = images.to_pictures(to_pixels(upright))[0]
    monkeypatch.setattr(images, "BAND", 1)
    assert (to_bytes(upright) == expected).all()


UNUSABLE = {
    "sparse": torch.ones(1, 3, 2, 2).to_sparse(),
    "meta": torch.ones(1, 3, 2, 2, device="meta"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_tensor_without_values_in_memory_is_refused(kind: str) -> None:
    with pytest.raises(InputError, match=f"Expected an ordinary tensor for the image, got a {kind} one"):
        to_pixels(UNUSABLE[kind])


@pytest.mark.parametrize("image", [Image.new("RGB", (0, 4)), np.zeros((0, 4, 3), np.uint8), torch.zeros(0, 3, 8, 8)])
def test_a_picture_without_pixels_is_refused(image: object) -> None:
    with pytest.raises(InputError, match=r"Expected .*, got "):
        to_pixels(image)


def test_a_picture_that_cannot_be_read_is_an_error_of_ours(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:-40])
    with Image.open(tmp_path / "cut.png") as late, pytest.raises(InputError, match=r"got one that cannot be read"):
        to_pixels(late)
    with pytest.raises(InputError, match=r"cut\.png, got"):
        open_picture(tmp_path / "cut.png")
    with pytest.raises(InputError, match="NaN or infinity"):
        to_pixels(Image.fromarray(np.full((2, 2), np.nan, np.float32)))
    assert to_pixels(open_picture(tmp_path / "whole.png")).shape == (1, 3, 30, 40)


def test_a_picture_too_large_to_be_one_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (400, 300)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match="decompression bomb"):
        open_picture(tmp_path / "bomb.png")


@settings(deadline=None, max_examples=40)
@given(sizes=st.tuples(*[st.integers(1, 40)] * 4), level=st.floats(-1, 1))
def test_resizing_keeps_an_even_map_even(sizes: tuple[int, int, int, int], level: float) -> None:
    maps = torch.full((1, 2, *sizes[:2]), level)
    resized = resize(maps, sizes[2:])
    assert resized.shape == (1, 2, *sizes[2:])
    torch.testing.assert_close(resized, torch.full_like(resized, level), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(16, 16), (10, 50), (64, 96)])
def test_resizing_does_not_shift(size: tuple[int, int]) -> None:
    ramp = torch.linspace(-1, 1, 33)[None, None, :, None].expand(1, 1, 33, 33)
    resized = resize(ramp, size)[0, 0, :, 0]
    torch.testing.assert_close(resized, -resized.flip(0), atol=1e-4, rtol=0)  # still even about the middle


def test_half_precision_stays_half() -> None:
    assert resize(torch.zeros(1, 1, 4, 4, dtype=torch.float16), (6, 2)).dtype == torch.float16
