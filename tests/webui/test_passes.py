"""What `scripts/ldznet_webui.py` has the host paint inside of a run: details, and the passes of further phrases."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from webui import standin

from ldznet.webui.settings import Settings


class Inner(SimpleNamespace):
    """StableDiffusionProcessingImg2Img as it is made for a detail."""

    closed = 0

    def close(self) -> None:
        self.closed += 1


def prepared_for_details(script: Any, done: list[Any]) -> tuple[Any, Any, Any]:
    """A run that is in the middle, a pass to be made, and what the host was asked to run."""
    ran: list[Any] = []
    script.shared.state = SimpleNamespace(interrupted=False, skipped=False)
    script.shared.sd_model = SimpleNamespace(applied_token_merged_ratio=0.5)
    script.processing.StableDiffusionProcessingImg2Img = Inner

    def process_images(p: Any) -> Any:
        ran.append(p)
        script.shared.sd_model.applied_token_merged_ratio = 0  # as the host leaves it
        return SimpleNamespace(images=done)

    def merge(model: Any, ratio: float) -> None:
        model.applied_token_merged_ratio = ratio

    script.processing.process_images, script.sd_models.apply_token_merging = process_images, merge
    names = ("outpath_samples", "outpath_grids", "subseed_strength", "sampler_name", "steps", "cfg_scale", "tiling")
    p = SimpleNamespace(
        **{name: f"its {name}" for name in names},
        all_prompts=["a", "b <lora:x:1>"],
        all_negative_prompts=["no", "none"],
        all_seeds=[5, 6],
        all_subseeds=[7, 8],
        width=100,
        height=64,
        scheduler="Karras",
    )
    order = Settings.of([{"details": "the hat => a hat"}]).orders[0]
    job = SimpleNamespace(
        picture="picture", mask="mask", order=order, settings=Settings(size=520, blur=3), at=1, number=2
    )
    return p, job, ran


def test_a_detail_is_img2img_s_own_run(script: Any) -> None:
    p, job, ran = prepared_for_details(script, ["done"])
    assert script.painted(p, job) == "done"
    (again,) = ran
    assert (again.prompt, again.negative_prompt, again.seed, again.subseed) == ("a hat", "none", 8, 8)
    assert (again.width, again.height, again.steps, again.scheduler) == (520, 520, "its steps", "Karras")
    assert (again.init_images, again.mask, again.mask_blur, again.inpaint_full_res) == (["picture"], "mask", 3, True)
    assert again.override_settings["overlay_inpaint"] is True  # or the host would not keep what is outside
    assert again.closed == 1
    assert (again.scripts_value.alwayson_scripts, again.script_args_value) == ((), [])  # reForge asks it for its list
    assert script.shared.sd_model.applied_token_merged_ratio == 0.5
    job.order, job.settings = job.order._replace(prompt=""), Settings(steps=9)
    script.painted(p, job)
    assert (ran[1].prompt, ran[1].steps, ran[1].width, ran[1].height) == ("b <lora:x:1>", 9, 96, 64)


@pytest.mark.parametrize("how", ["interrupted", "skipped", "no picture", "an error"])
def test_a_detail_that_was_stopped_is_none(script: Any, how: str) -> None:
    p, job, ran = prepared_for_details(script, [] if how == "no picture" else ["half"])
    if how == "an error":
        script.processing.process_images = lambda again: (ran.append(again), 1 / 0)
        with pytest.raises(ZeroDivisionError):
            script.painted(p, job)
    else:
        vars(script.shared.state).update({how: True})
        assert script.painted(p, job) is None
    assert ran[0].closed == 1


def in_the_middle(script: Any, done: list[Any]) -> tuple[Any, list[Any]]:
    """A run of img2img whose second batch of two has just been composited, and what the host is asked to run."""
    _, _, ran = prepared_for_details(script, done)
    texts = [f"prompt {number}" for number in range(4)]
    of_the_run: dict[str, Any] = {"batch_size": 2, "n_iter": 2, "iteration": 1, "styles": ["a style"], "denoising": 0.4}
    of_the_run |= {"prompt": "a prompt", "negative_prompt": "no", "seed": 1, "subseed": 2, "mask_blur_x": 4}
    of_the_run |= {"all_prompts": texts, "all_negative_prompts": texts[::-1]}
    of_the_run |= {"all_seeds": [10, 11, 12, 13], "all_subseeds": [20, 21, 22, 23], "cached_c": ["of the run", 1]}
    of_the_run |= {"override_settings": {"CLIP_stop_at_last_layers": 2}, "cached_uc": ["of the run", 1]}
    of_the_run |= {"overlay_images": ["an overlay"], "nmask": "a mask", "paste_to": (1, 2, 3, 4), "mask": None}
    of_the_run |= {"color_corrections": ["of the first"], "mask_for_overlay": "a mask", "closed": 0}
    p = standin.Processing(Image.new("RGB", (64, 64)), drawn=Image.new("L", (64, 64)), **of_the_run)
    p.close = lambda: ran.append("closed")
    return p, ran


def test_a_further_pass_is_the_run_once_more_over_its_own_picture(script: Any) -> None:
    """By the mask, the prompts and the seeds of its place among all pictures; of the masks before nothing is left."""
    p, ran = in_the_middle(script, ["repainted"])
    picture, mask = Image.new("RGB", (64, 64), "red"), Image.new("L", (64, 64), 255)
    before = {name: value.copy() if isinstance(value, dict | list) else value for name, value in vars(p).items()}
    assert script.repainted(p, picture, mask, 1) == "repainted"
    assert vars(p) == before
    again = ran[0]
    assert (again.init_images, again.image_mask) == ([picture], mask)
    assert (again.prompt, again.negative_prompt, again.seed, again.subseed) == ("prompt 3", "prompt 0", 13, 23)
    assert (again.n_iter, again.batch_size, again.styles) == (1, 1, [])  # the prompt has its styles in it
    assert (again.do_not_save_samples, again.do_not_save_grid) == (True, True)
    for name in ("mask", "nmask", "init_latent", "overlay_images", "mask_for_overlay", "color_corrections", "paste_to"):
        assert getattr(again, name) is None
    assert (again.override_settings, again.cached_c, again.cached_uc) == ({}, [None, None], [None, None])
    assert (again.denoising, again.mask_blur_x, again.width) == (0.4, 4, 64)
    assert (again.scripts_value.alwayson_scripts, again.script_args_value) == ((), [])
    again.extra_generation_params["of"] = "the pass"
    assert "of" not in p.extra_generation_params


@pytest.mark.parametrize("how", ["interrupted", "skipped", "no picture"])
def test_a_further_pass_that_was_stopped_leaves_the_picture(script: Any, how: str) -> None:
    p, ran = in_the_middle(script, [] if how == "no picture" else ["half"])
    vars(script.shared.state).update({how: True})
    picture = Image.new("RGB", (64, 64), "red")
    assert script.repainted(p, picture, Image.new("L", (64, 64), 255), 0) is picture
    assert ran[-1] == "closed"
