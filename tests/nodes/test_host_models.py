"""Models as people have them, in a real ComfyUI: quantised, with an adapter, PAG, FreeU, a ControlNet; any sampler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from comfyui import graphs, host

from ldznet.checkpoints.load import WEIGHTS
from ldznet.checkpoints.shrink import shrink

pytestmark = pytest.mark.host

PROMPT = "a photo of a red star on grass"  # of graphs.base()
HEADS = {"tiny": "tiny (embedded)", "attention": "attention (no download)", "delta": "delta.safetensors"}
FREE_U = {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}


@pytest.fixture(scope="module", autouse=True)
def delta(server: host.Server) -> None:
    """*tiny* as changes of the loaded UNet, in the server's models/ldznet."""
    folder = server.base / "models" / "ldznet"
    folder.mkdir(exist_ok=True)
    shrink(WEIGHTS / "ldznet.safetensors", folder / HEADS["delta"], WEIGHTS / "unet.safetensors", rank=16, force=True)


def probe(kind: str) -> dict[str, Any]:
    return graphs.node("ProbeModel", model=["world", 0], kind=kind)


def weights(kind: str) -> dict[str, Any]:
    return graphs.node("ProbeWeights", model=["world", 0], kind=kind)


MODELS = {  # what a user puts between the loader and the sampler
    "LoRA": probe("lora"),
    "attention patches": probe("attention"),
    "IPAdapter": graphs.node("ProbeAdapter", model=["world", 0]),
    "guidance": graphs.node("ProbeGuidance", model=["world", 0]),
    "PAG": graphs.node("PerturbedAttentionGuidance", model=["world", 0], scale=3.0),
    "FreeU": graphs.node("FreeU", model=["world", 0], **FREE_U),
    "FreeU_V2": graphs.node("FreeU_V2", model=["world", 0], **FREE_U),
    "fp8": weights("fp8"),
    "GGUF": weights("gguf"),
}
LEFT_OUT = ["IPAdapter", "PAG", "FreeU", "FreeU_V2"]  # Segment by Text sees nothing of these


def run(server: host.Server, prompt: graphs.Prompt) -> None:
    """A prompt that must work."""
    failed = host.error_of(server.run(prompt))
    assert failed is None, failed


def compared(server: host.Server, one: dict[str, Any], other: dict[str, Any] | None, head: str) -> list[torch.Tensor]:
    """Soft maps of the same latent under two models; `other` None is the plain one."""
    prompt = graphs.sampled(steps=4)
    prompt["head"]["inputs"]["head"] = HEADS[head]
    for i, model in enumerate((one, other)):
        if model is not None:
            prompt[f"model{i}"] = model
        link = ["world", 0] if model is None else [f"model{i}", 0]
        prompt[f"segment{i}"] = graphs.segment("a red star\ngrass", model=link)
        prompt[f"save{i}"] = graphs.save([f"segment{i}", 2], f"maps{i}")
    run(server, prompt)
    return [server.saved(f"maps{i}")[0]["probabilities"] for i in range(2)]


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", LEFT_OUT)
def test_patches_of_attention_and_blocks_are_left_out_of_the_mask(server: host.Server, kind: str, head: str) -> None:
    assert torch.equal(*compared(server, MODELS[kind], None, head))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", ["fp8", "gguf"])
def test_quantised_weights_give_the_mask_of_their_own_values(server: host.Server, kind: str, head: str) -> None:
    quantised, same = compared(server, weights(kind), weights(f"{kind} in float32"), head)
    assert (quantised - same).abs().max() < 1e-3
    assert quantised.std() > 0.01


@pytest.mark.parametrize("kind", ["fp8", "gguf"])
def test_and_nearly_that_of_the_full_weights(server: host.Server, kind: str) -> None:
    quantised, full = compared(server, weights(kind), None, "tiny")
    assert not torch.equal(quantised, full)
    assert (quantised - full).abs().mean() < 0.05


Sampling = Callable[[graphs.Prompt, list[Any], str], None]
"""Puts into a prompt, under a name, what samples with a model."""


def k_sampler(**changes: Any) -> Sampling:
    def add(prompt: graphs.Prompt, model: list[Any], name: str) -> None:
        prompt[name] = graphs.sampler(model, ["size", 0], **{"steps": 4, **changes})

    return add


def controlled(prompt: graphs.Prompt, model: list[Any], name: str) -> None:
    """A KSampler under a ControlNet."""
    prompt["hint"] = graphs.node("EmptyImage", width=128, height=128, batch_size=1, color=0x4080C0)
    prompt["net"] = graphs.node("ProbeControlNet", model=["world", 0])
    links = {"positive": ["positive", 0], "negative": ["negative", 0], "control_net": ["net", 0], "image": ["hint", 0]}
    settings = {"strength": 0.8, "start_percent": 0.0, "end_percent": 0.9}
    prompt["controlled"] = graphs.node("ControlNetApplyAdvanced", **links, **settings)
    texts = {"positive": ["controlled", 0], "negative": ["controlled", 1]}
    prompt[name] = graphs.sampler(model, ["size", 0], steps=4, **texts)


def custom(prompt: graphs.Prompt, model: list[Any], name: str) -> None:
    """SamplerCustom."""
    parts(prompt)
    links = {"positive": ["positive", 0], "negative": ["negative", 0], "latent_image": ["size", 0]}
    links |= {"model": model, "sampler": ["kind", 0], "sigmas": ["sigmas", 0]}
    prompt[name] = graphs.node("SamplerCustom", add_noise=True, noise_seed=3, cfg=4.0, **links)


def dual(prompt: graphs.Prompt, model: list[Any], name: str) -> None:
    """SamplerCustomAdvanced with DualCFGGuider."""
    parts(prompt)
    prompt["other"] = graphs.node("CLIPTextEncode", clip=["world", 1], text="a photo of snow")
    prompt["noise"] = graphs.node("RandomNoise", noise_seed=3)
    links = {"model": model, "cond1": ["positive", 0], "cond2": ["other", 0], "negative": ["negative", 0]}
    settings = {"cfg_conds": 4.0, "cfg_cond2_negative": 3.0, "style": "regular"}
    prompt[f"{name} guider"] = graphs.node("DualCFGGuider", **links, **settings)
    links = {"noise": ["noise", 0], "guider": [f"{name} guider", 0], "sampler": ["kind", 0], "sigmas": ["sigmas", 0]}
    prompt[name] = graphs.node("SamplerCustomAdvanced", latent_image=["size", 0], **links)


def parts(prompt: graphs.Prompt) -> None:
    """What the custom samplers share."""
    prompt["kind"] = graphs.node("KSamplerSelect", sampler_name="dpmpp_2m")
    prompt["sigmas"] = graphs.node("BasicScheduler", model=["world", 0], scheduler="karras", steps=4, denoise=1.0)


SAMPLINGS: dict[str, tuple[str | None, Sampling]] = {  # between the loader and the sampler, and the sampler
    "KSampler": (None, k_sampler()),
    **{kind: (kind, k_sampler()) for kind in MODELS},
    "PAG at CFG 1": ("PAG", k_sampler(cfg=1.0)),
    "CFG 1": (None, k_sampler(cfg=1.0)),
    "ControlNet": (None, controlled),
    "ControlNet and LoRA": ("LoRA", controlled),
    "SamplerCustom": (None, custom),
    "DualCFG": (None, dual),
    "DualCFG and PAG": ("PAG", dual),
}


def captured(sampling: str, batch: int = 1) -> graphs.Prompt:
    """The same sampler without a capture ("latent plain") and with one for each head, and Segment Captured of these."""
    model, add = SAMPLINGS[sampling]
    prompt = graphs.base()
    prompt["size"] = graphs.node("EmptyLatentImage", width=128, height=128, batch_size=batch)
    if model is not None:
        prompt["model"] = MODELS[model]
    link = ["world", 0] if model is None else ["model", 0]
    add(prompt, link, "latent plain")
    prompt["save plain"] = graphs.save(["latent plain", 0], "plain")
    for head, title in HEADS.items():
        prompt[f"head {head}"] = graphs.node("LDZNetLoadHead", head=title)
        prompt[f"capture {head}"] = graphs.node("LDZNetCapture", model=link, head=[f"head {head}", 0])
        add(prompt, [f"capture {head}", 0], f"latent {head}")
        links = {"latent": [f"latent {head}", 0], "capture": [f"capture {head}", 1]}
        links |= {"clip": ["world", 1], "head": [f"head {head}", 0]}
        text = {"text": "a red star\ngrass", "threshold": 0.5, "prompt": PROMPT}
        prompt[f"segment {head}"] = graphs.node("LDZNetSegmentCaptured", **links, **text)
        values = {f"latent {head}": 0, f"segment {head}": 2}
        prompt |= {f"save {name}": graphs.save([name, i], name) for name, i in values.items()}
        prompt[f"save report {head}"] = graphs.save([f"segment {head}", 4], f"report {head}")
    return prompt


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_capture_leaves_every_bit_of_the_picture(server: host.Server, sampling: str) -> None:
    prompt = captured(sampling, batch=2)
    prompt["state"] = graphs.node("ProbeState", model=["world", 0], after=["segment tiny", 0])
    run(server, {**prompt, "save state": graphs.save(["state", 0], "state")})
    plain = server.saved("plain")[0]["samples"]
    assert plain.isfinite().all()
    assert plain.std() > 0
    for head in HEADS:
        assert torch.equal(server.saved(f"latent {head}")[0]["samples"], plain), head
        maps = server.saved(f"segment {head}")[0]["probabilities"]
        assert maps.shape == (2, 2, 128, 128)
        assert maps.isfinite().all()
        assert "not captured" not in server.saved(f"report {head}")[0]
    assert 'read from the sampling itself: "a red star", "grass"' in server.saved("report attention")[0]
    assert server.saved("state")[0].endswith(" 0 hooks")


def test_what_a_guidance_disturbs_is_not_captured(server: host.Server) -> None:
    """A second call at each step, with another attention, changes nothing that is read."""
    maps = []
    for sampling in ("guidance", "KSampler"):
        run(server, captured(sampling))
        maps.append({head: server.saved(f"segment {head}")[0]["probabilities"] for head in HEADS})
    for head in HEADS:
        assert torch.equal(maps[0][head], maps[1][head]), head
