"""Masks made visible: colours that are seen, outlines, legends in any script."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import ImageFont

from ldznet import drawing

RED, GREEN, WHITE, BLACK = [1.0, 0.0, 0.0], [0.2, 0.6, 0.2], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]


def scene(ground: list[float], thing: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture of a square thing on a ground, and the thing's mask."""
    picture = torch.tensor(ground)[None, :, None, None].expand(1, 3, 40, 40).clone()
    picture[:, :, 10:30, 10:30] = torch.tensor(thing)[:, None, None]
    mask = torch.zeros(1, 1, 40, 40)
    mask[:, :, 10:30, 10:30] = 1
    return picture, mask


@pytest.mark.parametrize("thing", [RED, GREEN, WHITE, BLACK, [0.0, 0.0, 1.0], [1.0, 1.0, 0.0], [0.5, 0.5, 0.5]])
def test_a_mask_is_seen_on_what_it_covers(thing: list[float]) -> None:
    picture, mask = scene(GREEN, thing)
    shown = drawing.overlay(picture, mask)
    assert torch.equal(shown, drawing.overlay(picture, mask))
    assert (shown - picture)[0, :, 20, 20].abs().max() > 0.25
    bare = drawing.overlay(picture, mask, opacity=0.0)
    assert torch.equal(bare[0, :, 20, 20], picture[0, :, 20, 20])
    inner, outer = bare[0, :, 10, 20], bare[0, :, 9, 20]
    assert (inner - picture[0, :, 10, 20]).abs().max() > 0.4
    assert outer.tolist() in (WHITE, BLACK)
    assert (inner - outer).abs().max() > 0.4
    assert torch.equal(bare[0, :, 8, 20], picture[0, :, 8, 20])


def test_a_phrase_keeps_its_colour_when_more_are_added() -> None:
    assert torch.equal(drawing.colours(12)[:3], drawing.colours(3))
    assert drawing.hexadecimal(drawing.colours(1)[0]) == "#ff0000"
    assert torch.cdist(drawing.colours(12), drawing.colours(12)).add(10 * torch.eye(12)).min() > 0.2


def test_colours_of_one_overlay_differ_from_each_other() -> None:
    pictures = torch.rand(2, 3, 30, 30, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(2, 9, 30, 30)
    for i in range(9):
        masks[:, i, 3 * i : 3 * i + 3] = 1
    hues = drawing.contrasting(pictures, masks)
    assert hues.shape == (9, 3)
    assert len({tuple(hue.tolist()) for hue in hues}) == 9
    apart = torch.cdist(hues, hues) + 10 * torch.eye(9)
    assert apart.min() > 0.3
    assert drawing.contrasting(pictures, masks[:, :0]).shape == (0, 3)
    nothing = drawing.contrasting(pictures, torch.zeros(2, 2, 30, 30))
    assert torch.equal(nothing[0], drawing.colours(1)[0])


def test_outlines_of_large_pictures_are_thicker() -> None:
    picture, mask = torch.full((1, 3, 900, 900), 0.5), torch.zeros(1, 1, 900, 900)
    mask[:, :, 300:600, 300:600] = 1
    changed = (drawing.overlay(picture, mask, opacity=0.0) - picture)[0].abs().amax(0)[:, 450]
    assert changed.nonzero().flatten().tolist() == [*range(297, 303), *range(597, 603)]


def ink(page: torch.Tensor) -> int:
    """Dark pixels below the picture."""
    return int((page.mean(0)[300:] < 0.5).sum())


@pytest.mark.parametrize("text", ["красная звезда", "一颗红星", "ein grüner Fisch", "a fish \U0001f41f", "звезда 星"])
def test_words_in_any_script_can_be_read(text: str) -> None:
    """In a font that has them, else letter by letter as escapes; never as question marks or boxes."""
    font, shown = drawing._font_for(text, 20)
    assert all(drawing._has(font, sign) for sign in shown)
    assert "?" not in shown
    assert shown.encode().decode("unicode_escape" if shown != text else "utf-8") == text or not shown.isascii()
    page = drawing.with_legend(torch.zeros(3, 300, 300), [text])
    assert ink(page) > 40


def test_without_any_font_words_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "FONTS", ())
    font, shown = drawing._font_for("a звезда", 20)
    assert shown == "a \\u0437\\u0432\\u0435\\u0437\\u0434\\u0430"
    assert type(font) is type(drawing._font(20))


def test_the_bitmap_font_of_old_pillows_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Pillow 10.1 its own font has one size and Latin letters alone."""
    bitmap: Any = ImageFont.load_default_imagefont() if hasattr(ImageFont, "load_default_imagefont") else None
    if bitmap is None:
        pytest.skip("this Pillow has no other font")
    monkeypatch.setattr(drawing, "_font", lambda size: bitmap)
    monkeypatch.setattr(drawing, "FONTS", ())
    assert drawing._font_for("é", 20)[1] == "\\xe9"
    assert ink(drawing.with_legend(torch.zeros(3, 300, 300), ["a star", "звезда"])) > 40


@pytest.mark.parametrize("text", ["a star " * 20, "星" * 80, "w" * 200])
def test_long_lines_are_wrapped_within_the_page(text: str) -> None:
    font, lines = drawing.wrapped(text, 15, 200)
    assert all(0 < font.getlength(line) <= 200 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_notes_have_no_colour() -> None:
    plain, noted = (drawing.with_legend(torch.zeros(3, 300, 300), ["a"], notes=notes) for notes in ([], ["scores"]))
    step = noted.shape[1] - plain.shape[1]
    assert step == 22
    red = torch.tensor(RED)[:, None, None]
    assert int((noted == red).all(0).sum()) == int((plain == red).all(0).sum()) > 0
    strip = noted[:, -step:, :25]
    assert torch.equal(strip, torch.ones_like(strip))
