"""The nodes in a real ComfyUI, through its API. Skipped, with the reason, where there is none."""

from __future__ import annotations

import re
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from comfyui import graphs, host, page, standin

from ldznet import Predictor, load_head
from ldznet.hosts.tiny import TinyHost

pytestmark = pytest.mark.host

ALL = sorted((host.ROOT / "workflows").glob("*.json"))
WORKFLOWS = [path for path in ALL if "LDZNetTinyWorld" in path.read_text(encoding="utf-8")]  # others need a checkpoint
SCALE = 0.18215
OPERATIONS_OFF = {"fill_holes": False, "drop_specks": 0, "grow": 0, "feather": 0}
CAPTIONS = [
    "",
    "a red star",
    "a photo of a red star on grass",
    "a cartoon of two things",
    "a striped pink boat and a striped purple house on grass",
    "a line drawing of a striped green heart, a white boat and a white heart on snow",
    "A Mosaic Of A Purple FLOWER",
    "zebra 42 ééé",
    "grass - the star",
    "water under sky, at night",
]


@pytest.fixture(scope="module")
def infos(server: host.Server) -> dict[str, Any]:
    """/object_info."""
    return server.get("/object_info")


@pytest.fixture(scope="module")
def tiny() -> TinyHost:
    """The core's own host of the same model."""
    return TinyHost.load()


def run(server: host.Server, prompt: graphs.Prompt) -> dict[str, Any]:
    """A prompt that must work."""
    entry = server.run(prompt)
    assert host.error_of(entry) is None, host.error_of(entry)
    return entry


def error(server: host.Server, prompt: graphs.Prompt) -> str:
    """The sentence of a prompt that must fail."""
    sentence = host.error_of(server.run(prompt))
    assert sentence is not None
    return sentence


def test_the_host_sees_what_the_stand_in_sees(infos: dict[str, Any], nodes: ModuleType) -> None:
    for node in nodes.working_nodes():
        expected = standin.object_info(node)
        found = infos[expected["name"]]
        for name in ("output", "output_name", "output_is_list", "output_tooltips"):
            assert found[name] == expected[name]
        for part in {*expected["input"], *found["input"]} - {"hidden"}:
            wanted, given = expected["input"].get(part, {}), found["input"].get(part, {})
            assert list(given) == list(wanted)
            for name, (kind, options) in wanted.items():
                assert given[name][0] == kind
                if name not in ("head", "sampler_name", "scheduler") or kind != "COMBO":
                    assert given[name][1] == options, (expected["name"], name)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_workflow_runs(server: host.Server, infos: dict[str, Any], path: Any) -> None:
    run(server, page.to_prompt(path, infos))


@pytest.mark.parametrize("path", [path for path in ALL if path not in WORKFLOWS], ids=lambda path: path.stem)
def test_those_for_a_checkpoint_run_on_a_small_one(server: host.Server, infos: dict[str, Any], path: Path) -> None:
    """A SD 1.x of random weights, with the tiny world's VAE; a picture of 128 x 128; the head that needs no file."""
    prompt = page.to_prompt(path, infos)
    small: dict[str, dict[str, Any]] = {
        "KSampler": {"steps": 2},
        "EmptyLatentImage": {"width": 128, "height": 128},
        "ImageScaleToTotalPixels": {"megapixels": 128 * 128 / 1024**2},
        "LDZNetLoadHead": {"head": "attention (no download)"},
    }
    (loader,) = (key for key, node in prompt.items() if node["class_type"] == "CheckpointLoaderSimple")
    for node in prompt.values():
        node["inputs"] |= small.get(node["class_type"], {})
        for name, link in node["inputs"].items():
            node["inputs"][name] = ["world", 2] if link == [loader, 2] else link
    prompt |= {loader: graphs.node("ProbeFamily", family="sd1"), "world": graphs.node("LDZNetTinyWorld")}
    run(server, prompt)


def test_inpainting_changes_nothing_outside_of_the_mask(server: host.Server, infos: dict[str, Any]) -> None:
    prompt = page.to_prompt(next(path for path in WORKFLOWS if path.stem == "2_inpaint_by_text"), infos)
    composite = next(node for node in prompt.values() if node["class_type"] == "ImageCompositeMasked")
    after = [next(key for key, node in prompt.items() if node is composite), 0]
    links = {name: composite["inputs"][name] for name in ("destination", "mask")}
    assert prompt[links["mask"][0]]["inputs"]["grow"] >= 8
    prompt |= {name: graphs.save(link, name) for name, link in {**links, "after": after}.items()}
    run(server, prompt)
    before, mask, after = (server.saved(name)[0] for name in ("destination", "mask", "after"))
    outside = mask == 0
    assert torch.equal(before[outside], after[outside])
    assert outside.all() or not torch.equal(before, after)


def test_contexts_are_those_of_the_tiny_host(server: host.Server, tiny: TinyHost) -> None:
    prompt = graphs.base()
    for i, caption in enumerate(CAPTIONS):
        prompt[f"c{i}"] = graphs.node("CLIPTextEncode", clip=["world", 1], text=caption)
        prompt[f"s{i}"] = graphs.save([f"c{i}", 0], f"context{i}")
    run(server, prompt)
    contexts = torch.cat([server.saved(f"context{i}")[0][0][0] for i in range(len(CAPTIONS))])
    assert (contexts - tiny.encode_text(CAPTIONS)).abs().max() < 1e-4


@pytest.mark.parametrize("text", ["a red star", "a red star\ngrass - a red star\nsnow"])
@pytest.mark.parametrize("batch", [1, 2])
def test_probabilities_are_the_core_s(server: host.Server, tiny: TinyHost, batch: int, text: str) -> None:
    phrases = text.splitlines()
    prompt = {**graphs.sampled(batch, 128, 192), "segment": graphs.segment(text)}
    names = ("mask", "masks", "segmentation", "found", "report")
    prompt |= {name: graphs.save(["segment", i], name) for i, name in enumerate(names)}
    prompt["latents"] = graphs.save(["latent", 0], "latents")
    run(server, prompt)
    predictor = Predictor(tiny, load_head("tiny"))
    predictor.set_latents(server.saved("latents")[0]["samples"] * SCALE)
    expected = predictor.predict(phrases)
    maps = server.saved("segmentation")[0]
    assert (maps["probabilities"] - expected.probabilities).abs().max() < 1e-3
    assert (maps["scores"] - expected.scores).abs().max() < 1e-3
    masks = server.saved("masks")
    assert [mask.shape for mask in masks] == [(batch, 128, 192)] * len(phrases)
    assert (torch.stack(masks, dim=1).bool() == expected.masks()).float().mean() > 0.999
    assert torch.equal(server.saved("mask")[0], torch.stack(masks).amax(0))
    assert server.saved("found") == [bool(expected.found.any())]
    assert len(server.saved("report")[0].splitlines()) == batch * len(phrases)


def test_a_new_threshold_runs_no_unet(server: host.Server) -> None:
    prompt = {**graphs.sampled(seed=5), "segment": graphs.segment("a fish")}
    prompt["show"] = graphs.save(["segment", 0], "mask")
    run(server, prompt)
    messages = host.Messages(server)
    prompt["segment"]["inputs"]["threshold"] = 0.4
    run(server, prompt)
    executed = [m["data"]["node"] for m in messages.until_done() if m["type"] == "executing" and m["data"]["node"]]
    messages.close()
    assert executed[0] == "segment"
    assert len(executed) == 3, executed  # the node, its cheap half, the probe


def test_nor_where_the_host_dropped_what_it_had_kept(server: host.Server) -> None:
    prompt = {**graphs.sampled(seed=6), "counted": graphs.node("ProbeModel", model=["world", 0], kind="counted")}
    prompt["picture"] = graphs.node("VAEDecode", samples=["latent", 0], vae=["world", 2])
    prompt["other"] = graphs.node("PreviewImage", images=["picture", 0])
    prompt["segment"] = graphs.segment("a fish", model=["counted", 0])
    prompt["state"] = graphs.node("ProbeState", model=["counted", 0], after=["segment", 0])
    prompt["show"] = graphs.save(["state", 0], "state")
    run(server, prompt)
    before = server.saved("state")
    prompt["segment"]["inputs"]["threshold"] = 0.4
    run(server, prompt)
    assert server.saved("state") == before
    prompt["segment"]["inputs"]["seed"] = 1
    run(server, prompt)
    assert server.saved("state") != before


@pytest.mark.parametrize(("height", "width"), [(133, 130), (128, 128), (200, 90)])
def test_masks_have_the_picture_s_size(server: host.Server, height: int, width: int) -> None:
    picture = graphs.node("EmptyImage", width=width, height=height, batch_size=2, color=0x808080)
    prompt = {**graphs.base(), "picture": picture}
    prompt["latent"] = graphs.node("VAEEncode", pixels=["picture", 0], vae=["world", 2])
    prompt["a"] = graphs.segment("grass", latent=None, image=["picture", 0], vae=["world", 2])
    prompt["b"] = graphs.segment("grass", image=["picture", 0])
    prompt["sa"], prompt["sb"] = graphs.save(["a", 0], "a"), graphs.save(["b", 0], "b")
    run(server, prompt)
    assert server.saved("a")[0].shape == server.saved("b")[0].shape == (2, height, width)


@pytest.mark.parametrize("mode", ["threshold", "soft"])
def test_a_photograph_is_the_frame_of_what_was_encoded_of_it(server: host.Server, mode: str) -> None:
    """203 x 301: VAE Encode leaves 200 x 296 from (1, 2) on, which Segment by Text gets as a latent alone."""
    prompt = {
        **graphs.base(),
        "picture": graphs.node("EmptyImage", width=301, height=203, batch_size=1, color=0x3060C0),
    }
    prompt["latent"] = graphs.node("VAEEncode", pixels=["picture", 0], vae=["world", 2])
    prompt["segment"] = graphs.segment("sky\nwater\nsand\nsnow")
    plain = {**OPERATIONS_OFF, "phrases": "", "mode": mode, "threshold": 0.3}
    link = {"segmentation": ["segment", 2], **plain}
    prompt["cut"] = graphs.node("LDZNetMask", **link, refine="none")
    prompt["framed"] = graphs.node("LDZNetMask", **link, refine="none", image=["picture", 0])
    prompt["refined"] = graphs.node("LDZNetMask", **link, refine="guided filter", image=["picture", 0], invert=True)
    prompt["overlay"] = graphs.node(
        "LDZNetPreview", segmentation=["segment", 2], threshold=0.3, opacity=0.6, image=["picture", 0]
    )
    names = ("cut", "framed", "refined", "overlay")
    prompt |= {f"save {name}": graphs.save([name, 0], name) for name in names}
    run(server, prompt)
    cut, framed, refined, overlay = (server.saved(name)[0] for name in names)
    assert cut.shape == (1, 200, 296)
    assert cut.any()
    assert framed.shape == refined.shape == (1, 203, 301)
    assert overlay.shape == (1, 203, 301, 3)
    assert torch.equal(framed[:, 1:201, 2:298], cut)
    prompt["other"] = graphs.node("EmptyImage", width=400, height=300, batch_size=1, color=0)
    prompt["framed"]["inputs"]["image"] = ["other", 0]
    assert re.search(r"of that aspect, got 300 x 400\..*\(socket: image\)", error(server, prompt))
    prompt["framed"]["inputs"]["image"] = ["picture", 0]
    prompt["segment"]["inputs"]["image"] = ["other", 0]
    assert re.search(r"of 200 x 296 .* got 300 x 400\..*\(socket: image\)", error(server, prompt))


def test_a_composite_by_a_soft_mask_is_the_picture_outside(server: host.Server) -> None:
    prompt = {**graphs.sampled(seed=3, steps=20), "segment": graphs.segment("a red star")}
    prompt["picture"] = graphs.node("VAEDecode", samples=["latent", 0], vae=["world", 2])
    prompt["other"] = graphs.node("EmptyImage", width=128, height=128, batch_size=1, color=0x00FFFF)
    settings = {**OPERATIONS_OFF, "phrases": "", "mode": "soft", "threshold": 0.5}
    prompt["mask"] = graphs.node("LDZNetMask", segmentation=["segment", 2], refine="none", **settings)
    places = {"destination": ["picture", 0], "source": ["other", 0], "mask": ["mask", 0]}
    prompt["composite"] = graphs.node("ImageCompositeMasked", **places, x=0, y=0, resize_source=False)
    names = ("picture", "mask", "composite")
    prompt |= {f"save {name}": graphs.save([name, 0], name) for name in names}
    run(server, prompt)
    before, mask, after = (server.saved(name)[0] for name in names)
    assert (mask == 0).float().mean() > 0.5
    assert (mask == 1).any()
    assert torch.equal(after[mask == 0], before[mask == 0])


def test_growing_a_large_mask_can_be_cancelled(server: host.Server) -> None:
    """And takes seconds, not minutes, where it is not."""
    prompt = {**graphs.sampled(8, seed=3), "segment": graphs.segment("a red star")}
    prompt["large"] = graphs.node("EmptyImage", width=2048, height=2048, batch_size=1, color=0)
    settings = {"phrases": "", "mode": "soft", "threshold": 0.5, "refine": "none", **OPERATIONS_OFF}
    place = {"segmentation": ["segment", 2], "image": ["large", 0]}
    prompt["mask"] = graphs.node("LDZNetMask", **{**place, **settings, "grow": 512, "feather": 512})
    prompt["save"] = graphs.save(["mask", 0], "mask")
    messages = host.Messages(server)
    posted = server.post("/prompt", {"prompt": prompt, "client_id": server.client})
    while messages.until("executing")[-1]["data"]["node"] != "mask":
        pass
    time.sleep(1)
    start = time.monotonic()
    server.post("/interrupt", {})
    entry = server.wait_for(posted["prompt_id"])
    messages.close()
    assert time.monotonic() - start < 6
    kinds = [kind for kind, _ in entry["status"]["messages"]]
    assert "execution_interrupted" in kinds


def test_text_is_read_from_the_last_layer_with_brackets_as_letters(server: host.Server) -> None:
    prompt = {**graphs.sampled(), "early": graphs.node("CLIPSetLastLayer", clip=["world", 1], stop_at_clip_layer=-2)}
    prompt["a"] = graphs.segment("a (red) star")
    prompt["b"] = graphs.segment("a (red) star", clip=["early", 0])
    prompt["sa"], prompt["sb"] = graphs.save(["a", 2], "a"), graphs.save(["b", 2], "b")
    run(server, prompt)
    a, b = server.saved("a")[0]["probabilities"], server.saved("b")[0]["probabilities"]
    assert torch.equal(a, b)


def probabilities(server: host.Server, kind: str | None) -> torch.Tensor:
    """Soft maps of the same latent under a changed model."""
    prompt = {**graphs.sampled(), "segment": graphs.segment("a red star")}
    if kind:
        prompt["changed"] = graphs.node("ProbeModel", model=["world", 0], kind=kind)
        prompt["segment"]["inputs"]["model"] = ["changed", 0]
    prompt["show"] = graphs.save(["segment", 2], "maps")
    run(server, prompt)
    return server.saved("maps")[0]["probabilities"]


def test_loras_count_and_foreign_patches_and_compilation_do_not(server: host.Server) -> None:
    plain = probabilities(server, None)
    assert torch.equal(probabilities(server, "attention"), plain)
    assert not torch.equal(probabilities(server, "lora"), plain)
    assert torch.equal(probabilities(server, None), plain)
    assert torch.equal(probabilities(server, "compiled"), plain)


@pytest.mark.parametrize("kind", ["inpainting", "v_prediction"])
def test_models_as_people_have_them(server: host.Server, kind: str) -> None:
    assert probabilities(server, kind).isfinite().all()


WIRING = {
    "SDXL": ({"model": ["sdxl", 0]}, r"a host of context width 64, .* got 2048 \(SDXL\)\. Load the model"),
    "nothing": ({"latent": None}, r"Expected a latent, or an image and a vae, got neither.*socket: latent"),
    "no vae": ({"latent": None, "image": ["picture", 0]}, r"Expected a vae with the image.*socket: vae"),
    "channels": ({"latent": ["sixteen", 0]}, r"Expected a latent of 4 channels.*got 16.*socket: latent"),
    "video": ({"latent": ["video", 0]}, r"b c h w, got \(1, 4, 3, 16, 16\): video.*socket: latent"),
    "NaN": ({"latent": ["nan", 0]}, r"Expected finite numbers.*socket: latent"),
    "batch": ({"image": ["three", 0]}, r"Expected one image, got 3.*socket: image"),
    "no text": ({"text": "\n# nothing\n"}, r"Expected at least one line, got none.*socket: text"),
    "half a phrase": ({"text": "a star - "}, r'Expected a phrase such as .*, got "a star -"\. .*\(socket: text\)'),
    "long text": ({"text": "red " * 80}, r"Expected at most 75 tokens, got 80.*socket: text"),
}


@pytest.mark.parametrize("wrong", WIRING)
def test_wrong_wiring_gives_one_sentence(server: host.Server, wrong: str) -> None:
    changes, sentence = WIRING[wrong]
    prompt = graphs.sampled()
    prompt["sdxl"] = graphs.node("ProbeModel", model=["world", 0], kind="sdxl")
    prompt["picture"] = graphs.node("EmptyImage", width=128, height=128, batch_size=1, color=0)
    prompt["three"] = graphs.node("EmptyImage", width=128, height=128, batch_size=3, color=0)
    prompt["sixteen"] = graphs.node("ProbeLatent", shape="1 16 16 16", fill=0.0)
    prompt["video"] = graphs.node("ProbeLatent", shape="1 4 3 16 16", fill=0.0)
    prompt["nan"] = graphs.node("ProbeLatent", shape="1 4 16 16", fill="nan")
    prompt |= {"segment": graphs.segment(**changes), "show": graphs.save(["segment", 0], "mask")}
    found = error(server, prompt)
    assert re.search(sentence, found), found
    assert "\n" not in found


def test_capture_changes_no_picture_and_leaves_no_hook(server: host.Server) -> None:
    plain, prompt = graphs.sampled(2, seed=8), graphs.captured(batch=2, seed=8)
    plain["show"] = graphs.save(["latent", 0], "plain")
    prompt["state"] = graphs.node("ProbeState", model=["world", 0], after=["segment", 0])
    values = {"latents": ["latent", 0], "maps": ["segment", 2], "report": ["segment", 4], "state": ["state", 0]}
    prompt |= {f"save {name}": graphs.save(link, name) for name, link in values.items()}
    run(server, plain)
    run(server, prompt)
    assert torch.equal(server.saved("plain")[0]["samples"], server.saved("latents")[0]["samples"])
    assert server.saved("maps")[0]["probabilities"].shape == (2, 2, 128, 128)
    assert server.saved("state")[0].endswith("0 hooks")


@pytest.mark.parametrize(
    "changes", [{"sampler_name": "heun"}, {"sampler_name": "uni_pc"}, {"cfg": 1.0, "sampler_name": "dpmpp_2m_sde"}]
)
def test_capture_with_any_sampler(server: host.Server, changes: dict[str, Any]) -> None:
    prompt = graphs.captured(**changes)
    prompt["show"] = graphs.save(["segment", 4], "report")
    run(server, prompt)
    *phrases, said = server.saved("report")[0].splitlines()
    assert said == f'the prompt: "{prompt["positive"]["inputs"]["text"]}"'
    assert [line.partition(":")[0] for line in phrases] == ['image 1, "a red star"', 'image 1, "grass"']


def test_a_capture_of_another_sampler_says_so(server: host.Server) -> None:
    prompt = graphs.captured(seed=9)
    prompt["second"] = graphs.sampler(["world", 0], ["latent", 0], denoise=0.5)
    prompt["segment"]["inputs"]["latent"] = ["second", 0]
    prompt |= {"show": graphs.save(["segment", 4], "report"), "first": graphs.save(["latent", 0], "latents")}
    run(server, prompt)
    assert "nothing was captured of this latent" in server.saved("report")[0]


def test_masks_labels_regions(server: host.Server) -> None:
    prompt = {**graphs.sampled(2), "segment": graphs.segment("a red star\ngrass")}
    prompt["picture"] = graphs.node("VAEDecode", samples=["latent", 0], vae=["world", 2])
    settings = {"phrases": "2", "mode": "threshold", "threshold": 0.5, "fill_holes": True, "drop_specks": 9}
    shape = {"grow": 3, "feather": 2, "image": ["picture", 0]}
    for refine in ("guided filter", "PAMR"):
        node = graphs.node("LDZNetMask", segmentation=["segment", 2], refine=refine, **settings, **shape)
        prompt |= {refine: node, f"save {refine}": graphs.save([refine, 0], refine)}
    prompt["labels"] = graphs.node("LDZNetLabelMap", segmentation=["segment", 2], background=0.3)
    for i, name in enumerate(("labels", "colours", "segs", "boxes", "legend")):
        prompt[f"save {name}"] = graphs.save(["labels", i], name)
    text = {"regions": "grass => sand", "background": "sky", "strength": 1.0, "threshold": 0.3, "grow": 0}
    prompt["regions"] = graphs.node("LDZNetRegionPrompts", segmentation=["segment", 2], clip=["world", 1], **text)
    prompt["again"] = graphs.sampler(["world", 0], ["latent", 0], positive=["regions", 0], denoise=0.5)
    prompt["save again"] = graphs.save(["again", 0], "again")
    run(server, prompt)
    assert server.saved("PAMR")[0].shape == (2, 128, 128)
    assert server.saved("colours")[0].shape == (2, 128, 128, 3)
    assert server.saved("legend")[0].startswith("#ff0000 a red star\n")
    assert len(server.saved("segs")) == len(server.saved("boxes")[0]) == 2


def test_nothing_went_wrong_in_the_log(server: host.Server) -> None:
    """Runs last in this file: only sentences of the wrong wirings above may stand there."""
    text = server.log.read_text()
    assert "the node" not in text
    for line in text.splitlines():
        assert not re.search(r"Missing VAE keys|clip missing|unet missing|Cannot import", line), line
