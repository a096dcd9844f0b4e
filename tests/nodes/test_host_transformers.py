"""The attention head on transformers of random weights in a real ComfyUI: its nodes from end to end, and its refusals.

What is read is right by tests/joint; here it is that the nodes accept these models, their latents and their pictures.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from comfyui import graphs, host
from joint import families

pytestmark = pytest.mark.host


class Tried(NamedTuple):
    """What is known of a family beside its nodes: a picture's latents, and the pass that its report names."""

    title: str
    channels: int = 16
    cell: int = 8  # pixels of a latent
    size: tuple[int, int] = (12, 20)  # of the latents, not square
    read: str = "1 of 3 at t = 500"


TRIED = {
    "zimage": Tried("Z-Image"),
    "qwen": Tried("Qwen-Image"),
    "flux2": Tried("Flux.2", 128, 16),
    "wan2.1": Tried("Wan"),
    "hunyuan_image": Tried("Hunyuan Image 2.1", 64, 32),
    "hidream": Tried("HiDream"),
    "pixart_sigma": Tried("PixArt", 4, size=(28, 40), read="1 of 3 at t = 100"),  # its class divides by 0 below
    "hydit": Tried("HunyuanDiT", 4, read="1, 2 of 4 at t = 100"),
    "hidream_o1": Tried("HiDream O1", 3, 1, size=(192, 320)),
    "ideogram4": Tried("Ideogram 4", 128, 16),
    "lens": Tried("Lens", 128, 16),
}
PIXELS = {"channels": 3, "cell": 1, "size": (192, 320)}
OTHERS = {  # whose mechanisms are those of the former, or of tests/joint alone
    "sd3": Tried("SD 3", read="1 of 3 at t = 260"),
    "flux": Tried("Flux.1"),
    "chroma": Tried("Chroma", read="15, 16, 17, 18 of 19 at t = 500"),
    "chroma_radiance": Tried("Chroma", **PIXELS, read="15, 16, 17, 18 of 19 at t = 500"),
    "lumina2": Tried("Lumina 2"),
    "zimage_pixel": Tried("Z-Image", **PIXELS),
    "krea2": Tried("Krea 2"),
    "anima": Tried("Anima"),
    "cosmos_predict2": Tried("Cosmos Predict2"),
    "wan2.2": Tried("Wan", 48, 16),
    "aura": Tried("AuraFlow", 4),
    "omnigen2": Tried("OmniGen2"),
    "kandinsky5": Tried("Kandinsky 5"),
    "kandinsky5_image": Tried("Kandinsky 5"),
    "ovis": Tried("Ovis-Image"),
    "boogu": Tried("Boogu-Image"),
    "pixeldit": Tried("PixelDiT", **PIXELS),
    "longcat": Tried("LongCat-Image"),
    "pixart_alpha": Tried("PixArt", 4, size=(28, 40), read="1 of 3 at t = 100"),
    "hydit1": Tried("HunyuanDiT", 4, read="1, 2 of 4 at t = 100"),
    "ernie": Tried("ERNIE-Image", 128, 16),
}
EVERY = {**TRIED, **OTHERS}
EACH = [*TRIED, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
UNASKED = ("pixart_sigma", "hydit")  # whose code asks no override: other packs put theirs under the kernel's name


def prompted(family: str, batch: int = 1) -> graphs.Prompt:
    """A sampler of three steps under a capture, from empty latents under "size"."""
    if reason := host.lacking(families.NETWORKS[family][0], families.ENCODERS.get(family, "")):
        pytest.skip(reason)
    height, width = EVERY[family].size
    shape = f"{batch} {EVERY[family].channels} {height} {width}"
    prompt = {
        "model": graphs.node("ProbeTransformer", family=family),
        "head": graphs.node("LDZNetLoadHead", head="attention (no download)"),
        "positive": graphs.node("CLIPTextEncode", clip=["model", 1], text="a photo of a red dog, green grass"),
        "negative": graphs.node("CLIPTextEncode", clip=["model", 1], text=""),
        "size": graphs.node("ProbeLatent", shape=shape, fill=0.0),
        "capture": graphs.node("LDZNetCapture", model=["model", 0], head=["head", 0]),
    }
    prompt["latent"] = graphs.sampler(["capture", 0], ["size", 0], steps=3)
    return prompt


def given(family: str, **links: Any) -> graphs.Prompt:
    """Segment by Text of a family's model, under "segment"."""
    prompt = prompted(family)
    links = {"model": ["model", 0], "clip": ["model", 1], "latent": ["size", 0], **links}
    return {**prompt, "segment": graphs.segment("dog\ngrass", **links)}


def captured(family: str, batch: int = 1, text: str = "") -> graphs.Prompt:
    """Segment Captured of that sampler, under "segment"; with no text, every phrase of the prompt."""
    prompt = prompted(family, batch=batch)
    links = {"latent": ["latent", 0], "capture": ["capture", 1], "clip": ["model", 1]}
    prompt["segment"] = graphs.node("LDZNetSegmentCaptured", **links, text=text, threshold=0.5)
    return prompt


def sides(family: str) -> tuple[int, int]:
    """Of a picture of a family's latents, in pixels."""
    tried = EVERY[family]
    return tried.size[0] * tried.cell, tried.size[1] * tried.cell


def painted(server: host.Server, prompt: graphs.Prompt, model: str) -> torch.Tensor:
    """Latents of the sampler under "latent", on the model under a name and without anything that segments."""
    latent = {**prompt["latent"], "inputs": {**prompt["latent"]["inputs"], "model": [model, 0]}}
    rest = {key: node for key, node in prompt.items() if key not in ("capture", "segment")}
    failed = host.error_of(server.run({**rest, "latent": latent, "show": graphs.save(["latent", 0], "latents")}))
    assert failed is None, failed
    return server.saved("latents")[0]["samples"]


def shown(server: host.Server, prompt: graphs.Prompt) -> tuple[torch.Tensor, str]:
    """Probabilities and report of the node under "segment"."""
    prompt |= {"show": graphs.save(["segment", 2], "maps"), "state": graphs.save(["segment", 4], "report")}
    failed = host.error_of(server.run(prompt))
    assert failed is None, failed
    return server.saved("maps")[0]["probabilities"], server.saved("report")[0]


@pytest.mark.parametrize("family", EACH)
def test_words_of_the_prompt_are_read_while_it_samples(server: host.Server, family: str) -> None:
    maps, report = shown(server, captured(family, batch=2))
    assert maps.shape == (2, 2, *sides(family))
    assert maps[0].std() > 0.05
    assert not torch.equal(maps[0], maps[1])
    assert 'read from the sampling itself: "red dog", "green grass"' in report
    assert f"{EVERY[family].title}: attention of its blocks {EVERY[family].read} (a guess" in report


@pytest.mark.parametrize("family", EACH)
def test_latents_and_pictures_are_segmented(server: host.Server, family: str) -> None:
    maps, report = shown(server, given(family))
    assert maps.shape == (1, 2, *sides(family))
    assert maps.std() > 0.05
    assert f"{EVERY[family].title}: attention of its blocks" in report
    prompt = given(family, latent=None, image=["picture", 0], vae=["model", 2])
    prompt["picture"] = graphs.node("EmptyImage", width=100, height=70, batch_size=1, color=0x40A040)
    maps, _ = shown(server, prompt)
    assert maps.shape == (1, 2, 70, 100)


def test_another_sort_of_phrase_takes_one_pass(server: host.Server) -> None:
    maps, report = shown(server, captured("zimage", text="dog\na house"))
    assert 'read from the sampling itself: "dog"' in report
    assert maps.shape == (1, 2, 96, 160)


def test_concepts_are_asked_of_flux(server: host.Server) -> None:
    """By another head than attention, with other maps; a picture takes it as a latent does."""
    found = {}
    for name in ("concept attention (no download)", "attention (no download)"):
        prompt = {
            "model": graphs.node("ProbeTransformer", family="flux"),
            "head": graphs.node("LDZNetLoadHead", head=name),
            "size": graphs.node("ProbeLatent", shape="2 16 12 20", fill=0.0),
        }
        links = {"model": ["model", 0], "clip": ["model", 1], "latent": ["size", 0], "head": ["head", 0]}
        found[name] = shown(server, {**prompt, "segment": graphs.segment("red dog\ngrass", **links)})
    concepts, attention = found.values()
    assert "Flux.1: concept attention of its blocks 1 of 3 at t = 500" in concepts[1]
    assert "Flux.1: attention of its blocks" in attention[1]
    assert concepts[0].shape == attention[0].shape == (2, 2, 96, 160)
    assert (concepts[0] - attention[0]).abs().mean() > 0.05
    assert 0.1 < (concepts[0] > 0.5).float().mean() < 0.9


@pytest.mark.parametrize(
    ("family", "node", "wanted"),
    [
        (
            "zimage",
            "segment",
            r"Expected Flux\.1 or Chroma for concept attention, got Z-Image\. Take the head attention",
        ),
        (
            "flux",
            "capture",
            r"Expected a head that reads the sampler's own steps, got concept attention \(no download\)",
        ),
        ("flux", "steer", r"Expected a head that reads the sampler's own steps, got concept attention \(no download\)"),
    ],
)
def test_where_concepts_cannot_be_asked_is_said(server: host.Server, family: str, node: str, wanted: str) -> None:
    prompt = given(family) if family == "zimage" else prompted("zimage")
    prompt["model"] = graphs.node("ProbeTransformer", family=family)
    prompt["head"] = graphs.node("LDZNetLoadHead", head="concept attention (no download)")
    model = {"model": ["model", 0], "head": ["head", 0]}
    if node == "segment":
        prompt["segment"]["inputs"]["head"] = ["head", 0]
        prompt["show"] = graphs.save(["segment", 4], "report")
    elif node == "steer":
        regions = {"regions": "dog => a cat", "after": 25.0, "refresh": 0, "threshold": 0.5, "grow": 0}
        prompt["steer"] = graphs.node("LDZNetSteer", **model, clip=["model", 1], **regions, way="masked conditionings")
        prompt["show"] = graphs.save(sampled_on(prompt, "steer"), "latents")
    else:
        prompt["show"] = graphs.save(sampled_on(prompt, "capture"), "latents")
    failed = host.error_of(server.run(prompt)) or ""
    assert re.search(wanted, failed), failed


def sampled_on(prompt: graphs.Prompt, node: str) -> list[Any]:
    """The latent of the sampler of `prompt`, on the model that a node gives."""
    prompt["latent"]["inputs"]["model"] = [node, 0]
    return ["latent", 0]


@pytest.mark.parametrize(
    ("links", "family", "wanted"),
    [
        ({"clip": ["world", 1]}, "zimage", r"Expected Z-Image's text encoders \(qwen3_4b\) in the socket clip, got l"),
        ({"clip": ["other", 1]}, "zimage", r"rows of text 32 wide from the socket clip, got 96"),
        (
            {"head": ["tiny", 0]},
            "zimage",
            r"Expected an SD 1.x, 2.x or SDXL UNet in .*got Z-Image.*take the head attention",
        ),
        ({"latent": ["video", 0]}, "qwen", r"Expected latents of pictures, b c h w, got \(1, 16, 5, 12, 20\)"),
        ({"latent": ["size", 0]}, "lumina2 relative", r"Expected a Stable Diffusion or one of SD 3, .*got a NextDiT"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(
    server: host.Server, links: dict[str, Any], family: str, wanted: str
) -> None:
    prompt = given("qwen" if family == "qwen" else "zimage", **links)
    prompt["model"] = graphs.node("ProbeTransformer", family=family)
    prompt["world"] = graphs.node("LDZNetTinyWorld")
    prompt["other"] = graphs.node("ProbeTransformer", family="flux2")
    prompt["tiny"] = graphs.node("LDZNetLoadHead", head="tiny (embedded)")
    prompt["video"] = graphs.node("ProbeLatent", shape="1 16 5 12 20", fill=0.0)
    failed = host.error_of(server.run({**prompt, "show": graphs.save(["segment", 4], "report")})) or ""
    assert re.search(wanted, failed), failed


@pytest.mark.parametrize("family", TRIED)
def test_three_pictures_of_a_lora_beside_another_pack_s_attention(server: host.Server, family: str) -> None:
    """The picture is what it is without a capture, and the maps are those of the model as it was changed."""
    prompt = captured(family, batch=3)
    plain = painted(server, prompt, "model")
    prompt["lora"] = graphs.node("ProbeModel", model=["model", 0], kind="lora")
    kind = "own kernel" if family in UNASKED else "own attention"
    prompt["beside"] = graphs.node("ProbeBeside", model=["lora", 0], kind=kind)
    changed = [painted(server, prompt, name) for name in ("lora", "beside")]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations([plain, *changed], 2))
    maps = {}
    for name, model in (("alone", "model"), ("lora", "lora"), ("beside", "beside"), ("again", "model")):
        prompt["capture"]["inputs"]["model"] = [model, 0]
        prompt["show latents"] = graphs.save(["latent", 0], "latents")
        maps[name], report = shown(server, {**prompt})
        wanted = {"lora": changed[0], "beside": changed[1]}.get(name, plain)
        assert torch.equal(server.saved("latents")[0]["samples"], wanted)
        assert maps[name].shape == (3, 2, *sides(family))
        assert 'read from the sampling itself: "red dog", "green grass"' in report
    assert torch.equal(maps["again"], maps["alone"])
    assert all((maps[name] - maps["alone"]).abs().max() > 0.05 for name in ("lora", "beside"))


@pytest.mark.parametrize("family", ["qwen", "pixart_sigma"])
def test_interrupted_in_the_middle_nothing_stays_behind(server: host.Server, family: str) -> None:
    prompt = captured(family)
    prompt["hooks"] = graphs.node("ProbeState", model=["model", 0], after=["segment", 0])
    prompt["show hooks"] = graphs.save(["hooks", 0], "hooks")
    prompt["latent"]["inputs"] |= {"seed": 31, "steps": 2000}
    host.interrupt(server, prompt)
    prompt["latent"]["inputs"]["steps"] = 3
    _, report = shown(server, prompt)
    assert server.saved("hooks")[0].endswith(" 0 hooks")
    assert 'read from the sampling itself: "red dog", "green grass"' in report


def test_a_picture_too_small_for_pixart_is_said_and_the_kernel_s_name_given_back(server: host.Server) -> None:
    """The division by zero is in the midst of a pass that is read."""
    prompt = given("pixart_sigma", latent=["small", 0])
    prompt["small"] = graphs.node("ProbeLatent", shape="1 4 32 33", fill=0.0)
    prompt["segment"]["inputs"]["resolution"] = "native"
    failed = host.error_of(server.run({**prompt, "show": graphs.save(["segment", 4], "report")})) or ""
    assert re.search(r"larger picture for PixArt, got 264 x 256 px.*Take the resolution head", failed), failed
    state = {"hooks": graphs.node("ProbeState", model=["model", 0], after=["model", 0])}
    state |= {"model": prompt["model"], "show hooks": graphs.save(["hooks", 0], "hooks")}
    failed = host.error_of(server.run(state))
    assert failed is None, failed
    assert server.saved("hooks")[0].endswith(" 0 hooks")
    prompt["segment"]["inputs"]["resolution"] = "head"
    maps, _ = shown(server, prompt)
    assert maps.shape == (1, 2, 256, 264)


@pytest.mark.parametrize("networks", [1, 2])
def test_ideogram_s_pass_without_a_text_is_left_alone(server: host.Server, networks: int) -> None:
    """By the nodes of its own workflow: a guider of two networks, whose negative side gets no conditioning, or of one
    that makes both passes."""
    prompt = captured("ideogram4")
    prompt |= {
        "other": graphs.node("ProbeTransformer", family="ideogram4 second"),
        "guider": graphs.node("DualModelGuider", model=["model", 0], positive=["positive", 0], cfg=3.0),
        "noise": graphs.node("RandomNoise", noise_seed=1),
        "method": graphs.node("KSamplerSelect", sampler_name="euler"),
        "sigmas": graphs.node("BasicScheduler", model=["model", 0], scheduler="simple", steps=3, denoise=1.0),
    }
    if networks == 2:
        prompt["guider"]["inputs"]["model_negative"] = ["other", 0]
    links = {"noise": ["noise", 0], "guider": ["guider", 0], "sampler": ["method", 0], "sigmas": ["sigmas", 0]}
    prompt["latent"] = graphs.node("SamplerCustomAdvanced", **links, latent_image=["size", 0])
    rest = {key: node for key, node in prompt.items() if key not in ("capture", "segment")}
    failed = host.error_of(server.run({**rest, "show": graphs.save(["latent", 0], "latents")}))
    assert failed is None, failed
    plain = server.saved("latents")[0]["samples"]
    prompt["guider"]["inputs"]["model"] = ["capture", 0]
    maps, report = shown(server, {**prompt, "show latents": graphs.save(["latent", 0], "latents")})
    assert torch.equal(server.saved("latents")[0]["samples"], plain)
    assert maps.shape == (1, 2, *sides("ideogram4"))
    assert maps.std() > 0.05
    assert 'read from the sampling itself: "red dog", "green grass"' in report


@pytest.mark.slow
def test_with_no_cache(tmp_path: Path) -> None:
    if reason := host.reason_to_skip():
        pytest.skip(reason)
    server = host.Server(tmp_path, ["--cache-none"])
    try:
        first, report = shown(server, captured("zimage"))
        assert 'read from the sampling itself: "red dog", "green grass"' in report
        again, _ = shown(server, captured("zimage"))
        assert torch.equal(first, again)
    finally:
        server.stop()
