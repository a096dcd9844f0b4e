"""Captures in a real ComfyUI where its cache, a second sampler or a cancelled run gets in the way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from comfyui import graphs, host

pytestmark = pytest.mark.host


def run(server: host.Server, prompt: graphs.Prompt) -> None:
    """A prompt that must work."""
    failed = host.error_of(server.run(prompt))
    assert failed is None, failed


def two_samplers(captures: int) -> graphs.Prompt:
    """A hires fix on one model: the second sampler goes on from the first, through a capture of its own or not."""
    prompt = graphs.captured(seed=21)
    prompt["own"] = graphs.node("LDZNetCapture", model=["world", 0], head=["head", 0])
    model = "own" if captures == 2 else "capture"
    prompt["larger"] = graphs.node(
        "LatentUpscale", samples=["latent", 0], upscale_method="bilinear", width=192, height=192, crop="disabled"
    )
    prompt["hires"] = graphs.sampler([model, 0], ["larger", 0], denoise=0.7)
    prompt["again"] = {**prompt["segment"], "inputs": {**prompt["segment"]["inputs"], "latent": ["hires", 0]}}
    prompt["again"]["inputs"]["capture"] = [model, 1]
    prompt |= {"show": graphs.save(["segment", 2], "first"), "show again": graphs.save(["again", 2], "second")}
    return prompt


@pytest.mark.parametrize("captures", [1, 2])
def test_two_samplers_on_one_model(server: host.Server, captures: int) -> None:
    run(server, two_samplers(captures))
    assert server.saved("first")[0]["probabilities"].shape[2:] == (128, 128)
    assert server.saved("second")[0]["probabilities"].shape[2:] == (192, 192)


def test_a_cancelled_run_leaves_nothing_and_can_be_repeated(server: host.Server) -> None:
    prompt = graphs.captured(seed=22, steps=600)
    prompt["state"] = graphs.node("ProbeState", model=["world", 0], after=["segment", 0])
    prompt |= {"show": graphs.save(["segment", 4], "report"), "show state": graphs.save(["state", 0], "state")}
    messages = host.Messages(server)
    queued = server.post("/prompt", {"prompt": prompt, "client_id": server.client})["prompt_id"]
    messages.until("progress", "execution_success")
    server.post("/interrupt", {})
    assert messages.until_done()[-1]["type"] == "execution_interrupted"
    messages.close()
    server.wait_for(queued)
    prompt["latent"]["inputs"]["steps"] = 8
    run(server, prompt)
    assert server.saved("state")[0].endswith("0 hooks")
    assert "found" in server.saved("report")[0]


def test_crops_alone_are_reported_and_take_a_pass(server: host.Server) -> None:
    prompt = graphs.captured(seed=23, width=256)
    prompt["left"] = graphs.node(
        "ConditioningSetArea", conditioning=["positive", 0], width=128, height=128, x=0, y=0, strength=1.0
    )
    prompt["latent"]["inputs"]["positive"] = ["left", 0]
    require_masks_by_passes(server, prompt, ["latent", 0], "positive conditioning covers only a part of the picture")


def test_several_prompts_and_a_guider_with_three(server: host.Server) -> None:
    prompt = graphs.captured(seed=24, batch=2)
    prompt["other"] = graphs.node("CLIPTextEncode", clip=["world", 1], text="a photo of snow")
    prompt["both"] = graphs.node("ConditioningCombine", conditioning_1=["positive", 0], conditioning_2=["other", 0])
    prompt["guider"] = graphs.node(
        "DualCFGGuider",
        model=["capture", 0],
        cond1=["both", 0],
        cond2=["other", 0],
        negative=["negative", 0],
        cfg_conds=4.0,
        cfg_cond2_negative=3.0,
        style="regular",
    )
    prompt["noise"] = graphs.node("RandomNoise", noise_seed=3)
    prompt["kind"] = graphs.node("KSamplerSelect", sampler_name="euler")
    prompt["sigmas"] = graphs.node("BasicScheduler", model=["world", 0], scheduler="normal", steps=6, denoise=1.0)
    links = {"noise": ["noise", 0], "guider": ["guider", 0], "sampler": ["kind", 0], "sigmas": ["sigmas", 0]}
    prompt["custom"] = graphs.node("SamplerCustomAdvanced", latent_image=["size", 0], **links)
    prompt["segment"]["inputs"]["latent"] = ["custom", 1]  # denoised_output
    prompt |= {"show": graphs.save(["segment", 2], "maps")}
    del prompt["latent"]
    if "style" not in server.get("/object_info/DualCFGGuider")["DualCFGGuider"]["input"]["required"]:
        del prompt["guider"]["inputs"]["style"]
    run(server, prompt)
    assert server.saved("maps")[0]["probabilities"].shape == (2, 2, 128, 128)


def require_masks_by_passes(server: host.Server, prompt: graphs.Prompt, latent: list[Any], said: str) -> None:
    """Segment Captured gives the masks of Segment by Text, and says why."""
    prompt["plain"] = graphs.segment(latent=latent)
    prompt |= {"show": graphs.save(["segment", 2], "maps"), "show plain": graphs.save(["plain", 2], "plain")}
    prompt["show report"] = graphs.save(["segment", 4], "report")
    run(server, prompt)
    maps, plain = (server.saved(name)[0]["probabilities"] for name in ("maps", "plain"))
    assert torch.allclose(maps, plain, atol=1e-5)
    assert said in server.saved("report")[0]


def test_a_latent_that_was_not_captured_is_segmented_all_the_same(server: host.Server) -> None:
    """A picture is there, and its sampler may have run for minutes: one more pass, and a line that says why."""
    prompt = graphs.captured(seed=25)
    prompt["other"] = graphs.sampler(["world", 0], ["size", 0], seed=25)
    prompt["segment"]["inputs"]["latent"] = ["other", 0]
    del prompt["latent"]
    said = "nothing was captured of this latent: no sampler with the captured model returned it"
    require_masks_by_passes(server, prompt, ["other", 0], said)


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--cache-none"], ["--cache-lru", "1"]], ids=" ".join)
def test_with_other_caches(tmp_path: Any, options: list[str]) -> None:
    reason = host.reason_to_skip()
    if reason:
        pytest.skip(reason)
    server = host.Server(tmp_path, options)
    try:
        expanding = {"least": graphs.node("ProbeExpand", fill=0.0), "show": graphs.save(["least", 0], "least")}
        failed = host.error_of(server.run(expanding))
        if failed is not None:  # 0.3.64 with --cache-none: KeyError in its DependencyAwareCache.ensure_subcache_for
            pytest.skip(f"this ComfyUI cannot run any node that expands: {failed}")
        prompt = {**graphs.captured(seed=26), "show": graphs.save(["segment", 2], "maps")}
        run(server, prompt)
        first = server.saved("maps")[0]["probabilities"]
        prompt["segment"]["inputs"]["threshold"] = 0.3
        run(server, prompt)
        assert torch.equal(server.saved("maps")[0]["probabilities"], first)
    finally:
        server.stop()
