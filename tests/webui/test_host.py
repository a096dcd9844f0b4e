"""The section in a real A1111 or Forge, through its API. `host.py` says what it needs."""

from __future__ import annotations

import base64
import io
import json
import os
import urllib.error

import numpy as np
import pytest
from webui import host

from ldznet.webui.settings import EACH, TITLE

pytestmark = [pytest.mark.webui, pytest.mark.slow]
SHAPED = {"threshold": 0.7, "refine": "none"}
FOUND = {"phrases": "a dog", **SHAPED}
ABSENT = {"phrases": "a dog", "threshold": 1.0}  # with the head attention nothing else counts as absent
ORIGINAL = np.asarray(host.picture())


def of_size(pictures: list[np.ndarray]) -> list[np.ndarray]:
    """Without the grid."""
    return [picture for picture in pictures if picture.shape == ORIGINAL.shape]


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
    shown = of_size(pictures)
    assert len(shown) == 2
    assert all(np.array_equal(picture, ORIGINAL) for picture in shown)


def test_what_makes_no_sense_leaves_the_picture(webui: host.Webui) -> None:
    (picture, *_), text = webui.img2img({"phrases": "a dog", "thresh": 1})
    assert np.array_equal(picture, ORIGINAL)
    assert "thresh" in text


def test_a_pass_for_each_phrase(webui: host.Webui) -> None:
    settings = {"phrases": "a dog\nthe sky", "threshold": 0.7, "refine": "none"}
    (both, *_), _ = webui.img2img({**settings, "passes": EACH})
    asked = {"image": host.encoded(host.picture()), **settings}
    masks = [host.decoded(part["mask"])[..., 0] > 0 for part in webui.post("/ldznet/segment", asked)["masks"]]
    changed = (both != ORIGINAL).any(-1)
    assert all((mask & ~other).mean() > 0.02 for mask, other in (masks, masks[::-1]))
    assert all(changed[mask].mean() > 0.9 for mask in (masks[0] & ~masks[1], masks[1] & ~masks[0]))
    assert not changed[~(masks[0] | masks[1])].any()


def test_it_is_shown_in_both_tabs(webui: host.Webui) -> None:
    """koutilya-pnvr/LD-ZNet#3: the script is not showing."""
    shown = webui.get("/sdapi/v1/scripts")
    assert [TITLE.lower() in shown[tab] for tab in ("txt2img", "img2img")] == [True, True]


def test_every_picture_of_a_batch_has_the_mask(webui: host.Webui) -> None:
    """unprompted#228: the first one's was inverted."""
    (one, *_), _ = webui.img2img(FOUND)
    pictures, _ = webui.img2img(FOUND, n_iter=2, batch_size=2)
    pictures = of_size(pictures)
    assert len(pictures) == 4
    kept = (one == ORIGINAL).all(-1)
    assert 0.05 < kept.mean() < 0.95
    for picture in pictures:
        assert np.array_equal(picture[kept], ORIGINAL[kept])
        assert (picture != ORIGINAL).any(-1).mean() > 0.5 * (1 - kept.mean())


def test_pictures_that_differ_get_no_mask_of_one_of_them(webui: host.Webui) -> None:
    """stable-diffusion-webui#16367: the host takes one mask for all pictures of a call."""
    two = [host.picture(number) for number in range(2)]
    pictures, text = webui.img2img(FOUND, init_images=[host.encoded(picture) for picture in two], batch_size=2)
    assert "Expected one picture in a batch, got 2 that differ" in text
    for picture, given in zip(of_size(pictures), two, strict=True):
        assert np.array_equal(picture, given)


def test_a_blur_wider_than_the_mask_is_told(webui: host.Webui) -> None:
    """stable-diffusion-webui-reForge#419: nothing changed, and nobody said why."""
    asked = {"image": host.encoded(host.picture()), "phrases": ["a dog"], "refine": "none"}
    for threshold in np.linspace(0.99, 0.5, 50).round(2).tolist():
        (part,) = webui.post("/ldznet/segment", {**asked, "threshold": threshold})["masks"]
        if part["found"]:
            break
    assert 0 < (host.decoded(part["mask"])[..., 0] > 0).mean() < 0.02
    (picture, *_), text = webui.img2img({**FOUND, "threshold": threshold}, mask_blur=64)
    assert "Mask blur 64 leaves nothing of so small a mask" in text
    assert np.array_equal(picture, ORIGINAL)


def test_masked_content_is_the_host_s(webui: host.Webui) -> None:
    """stable-diffusion-webui#11077: fill, original, latent noise, latent nothing."""
    inside = []
    for fill in range(4):
        pictures, _ = webui.img2img(FOUND, inpainting_fill=fill, batch_size=2)
        pictures = of_size(pictures)
        inside.append([(picture != ORIGINAL).any(-1) for picture in pictures])
        assert len(pictures) == 2
    union = np.logical_or.reduce([mask for masks in inside for mask in masks])
    assert 0.05 < union.mean() < 0.95
    assert all(mask.mean() > 0.5 * union.mean() for masks in inside for mask in masks)


def test_the_route_s_mask_is_what_is_repainted(webui: host.Webui) -> None:
    image = host.encoded(host.picture())
    answer = webui.post("/ldznet/segment", {"image": image, "phrases": ["a dog", "the sky"], **SHAPED})
    assert [part["phrase"] for part in answer["masks"]] == ["a dog", "the sky"]
    assert (answer["width"], answer["height"]) == host.SIZE
    mask = np.maximum.reduce([host.decoded(part["mask"])[..., 0] for part in answer["masks"]])
    (picture, *_), _ = webui.img2img({"phrases": "a dog\nthe sky", **SHAPED})
    changed = (picture != ORIGINAL).any(-1)
    assert not changed[mask == 0].any()
    assert changed[mask == 255].mean() > 0.9


def test_the_route_takes_latents_and_refuses_in_words(webui: host.Webui) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.random.default_rng(0).standard_normal((4, 16, 24)).astype(np.float32))
    latents = base64.b64encode(buffer.getvalue()).decode()
    answer = webui.post("/ldznet/segment", {"latents": latents, "phrases": ["a dog"]})
    assert host.decoded(answer["masks"][0]["mask"]).shape == (128, 192, 3)
    with pytest.raises(urllib.error.HTTPError) as caught:
        webui.post("/ldznet/segment", {"latents": latents, "phrases": ["a dog"], "thresh": 1})
    assert caught.value.code == 422
    assert "thresh" in json.load(caught.value)["detail"]


AXES = {
    "threshold": ("0.6, 1.0", ["% of the picture", "a dog: not found"]),
    "phrases": ('a dog, "a dog\\nthe sky"', ["a dog: ", "the sky: "]),
    "head": ("attention (no download)", ["a dog: "]),
    "grow": ("0, 40", ["a dog: ", "a dog: "]),
}


@pytest.mark.parametrize("name", AXES)
def test_an_axis_of_the_plot_works_through_the_api(webui: host.Webui, name: str) -> None:
    """sd-perturbed-attention#54: axes of strings gave no picture."""
    values, words = AXES[name]
    plots = [script for script in webui.get("/sdapi/v1/script-info") if script["name"] == "x/y/z plot"]
    arguments = next(plot["args"] for plot in plots if plot["is_img2img"])
    labels = [choice if isinstance(choice, str) else choice[0] for choice in arguments[0]["choices"]]
    given = [argument["label"] == "Include Sub Images" or argument["value"] for argument in arguments]
    for place, label in ((0, f"[LD-ZNet] {name}"), (3, "Nothing"), (6, "Nothing")):
        given[place : place + 3] = [labels.index(label), values if place == 0 else "", []]
    answer = webui.answer({**FOUND, "phrases": "a dog"}, script_name="x/y/z plot", script_args=given)
    texts = [text for text in json.loads(answer["info"])["infotexts"] if "LDZNet result" in text]
    pictures = [host.decoded(image) for image in answer["images"]]
    assert len(of_size(pictures)) >= len(words)
    assert all(any(word in text for text in texts) for word in words)


def test_many_runs_leave_nothing_behind(webui: host.Webui) -> None:
    """As many as $WEBUI_RUNS, else 50, with another picture each, so that each asks the model anew."""
    runs, small = int(os.environ.get("WEBUI_RUNS", "50")), {"width": 64, "height": 64, "steps": 1}

    def run(number: int) -> None:
        settings = [FOUND, ABSENT, {**FOUND, "phrases": "a dog\nthe sky", "passes": EACH}][number % 3]
        webui.img2img(settings, init_images=[host.encoded(host.picture(number).resize((64, 64)))], **small)

    for number in range(6):
        run(number)
    before = webui.witness()
    for number in range(6, 6 + runs):
        run(number)
    after = webui.witness()
    print(f"{runs} runs: {before} -> {after}")
    assert after["passes"] - before["passes"] >= runs
    assert after["hooks"] == before["hooks"]
    assert abs(after["tensors"] - before["tensors"]) < 2**20
    assert after["resident"] - before["resident"] < 100 * 2**20


def test_its_log_has_no_fault_of_ours(webui: host.Webui) -> None:
    log = webui.log.read_text(errors="replace")
    assert "LD-ZNet:" not in log
    assert "ldznet" not in "".join(line for line in log.splitlines() if "Error" in line)
