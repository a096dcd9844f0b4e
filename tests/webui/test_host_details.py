"""Detail by words in a real A1111 or Forge, through its API. `host.py` says what it needs."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from webui import host

from ldznet.webui.settings import TITLE

pytestmark = [pytest.mark.webui, pytest.mark.slow]
SIZE = (128, 128)  # width, height
BASE: dict[str, Any] = {
    "prompt": "a (cat:1.2), grass",
    "negative_prompt": "a dog",
    "steps": 2,
    "width": SIZE[0],
    "height": SIZE[1],
    "seed": 1,
    "sampler_name": "Euler",
}
CAT = {"details": "a cat => a dog", "threshold": 0.6, "refine": "none", "blur": 0, "gallery": True}
NAME = "ldznet_test"  # of a LoRA that changes every picture
LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v"
WIDTH = int(os.environ.get("WEBUI_WIDTH", "320"))  # the checkpoint's model_channels
LORA = {
    f"{LAYER}.lora_down.weight": torch.ones(4, 768),
    f"{LAYER}.lora_up.weight": torch.linspace(-1, 1, 4 * WIDTH).reshape(WIDTH, 4),
    f"{LAYER}.alpha": torch.tensor(4.0),
}
READ = 'read from the sampling: \\"a cat\\"'


@pytest.fixture(scope="module")
def webui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[host.Webui]:
    work = tmp_path_factory.mktemp("webui")
    save_file(LORA, work / f"{NAME}.safetensors")
    with contextlib.closing(host.Webui(*host.found(), work, "--lora-dir", str(work))) as running:
        yield running


def txt2img(webui: host.Webui, settings: Any = None, path: str = "txt2img", **changed: Any) -> tuple[list[Any], str]:
    """The pictures, and the first one's infotext."""
    body = {**BASE, **changed}
    if settings is not None:
        body["alwayson_scripts"] = {TITLE: {"args": [settings]}, **changed.get("alwayson_scripts", {})}
    answer = webui.post(f"/sdapi/v1/{path}", body)
    return [host.decoded(image) for image in answer["images"]], json.loads(answer["info"])["infotexts"][0]


def masks_of(pictures: list[Any], count: int) -> list[Any]:
    """Of the pictures after the first `count`, each one's mask: an overlay stands before it, a grid before all."""
    masks = [picture[..., 0] > 0 for picture in pictures if set(np.unique(picture)) <= {0, 255}]
    assert len(masks) == count
    return masks


def changed(picture: Any, other: Any) -> Any:
    return (picture != other).any(-1)


def require_painted(before: Any, after: Any, mask: Any) -> None:
    """What is in the mask is another picture, and what is outside the same one."""
    there = changed(before, after)
    assert there[mask].mean() > 0.9
    assert not there[~mask].any()


def of_size(pictures: list[Any], size: tuple[int, int] = SIZE) -> list[Any]:
    return [picture for picture in pictures if picture.shape[:2] == (size[1], size[0])]


def test_off_is_the_picture_without_the_section(webui: host.Webui) -> None:
    (plain,), text = txt2img(webui)
    (off,), also = txt2img(webui, {**CAT, "enabled": False})
    assert np.array_equal(plain, off)
    assert text == also


def test_each_picture_of_a_batch_outside_of_its_mask_stays_to_the_bit(webui: host.Webui) -> None:
    """adetailer#369: details by words, not by classes."""
    plain = of_size(txt2img(webui, batch_size=2)[0])
    pictures, text = txt2img(webui, CAT, batch_size=2)
    masks = masks_of(pictures, 2)
    assert not np.array_equal(*masks)
    for before, after, mask in zip(plain[-2:], of_size(pictures)[:2], masks, strict=True):
        require_painted(before, after, mask)
    assert "LDZNet details: a cat => a dog" in text


@pytest.mark.parametrize("options", [{}, {"token_merging_ratio": 0.5}])
def test_batches_after_a_detail_are_what_they_are_without(webui: host.Webui, options: dict[str, Any]) -> None:
    """A detail's own run inside of another leaves nothing: tokens are merged, LoRAs are in, the noise is the same."""
    changes = {"n_iter": 2, "override_settings": {**options, "return_grid": False}}
    plain, _ = txt2img(webui, **changes)
    pictures, _ = txt2img(webui, CAT, **changes)
    masks = masks_of(pictures, 2)
    for before, after, mask in zip(plain, pictures, masks, strict=False):
        require_painted(before, after, mask)


@pytest.mark.parametrize(
    ("prompt", "line"),
    [
        ("a [dog:cat:0.34] on grass", READ),
        ("a [cat:dog:0.34] on grass", "none of the phrases stands in the prompt"),
        ("a [dog|cat] on grass", READ),
        ("grass AND a cat on sand", READ),
        ("a cat", "nothing beside the phrase"),
        ("grass and more of it, green and tall, " * 9 + "BREAK a (cat:1.2)", READ),
    ],
)
def test_prompts_are_read_as_the_host_reads_them(webui: host.Webui, prompt: str, line: str) -> None:
    pictures, text = txt2img(webui, {**CAT, "while_sampling": True}, prompt=prompt, steps=3)
    assert line in text
    plain, _ = txt2img(webui, prompt=prompt, steps=3)
    (mask,) = masks_of(pictures, 1)
    require_painted(plain[0], pictures[0], mask)


def test_hires_fix_is_masked_at_its_size(webui: host.Webui) -> None:
    changes: dict[str, Any] = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.7}
    changes["hr_additional_modules"] = [
        "Use same choices"
    ]  # Forge's API fails without it; the others do not ask for it
    plain, _ = txt2img(webui, **changes)
    pictures, text = txt2img(webui, {**CAT, "while_sampling": True}, **changes)
    (mask,) = masks_of(pictures, 1)
    assert mask.shape == (192, 192)
    require_painted(plain[0], pictures[0], mask)
    assert READ in text


def test_only_masked_tiling_and_clip_skip(webui: host.Webui) -> None:
    """The latents of "Only masked" are those of a part, and so is the picture that is detailed."""
    half = np.zeros((*SIZE[::-1], 3), np.uint8)
    half[:, :64] = 255
    drawn = host.encoded(host.Image.fromarray(half))
    changes: dict[str, Any] = {
        "init_images": [host.encoded(host.picture().resize(SIZE))],
        "mask": drawn,
        "inpaint_full_res": True,
        "mask_blur": 0,
        "tiling": True,
        "denoising_strength": 0.75,
        "inpainting_fill": 1,
        "override_settings": {"CLIP_stop_at_last_layers": 2},
        "path": "img2img",
    }
    original = np.asarray(host.picture().resize(SIZE))
    plain, _ = txt2img(webui, None, **changes)
    pictures, text = txt2img(webui, {**CAT, "while_sampling": True}, **changes)
    there = changed(plain[0], pictures[0])
    assert there[:, :64].any()
    assert not changed(original, pictures[0])[:, 64:].any()
    assert READ in text


def test_a_lora_of_the_run_before_is_not_in_the_features(webui: host.Webui) -> None:
    phrases = {"phrases": "a cat", "threshold": 0.6, "refine": "none"}
    changes = {"init_images": [host.encoded(host.picture().resize(SIZE))], "path": "img2img"}
    (plain, *_), _ = txt2img(webui, prompt="a cat")
    before = txt2img(webui, phrases, **changes)[1]
    (other, *_), _ = txt2img(webui, prompt=f"a cat <lora:{NAME}:1>")
    after = txt2img(webui, phrases, **changes)[1]
    assert changed(plain, other).mean() > 0.5
    assert before == after
    inside, _ = txt2img(webui, {**CAT, "while_sampling": True}, prompt=f"a cat <lora:{NAME}:1>")
    (mask,) = masks_of(inside, 1)
    require_painted(other, inside[0], mask)
    assert np.array_equal(txt2img(webui, prompt="a cat")[0][0], plain)


@pytest.mark.parametrize("how", ["interrupt", "skip"])
@pytest.mark.parametrize("after", [1, 8])
def test_a_stop_at_any_moment_leaves_nothing(webui: host.Webui, how: str, after: int) -> None:
    (plain,), _ = txt2img(webui)
    hooks = webui.witness()["hooks"]
    settings = {**CAT, "while_sampling": True, "steps": 20, "denoise": 1.0}
    assert webui.stopped(after, how, lambda: txt2img(webui, settings, steps=10))
    assert np.array_equal(txt2img(webui)[0][0], plain)
    assert webui.witness()["hooks"] == hooks


def test_its_log_has_no_fault_of_ours(webui: host.Webui) -> None:
    log = webui.log.read_text(errors="replace")
    assert "LD-ZNet:" not in log
    assert "ldznet" not in "".join(line for line in log.splitlines() if "Error" in line)
