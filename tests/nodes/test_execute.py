"""What nodes give, in values, over the stand-ins of ComfyUI: the library's own host says what is right."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from comfyui import running, tinycomfy

from ldznet import Predictor, Segmentation, load_head
from ldznet.checkpoints import save_head
from ldznet.hosts.tiny import TinyHost
from ldznet.models import CapturedTaps
from ldznet.tinyworld import scene

PHRASES = ["a purple cup", "snow - a purple cup", "a fish"]
SETTINGS = {"seed": 3, "ensemble": 1, "resolution": "head"}
TINY, ATTENTION = "tiny (embedded)", "attention (no download)"
NEEDED = ("model", "clip", "latent")  # links without which Segment by Text has nothing to do


@pytest.fixture(scope="module")
def tiny() -> TinyHost:
    """The library's own host of the same models."""
    return TinyHost.load()


@pytest.fixture(scope="module")
def world(nodes: ModuleType) -> dict[str, Any]:
    """The outputs of Tiny World, and the heads that need no file."""
    model, clip, vae = running.execute(nodes, "LDZNetTinyWorld")
    heads = {name: running.execute(nodes, "LDZNetLoadHead", head=name)[0] for name in (TINY, ATTENTION)}
    return {"model": model, "clip": clip, "vae": vae, **heads}


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    """An IMAGE of two scenes, the second with cups on snow."""
    return torch.stack([torch.from_numpy(scene(seed, "photo").image).float() / 255 for seed in (3, 900_004)])


@pytest.fixture(autouse=True)
def state() -> Iterator[SimpleNamespace]:
    """What the stand-in is told, forgotten afterwards."""
    yield tinycomfy.STATE
    tinycomfy.STATE.cancelled, tinycomfy.STATE.executing = False, None


def latents_of(world: dict[str, Any], image: torch.Tensor) -> torch.Tensor:
    """Before the scale factor, as VAE Encode gives them."""
    return world["vae"].encode(image)


def links(head: str = TINY, **more: str) -> dict[str, list[Any]]:
    """Linked inputs of a segmenting node, by input."""
    return {name: [source, 0] for name, source in {"model": "model", "clip": "clip", "head": head, **more}.items()}


def close(found: Any, expected: Segmentation, within: float = 1e-3) -> None:
    """A LDZNET_SEGMENTATION holds what the library predicts."""
    assert found.result.phrases == expected.phrases
    torch.testing.assert_close(found.probabilities(), expected.probabilities, atol=within, rtol=0)
    torch.testing.assert_close(found.result.scores, expected.scores, atol=within, rtol=0)
    assert torch.equal(found.result.found, expected.found)


def test_the_tiny_world_is_the_library_s(nodes: ModuleType, world: dict[str, Any], tiny: TinyHost) -> None:
    """Contexts, latents, pictures, noise and taps of the pack's host over ComfyUI's objects."""
    comfyui = importlib.import_module(f"{nodes.__name__.split('.')[0]}.ldznet.hosts.comfyui")
    host = comfyui.ComfyHost(world["model"], world["clip"], world["vae"])
    assert (host.family, host.context_dim, dict(host.specs)) == ("tiny", 64, dict(tiny.specs))
    texts = ["a (red) star", "a red star", "grass", ""]
    context = host.encode_text(texts)
    torch.testing.assert_close(context, tiny.encode_text(texts), atol=1e-5, rtol=0)
    pixels = torch.rand(2, 3, 64, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = host.encode_image(pixels)
    torch.testing.assert_close(latents, tiny.encode_image(pixels), atol=1e-5, rtol=0)
    torch.testing.assert_close(host.decode_latents(latents), tiny.decode_latents(latents), atol=1e-5, rtol=0)
    noise, steps = torch.randn(2, 4, 8, 5, generator=torch.Generator().manual_seed(1)), torch.tensor([200, 400])
    noised = host.add_noise(latents, noise, steps)
    a = tinycomfy.ALPHAS[steps].view(2, 1, 1, 1).float()
    torch.testing.assert_close(noised, tiny.add_noise(latents, noise, steps) / a.sqrt(), atol=1e-4, rtol=0)
    taps = host.extract(noised, steps, context[:2], list(host.specs))
    expected = tiny.extract(tiny.add_noise(latents, noise, steps), steps, context[:2], list(tiny.specs))
    for block in host.specs:
        torch.testing.assert_close(taps[block], expected[block], atol=1e-3, rtol=0)


@pytest.mark.parametrize("head", [TINY, ATTENTION])
def test_segment_by_text_expands_and_gives_the_library_s_masks(
    nodes: ModuleType, world: dict[str, Any], tiny: TinyHost, image: torch.Tensor, head: str
) -> None:
    values = {**world, "latent": {"samples": latents_of(world, image)}}
    text = "\n".join(PHRASES)
    given = {**links(head, latent="latent"), "text": text, "threshold": 0.3, **SETTINGS}
    mask, masks, segmentation, found, report = running.expand(nodes, "LDZNetSegment", values, **given)
    predictor = Predictor(tiny, load_head("tiny" if head == TINY else "attention"), seed=3)
    predictor.set_latents(values["latent"]["samples"] * tinycomfy.SCALE)
    expected = predictor.predict(PHRASES)
    close(segmentation, expected)
    assert segmentation.threshold == 0.3
    hard = expected.masks(0.3).float()
    assert [part.shape for part in masks] == [(2, 128, 128)] * 3
    assert (torch.stack(masks, dim=1) == hard).float().mean() > 0.999
    assert torch.equal(mask, torch.stack(masks).amax(0))
    assert found is bool(expected.found.any()) is True
    lines = report.splitlines()
    assert len(lines) >= 6
    area = 100 * float(masks[0][1].mean())
    assert area > 1
    assert lines[3].startswith(f'image 2, "a purple cup": found, {area:.1f} %')
    assert f"{float(expected.scores[1, 0]):.2f}" in lines[3]


def test_segment_by_text_hands_links_on_as_links(nodes: ModuleType) -> None:
    inputs = {**links(latent="latent", image="image"), "vae": ["vae", 0]}
    outer = running.execute(nodes, "LDZNetSegment", **inputs, text="grass\nsky - star", threshold=0.25, **SETTINGS)
    features, masks = outer.expand.values()
    wanted = {**links(latent="latent", image="image"), "text": "grass\nsky - star", **SETTINGS}
    assert features == {"class_type": "LDZNetInnerSegment", "inputs": wanted}  # with a latent, the VAE is not asked for
    assert masks["class_type"] == "LDZNetInnerMasks"
    assert masks["inputs"] == {"segmentation": [next(iter(outer.expand)), 0], "threshold": 0.25}
    for missing in ({"image": ["image", 0]}, {"vae": ["vae", 0]}, {}):
        with pytest.raises(ValueError, match=r"Expected .*, got n.*socket: (latent|vae)"):
            running.execute(nodes, "LDZNetSegment", **links(), **missing, text="grass", threshold=0.5, **SETTINGS)


def test_without_a_head_the_attention_is_read(nodes: ModuleType, world: dict[str, Any], image: torch.Tensor) -> None:
    """Nothing to load; and what was found is remembered with the MODEL, not with what the node expanded to."""
    values = {**world, "latent": {"samples": latents_of(world, image)}}
    given = {"text": "\n".join(PHRASES), "threshold": 0.5, **SETTINGS}
    with_one, without = (
        running.expand(nodes, "LDZNetSegment", values, **linked, **given)[2]
        for linked in (links(ATTENTION, latent="latent"), {key: links(latent="latent")[key] for key in NEEDED})
    )
    assert torch.equal(without.result.logits, with_one.result.logits)
    linked = {key: links(latent="latent")[key] for key in NEEDED}
    again = running.expand(nodes, "LDZNetSegment", values, **linked, **{**given, "threshold": 0.2})[2]
    assert again.result is without.result


@pytest.mark.parametrize("source", ["latent", "image"])
def test_segment_by_text_shows_what_it_found(
    nodes: ModuleType, world: dict[str, Any], image: torch.Tensor, source: str
) -> None:
    """The picture, or the latent's colours, below the masks; the legend in the page and as text."""
    values = {**world, "latent": {"samples": latents_of(world, image)}, "image": image}
    linked = links(**{source: source}) if source == "latent" else links(image="image", vae="vae")
    outer = running.execute(nodes, "LDZNetSegment", **linked, text="snow", threshold=0.5, **SETTINGS)
    features, masks = outer.expand.values()
    made = {name: values[link[0]] for name, link in features["inputs"].items() if isinstance(link, list)}
    found = running.execute(nodes, "LDZNetInnerSegment", **{**features["inputs"], **made})[0]
    shown = running.execute(nodes, masks["class_type"], segmentation=[found], threshold=[0.5]).ui
    assert shown["text"][1].startswith("snow: found, ")
    below = found.pictures()
    limit = 0.01 if source == "image" else 0.12  # a linear map of four channels is no decoder
    assert (below - image.movedim(-1, 1)).abs().mean() < limit
    page = shown["images"][1][:256, :256].movedim(-1, 0)[:, ::2, ::2]  # enlarged twice
    outside = found.masks(0.5)[1, 0].bool().logical_not()
    outside[1:] &= outside[:-1].clone()
    changed = ((page - below[1]).abs().amax(0) > 0.02)[outside].float().mean()
    assert changed < 0.2  # the outline alone
    assert (page - below[1]).abs().amax(0)[~outside].mean() > 0.1


def test_the_report_says_how_phrases_were_read(nodes: ModuleType, world: dict[str, Any], image: torch.Tensor) -> None:
    """Weights and points change no mask; the inverse is the inverse; what is not known is named."""
    values = {**world, "latent": {"samples": latents_of(world, image)}}
    lines = ["snow", "(snow:1.3).", "everything - snow", "background", "a zebra"]
    given = {**links(latent="latent"), "text": "\n".join(lines), "threshold": 0.5, **SETTINGS}
    _, masks, segmentation, _, report = running.expand(nodes, "LDZNetSegment", values, **given)
    assert segmentation.result.phrases == tuple(lines)
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[2], 1 - masks[0])
    assert 0.1 < float(masks[0].mean()) < 0.9
    assert report.splitlines()[-2:] == [
        '"(snow:1.3)." is read as "snow" (weights do nothing here)',
        '"zebra": no word of this model, which knows few, so a mask of it means nothing',
    ]


def segmented(nodes: ModuleType, world: dict[str, Any], text: str = "\n".join(PHRASES), **changes: Any) -> Any:
    """The output segmentation of the dear half of Segment by Text."""
    given = {"model": world["model"], "clip": world["clip"], "head": world[TINY], "text": text, **SETTINGS}
    return running.execute(nodes, "LDZNetInnerSegment", **{**given, **changes})[0]


def test_an_image_s_pixels_reach_the_vae_as_they_are(
    nodes: ModuleType, world: dict[str, Any], tiny: TinyHost, image: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, encode = [], world["vae"].encode
    monkeypatch.setattr(world["vae"], "encode", lambda given: seen.append(given) or encode(given))
    found = segmented(nodes, world, image=image, vae=world["vae"])
    torch.testing.assert_close(seen[0], image, atol=1e-6, rtol=0)
    assert len(seen) == 1
    predictor = Predictor(tiny, load_head("tiny"), seed=3)
    predictor.set_image(image.movedim(-1, 1) * 2 - 1)
    close(found, predictor.predict(PHRASES))
    assert found.size == (128, 128)


def test_settings_reach_the_predictor(
    nodes: ModuleType, world: dict[str, Any], tiny: TinyHost, image: torch.Tensor
) -> None:
    samples = latents_of(world, image[:, :, :96])  # 128 x 96
    changes = {"seed": 5, "ensemble": 2, "resolution": "native"}
    found = segmented(nodes, world, latent={"samples": samples}, **changes)
    predictor = Predictor(tiny, load_head("tiny"), **changes)
    predictor.set_latents(samples * tinycomfy.SCALE)
    close(found, predictor.predict(PHRASES))
    assert not torch.allclose(
        found.result.logits[..., :96, :96],
        segmented(nodes, world, latent={"samples": samples}).result.logits[..., :96, :96],
        atol=0.05,
    )


def test_the_same_objects_are_segmented_once(nodes: ModuleType, world: dict[str, Any], image: torch.Tensor) -> None:
    latent = {"samples": latents_of(world, image)}
    first = segmented(nodes, world, latent=latent)
    assert segmented(nodes, world, latent=latent) is first
    assert segmented(nodes, world, latent=latent, seed=4) is not first
    assert segmented(nodes, world, latent=latent, text="a fish") is not first
    assert segmented(nodes, world, latent={"samples": latent["samples"].clone()}) is not first


def test_progress_is_shown_and_the_user_can_cancel(
    nodes: ModuleType, world: dict[str, Any], image: torch.Tensor, state: SimpleNamespace
) -> None:
    latent = {"samples": latents_of(world, image)}
    tinycomfy.ProgressBar.told.clear()
    segmented(nodes, world, latent=latent, seed=77)
    assert tinycomfy.ProgressBar.told[-1] == (6, 6)  # two pictures, three terms
    state.cancelled = True
    with pytest.raises(tinycomfy.Interrupted):
        segmented(nodes, world, latent=latent, seed=78)


def test_a_list_of_pictures_is_no_batch(nodes: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"Expected one batch, got a list of 2.*socket: latent or image"):
        running.execute(nodes, "LDZNetInnerMasks", segmentation=[None, None], threshold=[0.5, 0.5])


def test_heads_from_files(
    nodes: ModuleType, world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import folder_paths

    load, znet = running.execute, load_head("tiny-znet")
    wrong = importlib.import_module(f"{nodes.__name__.split('.')[0]}.ldznet.errors").CheckpointError
    save_head(znet, tmp_path / "mine.safetensors", {})
    (tmp_path / "no.safetensors").write_bytes(b"nothing")
    monkeypatch.setattr(folder_paths, "get_full_path", lambda folder, name: _path(tmp_path, folder, name))
    head = load(nodes, "LDZNetLoadHead", head="mine.safetensors")[0]
    assert head.name == "mine.safetensors"
    assert head.config.network == "znet"
    stored = head.patcher.model.state_dict()
    assert all(torch.equal(stored[name], weight) for name, weight in znet.state_dict().items())
    assert world[TINY].config.network == "ldznet"
    with pytest.raises(wrong, match=r"^[^\n]*Expected a checkpoint in no.safetensors[^\n]*\(socket: head\)$"):
        load(nodes, "LDZNetLoadHead", head="no.safetensors")
    with pytest.raises(wrong, match=r"Expected gone.safetensors in models/ldznet, found none.*socket: head"):
        load(nodes, "LDZNetLoadHead", head="gone.safetensors")
    node = nodes.working_nodes()[0]
    assert node.validate_inputs("mine.safetensors") is True
    assert "gone.safetensors in models/ldznet" in node.validate_inputs("gone.safetensors")
    before = node.fingerprint_inputs("mine.safetensors")
    assert node.fingerprint_inputs("mine.safetensors") == before
    os.utime(tmp_path / "mine.safetensors", (1, 1))
    assert node.fingerprint_inputs("mine.safetensors") != before
    assert node.fingerprint_inputs(TINY) == TINY


def _path(root: Path, folder: str, name: str) -> str | None:
    assert folder == "ldznet"
    return str(root / name) if (root / name).exists() else None


def encoded(world: dict[str, Any], text: str) -> list[Any]:
    """CONDITIONING, as CLIP Text Encode gives it."""
    return world["clip"].encode_from_tokens_scheduled(world["clip"].tokenize(text))


def sampled(nodes: ModuleType, world: dict[str, Any], head: str, prompt: str) -> tuple[Any, Any, Any]:
    """Latents from a sampler with a captured model, the capture, and the latents without one."""
    model, capture = running.execute(nodes, "LDZNetCapture", model=world["model"], head=world[head])
    run = {"positive": encoded(world, prompt), "negative": encoded(world, ""), "latent": torch.zeros(2, 4, 16, 16)}
    return {"samples": tinycomfy.sample(model, **run)}, capture, tinycomfy.sample(world["model"], **run)


def test_captured_taps_are_those_of_extract(
    nodes: ModuleType, world: dict[str, Any], tiny: TinyHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the step nearest the head's t, of the positive conditioning alone; and no picture changes."""
    calls, apply = [], world["model"].model.apply_model
    monkeypatch.setattr(
        world["model"].model, "apply_model", lambda x, s, c, *rest: calls.append((x, s, c)) or apply(x, s, c, *rest)
    )
    prompt = "a photo of a purple cup on snow"
    latent, capture, plain = sampled(nodes, world, TINY, prompt)
    assert torch.equal(latent["samples"], plain)
    sampling = world["model"].model.model_sampling
    x, sigma, _ = min(calls[:6], key=lambda call: abs(int(sampling.timestep(call[1])[0]) - 200))
    t = int(sampling.timestep(sigma)[0])
    assert t == 200  # of 999, 799, 599, 400, 200, 0
    context = tiny.encode_text([prompt]).expand(2, -1, -1)
    blocks = list(load_head("tiny").head_config.tap_specs)
    scaled = x[:2] / (sigma[:2].view(2, 1, 1, 1) ** 2 + 1).sqrt()
    expected = tiny.extract(scaled, torch.full((2,), t), context, blocks)
    taps = capture.returned(latent["samples"])[0].taps()
    assert list(taps) == blocks
    for block in blocks:
        torch.testing.assert_close(taps[block], expected[block], atol=1e-3, rtol=0)
    values = {**world, "latent": latent, "capture": capture}
    given = {name: [source, 0] for name, source in (("latent", "latent"), ("capture", "capture"), ("clip", "clip"))}
    outputs = running.expand(
        nodes, "LDZNetSegmentCaptured", values, **given, head=[TINY, 0], text="\n".join(PHRASES), threshold=0.5
    )
    predictor = Predictor(tiny, load_head("tiny"))
    predictor.set_latents(latent["samples"] * tinycomfy.SCALE, captured=CapturedTaps(expected))
    result = predictor.predict(PHRASES)
    close(outputs[2], result)
    assert result.found[:, 0].all()
    assert torch.equal(outputs[0], torch.stack(outputs[1]).amax(0))


def test_captured_attention_is_that_of_the_prompt(nodes: ModuleType, world: dict[str, Any], tiny: TinyHost) -> None:
    """Words of the prompt are read from the sampling; where there is no prompt, all take a pass of their own."""
    prompt = "a photo of a purple cup on snow"
    latent, capture, plain = sampled(nodes, world, ATTENTION, prompt)
    assert torch.equal(latent["samples"], plain)
    values = {**world, "latent": latent, "capture": capture}
    given = {name: [name, 0] for name in ("latent", "capture", "clip")}

    def masks(prompt: str | None) -> tuple[Any, str]:
        more = {} if prompt is None else {"prompt": prompt}
        inputs = {**given, "head": [ATTENTION, 0], "text": "a purple cup\na fish", "threshold": 0.5, **more}
        outputs = running.expand(nodes, "LDZNetSegmentCaptured", values, **inputs)
        return outputs[2], outputs[4]

    predictor = Predictor(tiny, load_head("attention"))
    predictor.set_latents(latent["samples"] * tinycomfy.SCALE)
    own = predictor.predict(["a purple cup", "a fish"])
    found, report = masks(None)
    assert "the prompt was not found in the graph" in report
    close(found, own)
    read, report = masks(prompt)
    assert 'read from the sampling itself: "a purple cup"' in report
    alone = predictor.predict(["a fish"])
    torch.testing.assert_close(read.result.logits[:, 1:], alone.logits, atol=1e-3, rtol=0)
    assert (read.result.logits[:, 0] - own.logits[:, 0]).abs().max() > 0.1
    assert read.result.scores[:, 0].tolist() == [1, 1]
    assert "not the text that was sampled with" in masks("a photo of a purple cup on sand")[1]
