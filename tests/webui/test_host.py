"""The section in a real A1111 or Forge, through its API. `host.py` says what it needs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from webui import host

from ldznet.webui.settings import EACH

pytestmark = [pytest.mark.webui, pytest.mark.slow]
ABSENT = {"phrases": "a dog", "threshold": 1.0}  # with the head attention nothing else counts as absent
ORIGINAL = np.asarray(host.picture())


@pytest.fixture(scope="module")
def webui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[host.Webui]:
    running = host.Webui(*host.found(), tmp_path_factory.mktemp("webui"))
    try:
        yield running
    finally:
        running.close()


def test_off_changes_nothing(webui: host.Webui) -> None:
    webui.img2img()  # the host draws the VAE's noise from where the last run left the generator
    (plain, *_), text = webui.img2img()
    (off, *_), with_section = webui.img2img([False, "a dog"])
    (empty, *_), _ = webui.img2img({"phrases": "# nothing\n"})
    assert np.array_equal(plain, off)
    assert np.array_equal(plain, empty)
    assert text == with_section
    assert "LDZNet" not in text


def test_what_is_outside_of_the_mask_stays_to_the_bit(webui: host.Webui) -> None:
    settings = {"phrases": "a dog", "threshold": 0.7, "refine": "none"}
    (inside, *_), text = webui.img2img(settings)
    (outside, *_), _ = webui.img2img({**settings, "invert": True})
    changed, rest = ((picture != ORIGINAL).any(-1) for picture in (inside, outside))
    assert 0.05 < changed.mean() < 0.95
    assert not (changed & rest).any()
    assert (changed | rest).mean() > 0.95
    assert "LDZNet phrases: a dog" in text
    assert "% of the picture" in text


@pytest.mark.parametrize("only_masked", [False, True])
def test_not_found_is_the_picture_to_the_bit(webui: host.Webui, only_masked: bool) -> None:
    pictures, text = webui.img2img(ABSENT, inpaint_full_res=only_masked, batch_size=2)
    assert "a dog: not found" in text
    shown = [picture for picture in pictures if picture.shape == ORIGINAL.shape]
    assert len(shown) == 2
    assert all(np.array_equal(picture, ORIGINAL) for picture in shown)


def test_what_makes_no_sense_leaves_the_picture(webui: host.Webui) -> None:
    (picture, *_), text = webui.img2img({"phrases": "a dog", "thresh": 1})
    assert np.array_equal(picture, ORIGINAL)
    assert "thresh" in text


def test_a_pass_for_each_phrase(webui: host.Webui) -> None:
    settings = {"phrases": "a dog\nthe sky", "threshold": 0.7, "refine": "none"}
    (both, *_), _ = webui.img2img({**settings, "passes": EACH})
    parts = [webui.img2img({**settings, "passes": EACH, "phrases": phrase})[0][0] for phrase in ("a dog", "the sky")]
    assert (both != ORIGINAL).any(-1).mean() > max((part != ORIGINAL).any(-1).mean() for part in parts) / 2
    assert not np.array_equal(both, parts[0])


def test_its_log_has_no_fault_of_ours(webui: host.Webui) -> None:
    assert "LD-ZNet:" not in webui.log.read_text(errors="replace")
