"""The tables: every format carries a whole head, every deviation is listed, wrong files are called by their name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ldznet.checkpoints.formats import FORMATS, KINDS, TensorInfo, ema_key, listing, match, seems_to_be
from ldznet.errors import CheckpointError

KEYS = Path(__file__).parents[1] / "golden" / "ldznet_full_head_keys.json"
FULL = {name: TensorInfo(torch.float32, tuple(shape)) for name, shape in json.loads(KEYS.read_text()).items()}


def in_format(form: str) -> dict[str, TensorInfo]:
    return {FORMATS[form].key(name): info for name, info in FULL.items()}


def test_averaged_names_lose_every_dot() -> None:
    name = "input_blocks.8.1.transformer_blocks.0.attn3.to_q.weight"
    assert ema_key(name) == "model_ema.diffusion_modelinput_blocks81transformer_blocks0attn3to_qweight"


@pytest.mark.parametrize("form", FORMATS)
def test_every_source_key_is_used_and_every_target_key_filled(form: str) -> None:
    found = in_format(form)
    result = match(found, FULL, "file", "a head")
    assert result.format is FORMATS[form]
    assert len(found) == 760
    assert list(result.keys) == list(FULL)
    assert set(result.keys.values()) == set(found)
    assert result.ignored == []


def test_the_average_is_preferred_and_known_extras_are_left_behind() -> None:
    extras = ["first_stage_model.a", "cond_stage_model.b", "sd_features_stage_model.c", "betas", "model_ema.decay"]
    found = {**dict.fromkeys(extras, TensorInfo(torch.float32, ())), **in_format("lightning"), **in_format("ema")}
    result = match(found, FULL, "file", "a head")
    assert result.format is FORMATS["ema"]
    assert result.ignored == extras + list(in_format("lightning"))


@pytest.mark.parametrize("form", FORMATS)
def test_all_deviations_are_listed_at_once(form: str) -> None:
    key = FORMATS[form].key
    found = in_format(form)
    del found[key("final.0.bias")], found[key("time_embed.0.bias")]
    found[key("out.2.weight")] = TensorInfo(torch.float32, (4, 320, 3, 3))
    found[key("out.2.bias")] = TensorInfo(torch.int16, (1,))
    found["betas_of_another"] = found["a.stranger"] = TensorInfo(torch.float32, (1,))
    with pytest.raises(CheckpointError) as error:
        match(found, FULL, "file.ckpt", "a head")
    first, missing, unexpected, wrong = str(error.value).splitlines()
    assert "760 tensors of a head in file.ckpt" in first
    assert "an LD-ZNet" in first
    assert missing == f"  missing (2): {key('time_embed.0.bias')}, {key('final.0.bias')}"
    assert unexpected == "  unexpected (2): betas_of_another, a.stranger"
    assert wrong.startswith("  wrong shape (2): ")
    assert f"{key('out.2.weight')} (expected 1x320x3x3 float32, got 4x320x3x3 float32)" in wrong
    assert f"{key('out.2.bias')} (expected 1 float32, got 1 int16)" in wrong


def test_an_average_with_gaps_is_not_filled_from_the_other_weights() -> None:
    found = {**in_format("lightning"), **in_format("ema")}
    del found[ema_key("final.0.bias")]
    with pytest.raises(CheckpointError, match=r"missing \(1\): model_ema\.diffusion_modelfinal0bias$"):
        match(found, FULL, "file", "a head")


def test_long_lists_are_cut() -> None:
    assert listing([str(i) for i in range(22)]).endswith("18, 19 and 2 more")
    assert listing(["a", "b"]) == "a, b"


def test_schedule_buffers_are_known_by_their_whole_name() -> None:
    found = {**in_format("lightning"), "betas2": TensorInfo(torch.float32, (1000,))}
    with pytest.raises(CheckpointError, match=r"unexpected \(1\): betas2$"):
        match(found, FULL, "file", "a head")


ATTN2 = "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
FILES = {  # a few names of real files of each kind
    "a Stable Diffusion 1.x model": ["cond_stage_model.transformer.text_model.x", "model.diffusion_model.out.2.bias"],
    "a Stable Diffusion 2.x model": ["cond_stage_model.model.ln_final.weight", "model.diffusion_model.out.2.bias"],
    "a Stable Diffusion XL model": ["conditioner.embedders.0.transformer.x", "model.diffusion_model.out.2.bias"],
    "a Stable Diffusion UNet": ["model.diffusion_model.input_blocks.0.0.weight"],
    "a LoRA": ["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "lora_te_text_model_x.alpha"],
    "a ControlNet": ["controlnet_cond_embedding.conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"],
    "an IP-Adapter": ["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"],
    "a diffusers UNet": ["conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"],
    "a Flux, SD3 or other transformer model": ["double_blocks.0.img_attn.qkv.weight"],
    "a VAE": ["encoder.conv_in.weight", "decoder.up.0.block.0.conv1.weight"],
    "a text encoder": ["text_model.encoder.layers.0.mlp.fc1.weight", "text_model.embeddings.position_ids"],
    "a CLIP image encoder": ["vision_model.encoder.layers.0.mlp.fc1.weight"],
    "a textual-inversion embedding": ["emb_params"],
    "an LD-ZNet head": ["final.0.weight", "input_blocks.0.0.weight"],
    "an LD-ZNet checkpoint": ["model_ema.diffusion_modelfinal0weight", "cond_stage_model.transformer.x"],
}


@pytest.mark.parametrize("kind", [kind for kind, _ in KINDS])
def test_every_kind_is_recognised(kind: str) -> None:
    assert seems_to_be(FILES[kind]) == kind


@pytest.mark.parametrize(("width", "kind"), [(768, "1.x"), (1024, "2.x"), (2048, "XL")])
@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model."])
def test_stable_diffusion_is_told_by_its_context_width(prefix: str, width: int, kind: str) -> None:
    assert seems_to_be({prefix + ATTN2: TensorInfo(torch.float16, (640, width))}) == f"a Stable Diffusion {kind} model"


@pytest.mark.parametrize(
    "name",
    ["unet.down_blocks.0.to_q.lora_A.weight", "unet.x.to_q_lora.down.weight", "lora_te1_x.hada_w1_a", "x.lora_up.y"],
)
def test_every_dialect_of_lora_is_a_lora(name: str) -> None:
    assert seems_to_be([name]) == "a LoRA"


def test_what_nobody_knows_is_described_by_its_names() -> None:
    assert (
        seems_to_be(["wte", "wpe", "ln_f", "h.0"]) == "something else, with tensors such as wte, wpe, ln_f and 1 more"
    )
    assert seems_to_be([]) == "empty: it holds no tensor"


def test_a_stable_diffusion_checkpoint_is_refused_under_its_name() -> None:
    found = {key: info for key, info in in_format("lightning").items() if "attn3" not in key and "final" not in key}
    found = {key: info for key, info in found.items() if "norm_sd" not in key and "attentionpool2D" not in key}
    found["model.diffusion_model.out.2.weight"] = TensorInfo(torch.float32, (4, 320, 3, 3))
    with pytest.raises(CheckpointError, match=r"seems to be a Stable Diffusion 1\.x model") as error:
        match(found, FULL, "sd-v1-4.ckpt", "a head")
    assert "  missing (74): " in str(error.value)
    assert " and 54 more" in str(error.value)
