"""img2img by words on stand-ins of the host, with the tiny world as the loaded model: right masks, or the picture."""

from __future__ import annotations

import configparser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from webui import standin

from ldznet import tinyworld
from ldznet.webui import painting, running
from ldznet.webui.section import begin
from ldznet.webui.settings import CUT, EACH, REPLACE, RESULT, STOP, TINY, UNITE

SCENE = tinyworld.scene(22, "photo")
PICTURE = Image.fromarray(SCENE.image)
CAT, GRASS, ABSENT = "a purple cat", "grass", "a yellow boat"
BASE = {"head": TINY, "refine": "none"}


@pytest.fixture
def host() -> standin.Host:
    return standin.Host()


@pytest.fixture
def looker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return standin.looker(tmp_path, monkeypatch)


def prepared(p: Any, host: standin.Host, looker: Any, **settings: Any) -> Any:
    begin(p, [{**BASE, **settings}], looker, host.calls())
    return p


def share(mask: Image.Image) -> float:
    return float((np.asarray(mask) > 127).mean())


def iou(mask: Image.Image, truth: Any) -> float:
    inside, truth = np.asarray(mask) > 127, np.asarray(truth) > 0
    return float((inside & truth).sum() / (inside | truth).sum())


def test_the_host_gets_the_phrase_s_mask(host: standin.Host, looker: Any) -> None:
    p = prepared(standin.Processing(PICTURE), host, looker, phrases=GRASS)
    truth = SCENE.masks[GRASS]
    assert (p.image_mask.mode, p.image_mask.size) == ("L", PICTURE.size)
    assert set(np.unique(np.asarray(p.image_mask))) == {0, 255}
    assert iou(p.image_mask, truth) > 0.9
    assert p.sample() == "sampled"
    assert p.extra_generation_params[RESULT].startswith(f"{GRASS}: ")
    assert "not found" not in p.extra_generation_params[RESULT]
    assert p.extra_generation_params["LDZNet phrases"] == GRASS


def test_invert_is_the_rest(host: standin.Host, looker: Any) -> None:
    masks = [
        np.asarray(prepared(standin.Processing(PICTURE), host, looker, phrases=CAT, invert=invert).image_mask)
        for invert in (False, True)
    ]
    assert (masks[0] == 255 - masks[1]).all()


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("invert", [True, False])
def test_not_found_is_the_picture_to_the_bit(host: standin.Host, looker: Any, full: bool, invert: bool) -> None:
    p = standin.Processing(PICTURE, inpaint_full_res=full)
    prepared(p, host, looker, phrases=ABSENT, invert=invert)
    assert p.image_mask is None
    assert p.sample(conditioning=1) is p.init_latent
    run = running.run_of(p)
    assert run is not None
    final = run.finish(p, Image.new("RGB", (3, 3)), 0, None)  # type: ignore[arg-type]
    assert np.array_equal(np.asarray(final), SCENE.image)
    assert p.extra_generation_params[RESULT].startswith(f"{ABSENT}: not found")
    assert any(text.startswith(f"LD-ZNet: {ABSENT}: not found") for text in p.comments)
    assert not host.stopped


def test_not_found_can_stop_instead(host: standin.Host, looker: Any) -> None:
    prepared(standin.Processing(PICTURE), host, looker, phrases=ABSENT, missing=STOP)
    assert host.stopped


def drawing() -> Image.Image:
    drawn = Image.new("L", PICTURE.size)
    drawn.paste(255, (0, 0, PICTURE.width, PICTURE.height // 2))
    return drawn


def test_a_drawn_mask_is_united_cut_or_replaced(host: standin.Host, looker: Any) -> None:
    got = {}
    for how in (UNITE, CUT, REPLACE):
        p = prepared(standin.Processing(PICTURE, drawn=drawing()), host, looker, phrases=CAT, drawn=how)
        got[how] = np.asarray(p.image_mask)
    drawn, words = np.asarray(drawing()), got[REPLACE]
    assert np.array_equal(got[UNITE], np.maximum(drawn, words))
    assert np.array_equal(got[CUT], np.minimum(drawn, words))
    assert 0 < (got[CUT] > 0).sum() < (words > 0).sum() < (got[UNITE] > 0).sum()


def test_a_drawing_is_read_as_the_host_reads_it() -> None:
    clear = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    clear.putpixel((1, 1), (0, 0, 0, 200))
    read = painting.drawn_mask(clear)
    assert read is not None
    assert np.argwhere(np.asarray(read) == 255).tolist() == [[1, 1]]
    opaque = painting.drawn_mask(Image.new("RGBA", (1, 1), (255, 255, 255, 255)))
    assert opaque is not None
    assert opaque.getpixel((0, 0)) == 255
    assert painting.drawn_mask(None) is None


def test_each_phrase_has_its_pass(host: standin.Host, looker: Any) -> None:
    p = prepared(standin.Processing(PICTURE), host, looker, phrases=f"{CAT}\n{ABSENT}\n{GRASS}", passes=EACH)
    run, seen = running.run_of(p), []
    assert run is not None

    def repaint(given: Any, picture: Image.Image, mask: Image.Image, place: int) -> Image.Image:
        seen.append((given, mask, place))
        return picture.rotate(180)

    final = run.finish(p, PICTURE, 3, repaint)
    assert [(given, place) for given, _, place in seen] == [(p, 3)]
    assert np.array_equal(np.asarray(final), np.asarray(PICTURE.rotate(180)))
    alone = prepared(standin.Processing(PICTURE), host, looker, phrases=GRASS).image_mask
    assert np.array_equal(np.asarray(seen[0][1]), np.asarray(alone))
    assert share(p.image_mask) < share(alone)


def test_a_batch_of_files_has_a_mask_for_each(host: standin.Host, looker: Any) -> None:
    """The Batch tab uses one `p`: neither the last file's mask nor its words stay (unprompted#44)."""
    p = prepared(standin.Processing(PICTURE, drawn=drawing()), host, looker, phrases=CAT, drawn=CUT)
    first = p.image_mask
    p.init_images = [Image.fromarray(SCENE.image[:, ::-1].copy())]
    prepared(p, host, looker, phrases=CAT, drawn=REPLACE)
    assert iou(p.image_mask, np.asarray(first)) < 0.5
    prepared(p, host, looker, phrases=ABSENT, drawn=REPLACE)
    assert p.extra_generation_params[RESULT].startswith(f"{ABSENT}: not found")
    prepared(p, host, looker, phrases=CAT)
    assert p.sample() == "sampled"
    run = running.run_of(p)
    assert run is not None
    run.end(p)
    assert np.array_equal(np.asarray(p.image_mask), np.asarray(drawing()))
    assert running.run_of(p) is None
    assert "sample" not in vars(p)


def test_a_mask_that_another_script_has_set_since_stays(host: standin.Host, looker: Any) -> None:
    p = prepared(standin.Processing(PICTURE), host, looker, phrases=CAT)
    p.image_mask = another = Image.new("L", PICTURE.size)
    running.run_of(p).end(p)  # type: ignore[union-attr]
    assert p.image_mask is another


def test_the_host_s_blur_and_inversion_are_reckoned_with(host: standin.Host, looker: Any) -> None:
    """reForge#419: a blur wider than the mask leaves nothing of it."""
    dot = Image.new("L", (64, 64))
    dot.putpixel((30, 30), 255)
    p = standin.Processing(PICTURE, mask_blur_x=4, mask_blur_y=4)
    assert running.usable(p, [dot]) == ([dot], [])
    p.mask_blur_x = p.mask_blur_y = 32
    passes, notes = running.usable(p, [dot])
    assert passes == []
    assert "Mask blur 32" in notes[0]
    p = standin.Processing(PICTURE, inpainting_mask_invert=1)
    passes, notes = running.usable(p, [Image.new("L", (4, 4), 255)])
    assert passes == []
    assert "Inpaint not masked" in notes[0]


@pytest.mark.parametrize("deviation", [1, 4, 20])
def test_what_outlives_a_blur_is_what_a_gaussian_leaves(deviation: int) -> None:
    from scipy import ndimage

    mask = np.zeros((90, 120), np.float32)
    mask[40:44, 50:60] = 255
    expected = ndimage.gaussian_filter(mask, deviation, mode="nearest", radius=int(2.5 * deviation + 0.5))
    blurred = painting._blurred(painting._blurred(torch.from_numpy(mask), deviation, 1), deviation, 0)
    np.testing.assert_allclose(blurred.numpy(), expected, atol=0.01)


def test_pictures_that_differ_are_refused_and_stay(host: standin.Host, looker: Any) -> None:
    other = PICTURE.rotate(180)
    p = prepared(standin.Processing(PICTURE, other), host, looker, phrases=CAT)
    assert "got 2 that differ" in p.extra_generation_params[RESULT]
    run = running.run_of(p)
    assert run is not None
    finals = [run.finish(p, Image.new("RGB", (1, 1)), place, None) for place in (0, 1)]  # type: ignore[arg-type]
    assert [np.asarray(final).tobytes() for final in finals] == [PICTURE.tobytes(), other.tobytes()]
    same = prepared(standin.Processing(PICTURE, PICTURE.copy()), host, looker, phrases=CAT)
    assert share(same.image_mask) > 0


FAILING = {
    "a phrase that names nothing": ({"phrases": "the - "}, "Expected a phrase"),
    "a head that is not there": ({"phrases": CAT, "head": "none.safetensors"}, "found none"),
    "a head outside of the folder": ({"phrases": CAT, "head": "../../x.safetensors"}, "found none"),
    "a setting": ({"phrases": CAT, "threshold": 7}, "0 to 1 as threshold"),
}


@pytest.mark.parametrize("case", FAILING)
def test_whatever_is_wrong_leaves_the_picture(host: standin.Host, looker: Any, case: str) -> None:
    settings, message = FAILING[case]
    p = prepared(standin.Processing(PICTURE), host, looker, **settings)
    assert message in p.extra_generation_params[RESULT]
    assert p.image_mask is None
    assert p.sample() is p.init_latent
    assert host.log == []


def test_a_fault_of_ours_leaves_the_picture_and_goes_to_the_log(
    host: standin.Host, looker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looker, "look", lambda *_: 1 / 0)
    p = prepared(standin.Processing(PICTURE), host, looker, phrases=CAT)
    assert "ZeroDivisionError" in p.extra_generation_params[RESULT]
    assert len(host.log) == 1
    assert p.sample() is p.init_latent
    assert host.networks == "of the last run"


def test_the_last_run_s_networks_are_out_of_the_model_meanwhile(host: standin.Host, looker: Any) -> None:
    seen, look = [], looker.look
    looker.look = lambda *given: (seen.append(host.networks), look(*given))[1]
    prepared(standin.Processing(PICTURE), host, looker, phrases=CAT)
    assert (seen, host.networks) == ([""], "of the last run")


def test_stopping_while_it_looks(host: standin.Host, looker: Any) -> None:
    host.interrupted = True
    p = prepared(standin.Processing(PICTURE), host, looker, phrases=CAT)
    assert p.extra_generation_params[RESULT] == "stopped while phrases were looked for"
    assert p.sample() is p.init_latent


def test_a_new_threshold_asks_no_model(host: standin.Host, looker: Any) -> None:
    areas = []
    for threshold in (0.2, 0.5, 0.8):
        p = prepared(standin.Processing(PICTURE), host, looker, phrases=CAT, threshold=threshold)
        areas.append(share(p.image_mask))
    assert looker.asked == 1
    assert areas[0] > areas[1] > areas[2] > 0
    host.file = "b.safetensors"  # the host has put other weights into the same model
    prepared(standin.Processing(PICTURE), host, looker, phrases=CAT)
    assert looker.asked == 2
    prepared(standin.Processing(PICTURE.rotate(180)), host, looker, phrases=CAT)
    assert looker.asked == 3


def test_the_hosts_load_it_before_soft_inpainting() -> None:
    """By metadata.ini, as A1111, Forge and reForge read it: the mask is there when that one looks for it."""
    root, order = Path(__file__).parents[2], configparser.ConfigParser()
    order.read(root / "metadata.ini", encoding="utf-8")
    assert {section: dict(order[section]) for section in order.sections()} == {
        "scripts/ldznet_webui.py": {"before": "soft-inpainting"}
    }
    assert (root / "scripts" / "ldznet_webui.py").is_file()
