"""Region Prompts While Sampling and Stop If Missing over the stand-in: what is steered, when, and what stays."""

from __future__ import annotations

import importlib
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from comfyui import running, tinycomfy

PROMPT, OTHER = "a photo of a red star on grass", "a photo of a blue fish on sand"
SETTINGS = {"after": 50.0, "refresh": 0, "threshold": 0.5, "grow": 0}
CROSS, MASKED = "cross-attention", "masked conditionings"
SIZE = (8, 8)  # of latents


class Where:
    """In the place of what segments: two phrases, each found where the test says."""

    calibrated, additional = True, ()
    head = SimpleNamespace(reads_attention=False)

    def __init__(self, library: ModuleType, places: torch.Tensor) -> None:
        self.library, self.places, self.looks = library, places, []

    def __call__(self, guider: Any, run: Any) -> Any:
        self.looks.append(run.estimate.clone())
        size = (8 * SIZE[0], 8 * SIZE[1])
        scores = self.places.flatten(2).amax(dim=2)
        logits = torch.nn.functional.interpolate(self.places, size=size, mode="nearest") * 20 - 10
        return self.library.Segmentation(logits, ("a star", "grass"), size, scores)


@pytest.fixture(scope="module")
def world(nodes: ModuleType) -> dict[str, Any]:
    """MODEL and CLIP of the tiny world, and conditionings of two prompts and of none."""
    model, clip, _ = running.execute(nodes, "LDZNetTinyWorld")
    texts = {"prompt": PROMPT, "other": OTHER, "empty": ""}
    conds = {name: clip.encode_from_tokens_scheduled(clip.tokenize(text)) for name, text in texts.items()}
    return {"model": model, "clip": clip, **conds}


@pytest.fixture
def where(nodes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what will be found: places b p h w of 0 and 1."""
    library = importlib.import_module(f"{nodes.__name__.split('.')[0]}.ldznet.segmentation")
    module = importlib.import_module(f"{nodes.__name__}.steering")

    def found(places: torch.Tensor) -> Where:
        look = Where(library, places)
        monkeypatch.setattr(module, "_Looking", lambda *_: look)
        return look

    return found


def sample(model: Any, world: dict[str, Any], prompt: str = "prompt", batch: int = 1) -> torch.Tensor:
    """Four steps."""
    return tinycomfy.sample(model, world[prompt], world["empty"], torch.zeros(batch, 4, *SIZE), steps=4)


def steered(nodes: ModuleType, world: dict[str, Any], lines: str, **changes: Any) -> tuple[Any, Any]:
    """MODEL and steering."""
    links = {"model": world["model"], "clip": world["clip"]}
    return running.execute(nodes, "LDZNetSteer", **links, regions=lines, **{**SETTINGS, "way": CROSS, **changes})


def places(batch: int = 1) -> torch.Tensor:
    """A star in the left half of every picture, and no grass."""
    found = torch.zeros(batch, 2, *SIZE)
    found[:, 0, :, :4] = 1
    return found


@pytest.mark.parametrize("way", [CROSS, MASKED])
def test_a_region_s_prompt_enters_from_its_step_on_and_nowhere_else(
    nodes: ModuleType, world: dict[str, Any], where: Any, way: str
) -> None:
    """A region of the whole picture is what a run with that prompt from its step on would be."""
    whole = torch.ones(1, 2, *SIZE)
    look = where(whole)
    model, steering = steered(nodes, world, f"a star => {OTHER}", way=way)
    out = sample(model, world)
    assert len(look.looks) == 1
    calls: list[Any] = []
    late = world["model"].clone()

    def switched(executor: Any, x: Any, sigma: Any, *rest: Any) -> Any:
        guider = executor.class_obj
        if len(calls) == 2:
            guider.conds["positive"][0]["cross_attn"] = world["other"][0][0]
        calls.append(executor(x, sigma, *rest))
        return calls[-1]

    late.add_wrapper_with_key(tinycomfy.WRAPPED.PREDICT_NOISE, "test", switched)
    expected = sample(late, world)
    torch.testing.assert_close(out, expected, atol=2e-3, rtol=0)
    assert (out - sample(world["model"], world)).abs().mean() > 0.1
    assert torch.equal(look.looks[0], calls[1])  # the estimate of the second step, before the third
    assert steering.returned(out).looks == [2]


def regions_found(nodes: ModuleType, samples: torch.Tensor, steering: Any) -> Any:
    """What Regions Found gives of a sampler's result."""
    given = {"latent": {"samples": samples}, "steering": steering}
    return running.expand(nodes, "LDZNetSteered", given, latent=["latent", 0], steering=["steering", 0])


@pytest.mark.parametrize("way", [CROSS, MASKED])
def test_what_is_not_found_changes_no_bit(nodes: ModuleType, world: dict[str, Any], where: Any, way: str) -> None:
    look = where(places() * 0)
    model, steering = steered(nodes, world, f"a star => {OTHER}", way=way)
    out = sample(model, world)
    assert torch.equal(out, sample(world["model"], world))
    assert len(look.looks) == 1
    outputs = regions_found(nodes, out, steering)
    assert outputs[4].splitlines()[-1] == '"a star": not found after 2 of 4 steps, nothing is changed'
    assert not outputs[0].any()


@pytest.mark.parametrize("way", [CROSS, MASKED])
def test_each_image_has_its_own_regions(nodes: ModuleType, world: dict[str, Any], where: Any, way: str) -> None:
    found = places(2)
    found[0] = 0
    where(found)
    model, steering = steered(nodes, world, f"a star => {OTHER}\ngrass => {OTHER}", way=way)
    out, plain = sample(model, world, batch=2), sample(world["model"], world, batch=2)
    torch.testing.assert_close(out[0], plain[0], atol=1e-4, rtol=0)
    apart = (out[1] - plain[1]).abs().mean(dim=(0, 1))
    assert apart[:3].mean() > 2 * apart[5:].mean()
    assert steering.returned(out).areas[:, 0].amax(dim=(1, 2)).tolist() == [0, 1]
    outputs = regions_found(nodes, out, steering)
    assert f'"a star" => "{OTHER}": from step 3 of 4 on, image 2' in outputs[4].splitlines()
    assert outputs[1][0][1, :, :30].all()
    assert not outputs[1][0][1, :, 34:].any()


def test_a_lost_region_stays_where_it_was(nodes: ModuleType, world: dict[str, Any], where: Any) -> None:
    """What was painted over is no longer what its phrase names; what moves, moves."""
    look = where(places())
    model, steering = steered(nodes, world, f"a star => {OTHER}", after=25.0, refresh=1)
    seen = []

    def found(guider: Any, run: Any) -> Any:
        seen.append(run.step)
        if run.step == 2:
            look.places = look.places.roll(2, dims=3)
        if run.step == 3:
            look.places = look.places * 0
        return look(guider, run)

    steering.look = found
    out = sample(model, world)
    assert seen == [1, 2, 3]
    assert torch.equal(steering.returned(out).areas[:, 0], places().roll(2, dims=3)[:, 0])


def test_a_run_that_is_too_short_is_left_and_says_so(nodes: ModuleType, world: dict[str, Any], where: Any) -> None:
    look = where(places())
    model, steering = steered(nodes, world, f"a star => {OTHER}", after=100.0)
    out = sample(model, world)
    assert torch.equal(out, sample(world["model"], world))
    assert not look.looks
    values = {"latent": {"samples": out}, "steering": steering}
    report = running.expand(nodes, "LDZNetSteered", values, latent=["latent", 0], steering=["steering", 0])[4]
    assert report.endswith("no region: the run ended after 4 steps, and step 5 is the first with regions")
    values["latent"] = {"samples": out + 1}
    report = running.expand(nodes, "LDZNetSteered", values, latent=["latent", 0], steering=["steering", 0])[4]
    assert "nothing was steered of this latent" in report


def test_a_run_ends_where_something_is_missing(nodes: ModuleType, world: dict[str, Any], where: Any) -> None:
    look = where(places(2))
    links = {"model": world["model"], "clip": world["clip"], "text": "a star\ngrass", "after": 50.0}
    (model,) = running.execute(nodes, "LDZNetStop", **links, missing="end the run with an error")
    sentence = 'Not found when 2 of 4 steps were done: "grass" in image 1, "grass" in image 2.'
    with pytest.raises(ValueError, match=sentence):
        sample(model, world, batch=2)
    (model,) = running.execute(nodes, "LDZNetStop", **links, missing="keep what there is")
    kept = sample(model, world, batch=2)
    torch.testing.assert_close(kept * tinycomfy.SCALE, look.looks[-1], atol=1e-5, rtol=0)
    look.places = torch.ones(2, 2, *SIZE)
    assert torch.equal(sample(model, world, batch=2), sample(world["model"], world, batch=2))


def test_the_node_looks_with_its_head_and_encodes_no_text_in_the_run(
    nodes: ModuleType, world: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = running.execute(nodes, "LDZNetLoadHead", head="tiny (embedded)")[0]
    model, steering = steered(nodes, world, f"a red star => {OTHER}\ngrass => {OTHER}", head=tiny)
    assert model.additional == {"ldznet_steering": [tiny.patcher]}
    monkeypatch.setattr(type(world["clip"]), "encode_from_tokens", lambda *_, **__: 1 / 0)
    run = steering.returned(sample(model, world))
    assert run.found.phrases == ("a red star", "grass")
    assert run.found.scores.shape == (1, 2)


def test_attention_cannot_tell_what_is_missing(nodes: ModuleType, world: dict[str, Any], where: Any) -> None:
    where(places()).calibrated = False
    links = {"model": world["model"], "clip": world["clip"], "text": "a star", "after": 50.0}
    with pytest.raises(ValueError, match=r"Expected a head that tells what is absent.*\(socket: head\)"):
        running.execute(nodes, "LDZNetStop", **links, missing="keep what there is")


def test_words_of_the_prompt_are_read_from_the_sampler_s_own_calls(
    nodes: ModuleType, world: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the attention head: no pass for those, one for others, and one where the graph shows another prompt."""
    hosts = importlib.import_module(f"{nodes.__name__.split('.')[0]}.ldznet.hosts.comfyui_steering")
    passes: list[Any] = []
    observe = hosts.SamplingHost.observe
    monkeypatch.setattr(hosts.SamplingHost, "observe", lambda *parts: passes.append(parts) or observe(*parts))
    graph = {
        "3": {"inputs": {"clip": ["1", 1], "text": PROMPT}},
        "7": {"inputs": {"model": ["1", 0]}},
        "8": {"inputs": {"model": ["7", 0], "positive": ["3", 0]}},
    }
    monkeypatch.setattr(hosts, "running_prompt", lambda: graph)
    steer = next(node for node in nodes.working_nodes() if node.GET_SCHEMA().node_id == "LDZNetSteer")
    monkeypatch.setattr(steer.hidden, "unique_id", "7")
    model, steering = steered(nodes, world, f"a red star => {OTHER}", head=None)
    run = steering.returned(sample(model, world))
    assert run.notes == ['read from the sampling itself: "a red star"']
    assert not passes
    assert run.areas.any()
    assert not steering.words.capture.done
    graph["3"]["inputs"]["text"] = OTHER
    run = steering.returned(sample(model, world))
    assert run.notes == []
    assert passes
