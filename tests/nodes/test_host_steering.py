"""Region Prompts While Sampling in a real ComfyUI: every sampler, every image, beside everything else, to the bit."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from comfyui import graphs, host

pytestmark = pytest.mark.host

PHRASE, OTHER = "grass", "a photo of a red star on sand"
WAYS = ("cross-attention", "masked conditionings")
STEPS = 8
SETTINGS = {"after": 25.0, "refresh": 0, "threshold": 0.5, "grow": 0, "way": WAYS[0]}


def run(server: host.Server, prompt: graphs.Prompt) -> None:
    """A prompt that must work."""
    failed = host.error_of(server.run(prompt))
    assert failed is None, failed


def steer(lines: str, model: list[Any], **changes: Any) -> dict[str, Any]:
    """The node, with the trained head of the tiny world."""
    links = {"model": model, "clip": ["world", 1], "head": ["head", 0]}
    inputs = {**links, "regions": lines, **SETTINGS, **changes}
    return graphs.node("LDZNetSteer", **{name: value for name, value in inputs.items() if value is not None})


def steered(lines: str, batch: int = 1, model: list[Any] | None = None, **changes: Any) -> graphs.Prompt:
    """A sampler of `model` with regions under "latent", Regions Found under "regions", and latents and report saved."""
    settings = {name: changes.pop(name) for name in list(changes) if name in (*SETTINGS, "head")}
    prompt = graphs.sampled(batch, **{"seed": 3, "steps": STEPS, **changes})
    prompt["steer"] = steer(lines, model or ["world", 0], **settings)
    prompt["latent"]["inputs"]["model"] = ["steer", 0]
    return prompt | found()


def found(latent: list[Any] | None = None) -> graphs.Prompt:
    """Regions Found behind "steer", and what is saved of it and of the latents."""
    latent = latent or ["latent", 0]
    made = {"regions": graphs.node("LDZNetSteered", latent=latent, steering=["steer", 1])}
    values = {"latents": latent, "masks": ["regions", 1], "maps": ["regions", 2], "report": ["regions", 4]}
    return made | {f"save {name}": graphs.save(link, name) for name, link in values.items()}


def plain(prompt: graphs.Prompt, latent: list[Any] | None = None) -> graphs.Prompt:
    """The same without regions; `latent` is what the sampler gives."""
    model = prompt["steer"]["inputs"]["model"]
    left = {
        key: node for key, node in prompt.items() if key not in ("steer", "regions") and not key.startswith("save ")
    }
    for key, node in left.items():
        links = {name: model if value == ["steer", 0] else value for name, value in node["inputs"].items()}
        left[key] = {**node, "inputs": links}
    return {**left, "save latents": graphs.save(latent or ["latent", 0], "latents")}


def both(server: host.Server, prompt: graphs.Prompt, latent: list[Any] | None = None) -> tuple[torch.Tensor, ...]:
    """Latents without regions and with them."""
    run(server, plain(prompt, latent))
    before = server.saved("latents")[0]["samples"]
    run(server, prompt)
    return before, server.saved("latents")[0]["samples"]


def require_steered(server: host.Server, prompt: graphs.Prompt, latent: list[Any] | None = None) -> None:
    """A region was found and is another picture now; what lies outside is more like it was."""
    before, after = both(server, prompt, latent)
    assert f'"{PHRASE}" => "{OTHER}": from step ' in server.saved("report")[0]
    inside = torch.nn.functional.adaptive_avg_pool2d(server.saved("masks")[0], before.shape[2:])
    apart = (after - before).abs().mean(dim=1)
    assert 0.05 < inside.mean() < 0.95
    assert apart[inside > 0.9].mean() > 0.1
    assert apart[inside > 0.9].mean() > 1.3 * apart[inside < 0.1].mean()


@pytest.mark.parametrize("way", WAYS)
def test_regions_are_painted_anew(server: host.Server, way: str) -> None:
    require_steered(server, steered(f"{PHRASE} => {OTHER}", way=way))
    last = server.saved("report")[0].splitlines()[-1]
    assert last == f'"{PHRASE}" => "{OTHER}": from step 3 of {STEPS} on, image 1'


@pytest.mark.parametrize("way", WAYS)
def test_nothing_found_is_the_run_without_it(server: host.Server, way: str) -> None:
    """What no pixel is sure of, whatever the tiny head takes for it."""
    before, after = both(server, steered(f"{PHRASE} => {OTHER}", way=way, threshold=1.0))
    assert torch.equal(after, before)
    assert f'"{PHRASE}": not found after 2 of {STEPS} steps, nothing is changed' in server.saved("report")[0]
    assert not server.saved("masks")[0].any()


@pytest.mark.parametrize("way", WAYS)
def test_up_to_that_step_it_is_the_run_without_it(server: host.Server, way: str) -> None:
    """The advanced sampler, whose first half is looked at too late, and whose second goes on with the noise left."""
    halves = {"noise_seed": 3, "steps": STEPS, "cfg": 5.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"}
    prompt = steered(f"{PHRASE} => {OTHER}", way=way, after=50.0)
    links = prompt["latent"]["inputs"]
    links = {name: links[name] for name in ("model", "positive", "negative", "latent_image")}
    first = {"add_noise": "enable", "start_at_step": 0, "end_at_step": 2, "return_with_leftover_noise": "enable"}
    prompt["latent"] = graphs.node("KSamplerAdvanced", **links, **halves, **{**first, "end_at_step": 2})
    prompt["steer"]["inputs"]["after"] = 100.0
    before, after = both(server, prompt)
    assert torch.equal(after, before)
    prompt["first"] = prompt["latent"]
    second = {"add_noise": "disable", "start_at_step": 2, "end_at_step": STEPS, "return_with_leftover_noise": "disable"}
    prompt["latent"] = graphs.node("KSamplerAdvanced", **{**links, "latent_image": ["first", 0]}, **halves, **second)
    prompt["steer"]["inputs"]["after"] = 25.0
    require_steered(server, prompt)
    assert f"from step 3 of {STEPS - 2} on" in server.saved("report")[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"cfg": 1.0},
        {"sampler_name": "heun", "scheduler": "karras"},
        {"sampler_name": "dpmpp_2m_sde", "scheduler": "karras"},
        {"sampler_name": "uni_pc"},
        {"sampler_name": "lcm", "cfg": 1.5},
        {"refresh": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("way", WAYS)
def test_with_any_sampler(server: host.Server, changes: dict[str, Any], way: str) -> None:
    before, after = both(server, steered(f"{PHRASE} => {OTHER}", way=way, **changes))
    assert f'"{PHRASE}" => "{OTHER}": from step 3 of {STEPS} on' in server.saved("report")[0]
    assert after.isfinite().all()
    assert (after - before).abs().mean() > 0.05


@pytest.mark.parametrize("guider", ["BasicGuider", "CFGGuider", "DualCFGGuider"])
def test_custom_samplers(server: host.Server, guider: str) -> None:
    prompt = steered(f"{PHRASE} => {OTHER}")
    links = {"model": ["steer", 0], "positive": ["positive", 0], "negative": ["negative", 0], "cfg": 5.0}
    inputs: dict[str, dict[str, Any]] = {
        "BasicGuider": {"model": ["steer", 0], "conditioning": ["positive", 0]},
        "CFGGuider": links,
        "DualCFGGuider": {
            **{"model": ["steer", 0], "cond1": ["positive", 0], "cond2": ["negative", 0], "negative": ["negative", 0]},
            **{"cfg_conds": 5.0, "cfg_cond2_negative": 1.0, "style": "regular"},
        },
    }
    prompt |= {
        "noise": graphs.node("RandomNoise", noise_seed=3),
        "guider": graphs.node(guider, **inputs[guider]),
        "kind": graphs.node("KSamplerSelect", sampler_name="euler"),
        "sigmas": graphs.node("BasicScheduler", model=["world", 0], scheduler="normal", steps=STEPS, denoise=1.0),
        "latent": graphs.node(
            "SamplerCustomAdvanced",
            noise=["noise", 0],
            guider=["guider", 0],
            sampler=["kind", 0],
            sigmas=["sigmas", 0],
            latent_image=["size", 0],
        ),
    }
    require_steered(server, prompt)
    prompt |= found(["latent", 1])  # the sampler's last estimate, known as its latents are
    run(server, prompt)
    assert f'"{PHRASE}" => "{OTHER}": from step 3 of {STEPS} on' in server.saved("report")[0]


@pytest.mark.parametrize("way", WAYS)
def test_each_image_has_its_own_regions(server: host.Server, way: str) -> None:
    """Two pictures: the second as it would be alone in its batch, each with a mask of its own."""
    prompt = steered("a red star => a photo of a blue fish on grass\ngrass => sand", batch=3, way=way)
    before, after = both(server, prompt)
    masks = server.saved("masks")[0]
    found = masks.flatten(1).any(dim=1)
    assert found.any()
    assert not torch.equal(masks[0], masks[1])
    lines = server.saved("report")[0].splitlines()
    images = ", ".join(str(i + 1) for i, there in enumerate(found) if there)
    assert lines[-2].endswith(f"on, image {images}")
    assert (after[found] - before[found]).abs().mean() > 0.05


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["control net", "lora", "adapter", "captured", "compiled", "guidance"])
def test_beside_what_others_do_to_a_model(server: host.Server, kind: str, way: str) -> None:
    prompt = steered(f"{PHRASE} => {OTHER}", way=way)
    steered_model = ["steer", 0]
    if kind == "control net":
        hint = graphs.node("EmptyImage", width=128, height=128, batch_size=1, color=0x3060C0)
        links = {
            "positive": ["positive", 0],
            "negative": ["negative", 0],
            "control_net": ["net", 0],
            "image": ["hint", 0],
        }
        settings = {"strength": 0.2, "start_percent": 0.0, "end_percent": 1.0}
        prompt |= {"hint": hint, "net": graphs.node("ProbeControlNet", model=["world", 0])}
        prompt["applied"] = graphs.node("ControlNetApplyAdvanced", **links, **settings)
        prompt["latent"]["inputs"] |= {"positive": ["applied", 0], "negative": ["applied", 1]}
    elif kind == "captured":
        prompt["capture"] = graphs.node("LDZNetCapture", model=steered_model, head=["head", 0])
    elif kind == "adapter":
        prompt["other"] = graphs.node("ProbeAdapter", model=["world", 0])
        prompt["steer"]["inputs"]["model"] = ["other", 0]
    elif kind == "guidance":
        prompt["other"] = graphs.node("ProbeGuidance", model=["world", 0])
        prompt["steer"]["inputs"]["model"] = ["other", 0]
    else:
        probe = "ProbeBeside" if kind == "compiled" else "ProbeModel"
        prompt["other"] = graphs.node(probe, model=steered_model, kind=kind)
        prompt["latent"]["inputs"]["model"] = ["other", 0]
    if kind == "captured":
        prompt["latent"]["inputs"]["model"] = ["capture", 0]
    before, after = both(server, prompt)
    assert after.isfinite().all()
    report = server.saved("report")[0]
    if "not found" in report:
        assert torch.equal(after, before)
    else:
        assert (after - before).abs().mean() > 0.01
    assert kind not in ("captured", "compiled") or f"from step 3 of {STEPS} on" in report


def test_a_capture_beside_it_reads_the_prompt_alone(server: host.Server) -> None:
    """What cross-attention gives for regions' prompts is no part of what the prompt's own words drew."""
    prompt = steered(f"{PHRASE} => {OTHER}", after=100.0)
    prompt["attention"] = graphs.node("LDZNetLoadHead", head="attention (no download)")
    prompt["capture"] = graphs.node("LDZNetCapture", model=["steer", 0], head=["attention", 0])
    prompt["latent"]["inputs"]["model"] = ["capture", 0]
    links = {"latent": ["latent", 0], "capture": ["capture", 1], "clip": ["world", 1]}
    prompt["segment"] = graphs.node("LDZNetSegmentCaptured", **links, text="a red star", threshold=0.5)
    prompt |= {"save seen": graphs.save(["segment", 2], "seen"), "save said": graphs.save(["segment", 4], "said")}
    maps = []
    for after in (100.0, 25.0):
        prompt["steer"]["inputs"]["after"] = after
        run(server, prompt)
        assert 'read from the sampling itself: "a red star"' in server.saved("said")[0]
        maps.append(server.saved("seen")[0]["probabilities"])
    assert 0 < (maps[0] - maps[1]).abs().mean() < 0.2


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("way", WAYS)
def test_other_families(server: host.Server, family: str, way: str) -> None:
    """Small models of random weights, with the head that needs no file: up to the step bit-equal, then another run."""
    prompt = steered("a dog => a photo of a cat", head=None, way=way)
    prompt["family"] = graphs.node("ProbeFamily", family=family)
    for node in prompt.values():
        swapped = {
            name: ["family", link[1]] for name, link in node["inputs"].items() if link in (["world", 0], ["world", 1])
        }
        node["inputs"] |= swapped
    prompt["positive"]["inputs"]["text"] = "a photo of a dog on grass"
    before, after = both(server, prompt)
    assert "from step 3 of 8 on, image 1" in server.saved("report")[0]
    assert not torch.equal(after, before)
    assert after.isfinite().all()


def test_a_missing_phrase_ends_the_run(server: host.Server) -> None:
    """Of so many things the tiny head does not see all in one picture."""
    prompt, absent = steered(f"{PHRASE} => {OTHER}"), "a yellow cat\na green boat\na pink key\na white cup\na blue car"
    links = {"model": ["world", 0], "clip": ["world", 1], "head": ["head", 0], "text": absent, "after": 50.0}
    prompt = {**plain(prompt), "stop": graphs.node("LDZNetStop", **links, missing="end the run with an error")}
    run(server, {key: node for key, node in prompt.items() if key != "stop"})
    whole = server.saved("latents")[0]["samples"]
    prompt["latent"]["inputs"]["model"] = ["stop", 0]
    sentence = host.error_of(server.run(prompt))
    assert sentence is not None
    found = re.fullmatch(rf"Not found when 4 of {STEPS} steps were done: (.+)\. Take another seed, .*", sentence)
    assert found, sentence
    for part in found[1].split(", "):
        assert part.removesuffix(" in image 1").strip('"') in absent.splitlines()
    prompt["stop"]["inputs"]["missing"] = "keep what there is"
    run(server, prompt)
    kept = server.saved("latents")[0]["samples"]
    assert kept.isfinite().all()
    assert not torch.equal(kept, whole)
    prompt["stop"]["inputs"]["text"] = PHRASE
    run(server, prompt)
    assert torch.equal(server.saved("latents")[0]["samples"], whole)


def test_attention_cannot_tell_what_is_missing(server: host.Server) -> None:
    prompt = {"family": graphs.node("ProbeFamily", family="sd1"), **graphs.sampled()}
    links = {"model": ["family", 0], "clip": ["family", 1], "text": "a dog", "after": 50.0}
    prompt["stop"] = graphs.node("LDZNetStop", **links, missing="keep what there is")
    prompt["latent"]["inputs"]["model"] = ["stop", 0]
    prompt["save"] = graphs.save(["latent", 0], "latents")
    assert "Expected a head that tells what is absent" in (host.error_of(server.run(prompt)) or "")


def test_words_of_the_prompt_take_no_pass(server: host.Server) -> None:
    """Read from the sampler's own calls, the graph walked to its prompt; edited, the new words count."""
    prompt = steered(f"{PHRASE} => {OTHER}", head=None)
    run(server, prompt)
    assert server.saved("report")[0].endswith(f'read from the sampling itself: "{PHRASE}"')
    prompt["positive"]["inputs"]["text"] = "a photo of a red star on snow"
    run(server, prompt)
    assert "read from the sampling itself: no phrase" in server.saved("report")[0]
    prompt["steer"]["inputs"]["regions"] = f"snow => {OTHER}"
    run(server, prompt)
    assert server.saved("report")[0].endswith('read from the sampling itself: "snow"')
