"""Wrong head files through Load LD-ZNet Head in a real ComfyUI: one sentence each, and the server goes on."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import making
from comfyui import graphs, host

from ldznet import Predictor
from ldznet.checkpoints import save_head, save_tensors
from ldznet.checkpoints.load import EMBEDDED
from ldznet.config import HeadConfig, UNetConfig
from ldznet.hosts.tiny import TinyHost
from ldznet.models import build_head
from ldznet.train.tiers import TIERS, tier_config

pytestmark = pytest.mark.host

PIXELS = HeadConfig(
    network="rgbnet",
    unet=UNetConfig(**{**making.NARROW, "context_dim": 64, "in_channels": 3, "out_channels": 1}),
    latent_grid=(16, 16),
)
SCALE = 0.18215
SD1 = {
    "model.diffusion_model.input_blocks.0.0.weight": (32, 4, 3, 3),
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (32, 768),
    "first_stage_model.encoder.conv_in.weight": (8, 3, 3, 3),
    "cond_stage_model.transformer.text_model.final_layer_norm.bias": (768,),
}
LORA = {f"lora_unet_mid_block_attentions_0_proj_in.lora_{way}.weight": (4, 4) for way in ("up", "down")}


def truncated(path: Path) -> None:
    path.write_bytes(EMBEDDED["tiny"].read_bytes()[:100_000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def noise(path: Path) -> None:
    path.write_bytes(bytes((37 * i * i + 11) % 251 for i in range(4096)))


def pickled(path: Path) -> None:
    """A .ckpt that was given another name."""
    stream = io.BytesIO()
    torch.save({"state_dict": {"a": torch.zeros(3)}}, stream)
    path.write_bytes(stream.getvalue())


def tensors(shapes: dict[str, tuple[int, ...]]) -> Callable[[Path], None]:
    return lambda path: save_tensors({name: torch.zeros(shape) for name, shape in shapes.items()}, path, {})


def head(config: HeadConfig) -> Callable[[Path], None]:
    return lambda path: save_head(build_head(config), path, {})


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {  # what writes the file, and what the node says
    "truncated": (truncated, r"Expected a whole safetensors file, got .*cut short.*Download it again.*socket: head"),
    "noise": (noise, r"Expected a checkpoint in noise.safetensors, got neither.*Download it again.*socket: head"),
    "empty": (empty, r"got an empty file. Download it again.*socket: head"),
    "pickle": (pickled, r"Expected a .safetensors file, got .*a .ckpt.*Convert it first.*socket: head"),
    "sd": (tensors(SD1), r"got a file that seems to be a Stable Diffusion 1.x model.* right file.*socket: head"),
    "lora": (tensors(LORA), r"got a file that seems to be a LoRA.* right file.*socket: head"),
    "part": (tensors({"out.0.weight": (64,)}), r"Expected the \d+ tensors of an LD-ZNet head in .*socket: head"),
    "other unet": (head(making.SMALL), r"Expected a host of context width 16.*got 64.*another head.*socket: head"),
    "rgbnet": (head(PIXELS), r"Expected a head that reads latents, got one \(RGBNet\) that reads pixels.*socket: head"),
}


def written(server: host.Server, kind: str) -> str:
    """The name of a file that is now in the server's models/ldznet."""
    folder = server.base / "models" / "ldznet"
    folder.mkdir(exist_ok=True)
    WRONG[kind][0](folder / f"{kind}.safetensors")
    return f"{kind}.safetensors"


def by_text(name: str) -> graphs.Prompt:
    """Segment by Text with the head `name`."""
    prompt = {**graphs.sampled(steps=2), "segment": graphs.segment()}
    prompt["head"]["inputs"]["head"] = name
    return {**prompt, "show": graphs.save(["segment", 0], "mask")}


def while_sampling(name: str) -> graphs.Prompt:
    """Capture While Sampling with the head `name`."""
    prompt = {**graphs.captured(steps=2), "show": graphs.save(["segment", 0], "mask")}
    prompt["head"]["inputs"]["head"] = name
    return prompt


def require_well(server: host.Server) -> None:
    """The server still makes masks."""
    failed = host.error_of(server.run(by_text("tiny (embedded)")))
    assert failed is None, failed
    assert server.saved("mask")[0].shape == (1, 128, 128)


@pytest.mark.parametrize("graph", [by_text, while_sampling])
@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_head_gives_one_sentence(server: host.Server, kind: str, graph: Callable[[str], graphs.Prompt]) -> None:
    failed = host.error_of(server.run(graph(written(server, kind))))
    assert failed is not None
    assert re.search(WRONG[kind][1], failed), failed
    assert "\n" not in failed
    require_well(server)


@pytest.mark.parametrize("tier", TIERS)
def test_a_head_trained_elsewhere_gives_the_same_masks(server: host.Server, tier: str) -> None:
    """As the library's own on the same latents; the UNet has no hook afterwards, and samples the same picture."""
    own = TinyHost.load()
    head = build_head(tier_config(tier, "tiny", own.models.unet.config, 128, rank=4))
    generator = torch.Generator().manual_seed(0)
    for parameter in head.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.05
    folder, name = server.base / "models" / "ldznet", f"{tier}.safetensors"
    folder.mkdir(exist_ok=True)
    save_head(head, folder / name, {}, torch.float32)
    prompt = by_text(name)
    prompt["state"] = graphs.node("ProbeState", model=["world", 0], after=["segment", 0])
    prompt |= {"maps": graphs.save(["segment", 2], "maps"), "state of it": graphs.save(["state", 0], "state")}
    prompt["latents"] = graphs.save(["latent", 0], "latents")
    failed = host.error_of(server.run(prompt))
    assert failed is None, failed
    predictor = Predictor(own, head.eval())
    predictor.set_latents(server.saved("latents")[0]["samples"] * SCALE)
    expected, found = predictor.predict(["a red star", "grass"]), server.saved("maps")[0]
    assert (found["probabilities"] - expected.probabilities).abs().max() < 1e-3
    assert expected.probabilities.std() > 0.01
    assert server.saved("state")[0].endswith(" 0 hooks")
    again = {**graphs.sampled(steps=2), "latents": graphs.save(["latent", 0], "again")}
    assert host.error_of(server.run(again)) is None
    assert torch.equal(server.saved("again")[0]["samples"], server.saved("latents")[0]["samples"])


def test_a_missing_head_is_named_before_anything_runs(server: host.Server) -> None:
    answer: dict[str, Any] = server.post("/prompt", {"prompt": by_text("gone.safetensors"), "client_id": server.client})
    assert "prompt_id" not in answer
    (error,) = answer["node_errors"]["head"]["errors"]
    expected = r"Expected gone.safetensors in models/ldznet, found none\. Put it there, or choose another head\."
    assert re.search(expected, error["details"]), error
    assert error["extra_info"]["input_name"] == "head"
    require_well(server)


def test_a_wrong_head_that_was_replaced_is_loaded_again(server: host.Server) -> None:
    name = written(server, "truncated")
    assert host.error_of(server.run(by_text(name))) is not None
    (server.base / "models" / "ldznet" / name).write_bytes(EMBEDDED["tiny"].read_bytes())
    failed = host.error_of(server.run(by_text(name)))
    assert failed is None, failed


def test_a_head_that_reads_pixels_takes_an_image(server: host.Server) -> None:
    prompt = by_text(written(server, "rgbnet"))
    prompt["picture"] = graphs.node("EmptyImage", width=128, height=128, batch_size=1, color=0x808080)
    prompt["segment"] = graphs.segment(latent=None, image=["picture", 0], vae=["world", 2])
    failed = host.error_of(server.run(prompt))
    assert failed is None, failed
    assert server.saved("mask")[0].shape == (1, 128, 128)
