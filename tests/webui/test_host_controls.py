"""The host's own controls beside the section, in a real A1111 or Forge. `host.py` says what it needs.

A second checkpoint in the host's folder lets the refiner be tested.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file
from webui import host
from webui.test_host_details import CAT, LORA, NAME, READ, changed, masks_of, txt2img

from ldznet.webui.settings import EACH

pytestmark = [pytest.mark.webui, pytest.mark.slow]
ORIGINAL = np.asarray(host.picture())
DOG = {"phrases": "a dog", "threshold": 0.7, "refine": "none"}
STYLE = "of a test"
CONTROLS: dict[str, dict[str, Any]] = {
    "only masked": {"inpaint_full_res": True, "inpaint_full_res_padding": 16, "mask_blur": 4},
    "inpaint not masked": {"inpainting_mask_invert": 1},
    "soft inpainting": {"alwayson_scripts": {"Soft Inpainting": {"args": [True, 1, 0.5, 4, 0, 0.5, 2]}}},
    "style": {"styles": [STYLE]},
    "LoRA": {"prompt": f"a cat <lora:{NAME}:1>"},
    "CLIP skip": {"override_settings": {"CLIP_stop_at_last_layers": 3}},
    "token merging": {"override_settings": {"token_merging_ratio": 0.5}},
    "tiling": {"tiling": True},
    "prompt editing": {"prompt": "[a cat:a dog:0.5] AND (grass:1.2), [green|blue]", "steps": 4},
}


@pytest.fixture(scope="module")
def webui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[host.Webui]:
    work = tmp_path_factory.mktemp("webui")
    save_file(LORA, work / f"{NAME}.safetensors")
    styles = work / "styles.csv"
    styles.write_text(f'name,prompt,negative_prompt\n{STYLE},"{{prompt}}, a cat, grass",""\n')
    folders = ("--lora-dir", str(work), "--styles-file", str(styles))
    with contextlib.closing(host.Webui(*host.found(), work, *folders)) as running:
        yield running


@pytest.mark.parametrize("name", CONTROLS)
def test_a_mask_by_words_is_as_one_that_was_drawn(webui: host.Webui, name: str) -> None:
    """What the host makes of it is what it makes of the same mask from elsewhere, to the bit."""
    controls = CONTROLS[name]
    answer = webui.post("/ldznet/segment", {"image": host.encoded(host.picture()), **DOG})
    drawn = answer["masks"][0]["mask"]
    for _ in range(2):  # the host draws the VAE's noise from where the last run left the generator
        (expected, *_), _ = webui.img2img(mask=drawn, **controls)
    hooks = webui.witness()["hooks"]
    (picture, *_), text = webui.img2img(DOG, **controls)
    assert "% of the picture" in text
    assert changed(expected, ORIGINAL).any()
    assert np.array_equal(picture, expected)
    assert webui.witness()["hooks"] == hooks


@pytest.mark.parametrize("changes", [{"prompt": "grass and a __pet__"}, {"prompt": "sand", "styles": [STYLE]}])
def test_wildcards_and_styles_are_read_while_sampling(webui: host.Webui, changes: dict[str, Any]) -> None:
    phrases = {**CAT, "while_sampling": True}
    plain, _ = txt2img(webui, **changes)
    pictures, text = txt2img(webui, phrases, **changes)
    (mask,) = masks_of(pictures, 1)
    assert READ in text
    assert not changed(plain[0], pictures[0])[~mask].any()


def test_a_refiner_leaves_right_masks_and_nothing_else(webui: host.Webui) -> None:
    titles = [model["title"] for model in webui.get("/sdapi/v1/sd-models")]
    if len(titles) < 2:
        pytest.skip("the host has one checkpoint: the refiner needs a second")
    loaded = webui.get("/sdapi/v1/options")["sd_model_checkpoint"]
    other = next(title for title in titles if title != loaded)
    (before,), _ = txt2img(webui)
    changes = {"refiner_checkpoint": other, "refiner_switch_at": 0.5, "steps": 4}
    plain, _ = txt2img(webui, **changes)
    pictures, text = txt2img(webui, {**CAT, "while_sampling": True}, **changes)
    (mask,) = masks_of(pictures, 1)
    there = changed(plain[0], pictures[0])
    assert there[mask].mean() > 0.9
    assert not there[~mask].any()
    assert READ in text
    assert np.array_equal(txt2img(webui)[0][0], before)


@pytest.mark.parametrize("how", ["interrupt", "skip"])
@pytest.mark.parametrize("after", [0.2, 2.0])
def test_a_stop_of_inpainting_by_words_leaves_nothing(webui: host.Webui, how: str, after: float) -> None:
    for _ in range(2):
        (expected, *_), _ = webui.img2img(DOG)
    hooks = webui.witness()["hooks"]
    settings = {**DOG, "phrases": "a horse\nthe sea\na red hat", "passes": EACH}  # new ones, so that the model is asked
    assert webui.stopped(after, how, lambda: webui.img2img(settings, steps=20))
    webui.img2img(DOG)
    (picture, *_), _ = webui.img2img(DOG)
    assert np.array_equal(picture, expected)
    assert webui.witness()["hooks"] == hooks


def test_its_log_has_no_fault_of_ours(webui: host.Webui) -> None:
    log = webui.log.read_text(errors="replace")
    assert "LD-ZNet:" not in log
    assert "ldznet" not in "".join(line for line in log.splitlines() if "Error" in line)
