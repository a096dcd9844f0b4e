"""Stable Diffusion in everything but its widths: one set of random weights as file, folder, pipeline and UNet."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ldznet.clip_bpe import Tokenizer, read_merges
from ldznet.config import UNetConfig
from ldznet.models import UNet

SD1 = Path(__file__).parents[2] / "ldznet" / "hosts" / "sd1"
MERGES = SD1 / "clip_merges.txt.gz"
UNET = UNetConfig(model_channels=32, channel_mult=(1, 2, 2, 2), context_dim=64)
WIDTHS: dict[str, dict[str, Any]] = {
    "unet": {"block_out_channels": [32, 64, 64, 64], "cross_attention_dim": 64},
    "vae": {"block_out_channels": [32, 32, 64, 64]},
    "text_encoder": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
}
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
}
VAE_NAMES = (  # diffusers' to the LDM's
    (r"down_blocks\.(\d)\.resnets\.", r"down.\1.block."),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.(\d)\.resnets\.", lambda m: f"up.{3 - int(m[1])}.block."),
    (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample"),
    (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    ("conv_shortcut", "nin_shortcut"),
    ("conv_norm_out", "norm_out"),
    ("group_norm", "norm"),
    (r"to_out\.0", "proj_out"),
    (r"to_([qkv])\.", r"\1."),
)
UNET_NAMES = (  # diffusers' to the LDM's, at two residual blocks a level
    (r"^down_blocks\.(\d)\.resnets\.(\d)", lambda m: f"input_blocks.{1 + 3 * int(m[1]) + int(m[2])}.0"),
    (r"^down_blocks\.(\d)\.attentions\.(\d)", lambda m: f"input_blocks.{1 + 3 * int(m[1]) + int(m[2])}.1"),
    (r"^down_blocks\.(\d)\.downsamplers\.0\.conv", lambda m: f"input_blocks.{3 + 3 * int(m[1])}.0.op"),
    (r"^mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}"),
    (r"^mid_block\.attentions\.0", "middle_block.1"),
    (r"^up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"output_blocks.{3 * int(m[1]) + int(m[2])}.0"),
    (r"^up_blocks\.(\d)\.attentions\.(\d)", lambda m: f"output_blocks.{3 * int(m[1]) + int(m[2])}.1"),
    (r"^time_embedding\.linear_(\d)", lambda m: f"time_embed.{2 * int(m[1]) - 2}"),
    (r"^add_embedding\.linear_(\d)", lambda m: f"label_emb.0.{2 * int(m[1]) - 2}"),
    (r"^conv_in", "input_blocks.0.0"),
    (r"^conv_norm_out", "out.0"),
    (r"^conv_out", "out.2"),
    (r"\.conv1\.", ".in_layers.2."),
    (r"\.conv2\.", ".out_layers.3."),
    (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"\.conv_shortcut\.", ".skip_connection."),
)
OPEN_CLIP_NAMES = (  # transformers' to OpenCLIP's
    ("encoder.layers.", "transformer.resblocks."),
    ("embeddings.token_embedding.weight", "token_embedding.weight"),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("final_layer_norm", "ln_final"),
    ("layer_norm", "ln_"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("self_attn", "attn"),
)

State = dict[str, torch.Tensor]


def config(name: str) -> dict[str, Any]:
    """SD 1.x's configuration of "unet", "vae" or "text_encoder" at small widths."""
    return {**json.loads((SD1 / f"{name}.json").read_text()), **WIDTHS[name]}


def configs(folder: Path) -> Path:
    """A folder as `ldznet/hosts`, with SD 1.x at small widths."""
    (folder / "sd1").mkdir(parents=True, exist_ok=True)
    for name in WIDTHS:
        (folder / "sd1" / f"{name}.json").write_text(json.dumps(config(name)))
    (folder / "sd1" / MERGES.name).write_bytes(MERGES.read_bytes())
    return folder


def unet(unet_config: UNetConfig = UNET) -> UNet:
    """Our UNet, under the LDM's names, always with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet(unet_config).eval()


def ldm_state(unet_config: UNetConfig = UNET) -> State:
    """A whole checkpoint under the names that CompVis gave."""
    pytest.importorskip("diffusers")
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        vae = AutoencoderKL.from_config(config("vae")).state_dict()
        text = CLIPTextModel(CLIPTextConfig(**config("text_encoder"))).state_dict()
    state = {f"model.diffusion_model.{name}": tensor for name, tensor in unet(unet_config).state_dict().items()}
    state |= {f"first_stage_model.{_ldm_vae_name(name)}": _ldm_vae_weight(name, t) for name, t in vae.items()}
    text = {name.removeprefix("text_model."): tensor for name, tensor in text.items()}
    return state | {f"cond_stage_model.transformer.text_model.{name}": tensor for name, tensor in text.items()}


def _ldm_vae_name(name: str) -> str:
    for pattern, replacement in VAE_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _ldm_vae_weight(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:, :, None, None] if "attentions" in name and tensor.ndim == 2 else tensor


def ldm_unet_name(name: str, upsampler: int = 2) -> str:
    """The LDM's name of a diffusers UNet's tensor; `upsampler`: its place in its block, 1 where no attention stands."""
    if match := re.match(r"up_blocks\.(\d)\.upsamplers\.0(.*)", name):
        return f"output_blocks.{3 * int(match[1]) + 2}.{upsampler}{match[2]}"
    if "transformer_blocks" in name:
        return _renamed(name, UNET_NAMES[:7])
    return _renamed(re.sub(r"(resnets\.\d)\.norm(\d)", _norm, name), UNET_NAMES)


def _norm(match: re.Match[str]) -> str:
    return f"{match[1]}.{'in_layers' if match[2] == '1' else 'out_layers'}.0"


def _renamed(name: str, table: tuple[tuple[str, Any], ...]) -> str:
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name


def open_clip_state(state: State) -> State:
    """A CLIP text encoder of transformers under OpenCLIP's names: queries, keys and values in one tensor."""
    found: dict[str, Any] = {}
    for name, tensor in state.items():
        name = _renamed(name.removeprefix("text_model."), OPEN_CLIP_NAMES)
        if match := re.match(r"(.*\.attn\.)([qkv])_proj\.(\w+)", name):
            found.setdefault(f"{match[1]}in_proj_{match[3]}", {})[match[2]] = tensor
        elif name == "text_projection.weight":
            found["text_projection"] = tensor.t()
        else:
            found[name] = tensor
    return {n: torch.cat([t[x] for x in "qkv"]) if isinstance(t, dict) else t for n, t in found.items()}


def write_file(path: Path, state: State | None = None) -> Path:
    """A single-file checkpoint; a `.ckpt` is pickled as CompVis pickled it."""
    state = ldm_state() if state is None else state
    if path.suffix == ".ckpt":
        torch.save({"state_dict": state, "global_step": 1}, path)
    else:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


def host(folder: Path, state: State | None = None, name: str = "small.safetensors", **kwargs: Any) -> Any:
    """The host of a single file of these widths."""
    from ldznet.hosts.hf_diffusers import DiffusersHost

    path = write_file(folder / name, state)
    return DiffusersHost.from_single_file(path, configs=configs(folder / "configs"), **kwargs)


def pipeline(folder: Path, **kwargs: Any) -> Any:
    """A loaded pipeline with the weights of `ldm_state`; `kwargs` as `host` takes them."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    parts = host(folder, **kwargs)
    return StableDiffusionPipeline(
        vae=parts._vae,
        text_encoder=parts._texts.encoders[0],
        tokenizer=transformers_tokenizer(folder),
        unet=parts._unet,
        scheduler=DDIMScheduler(**SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def transformers_tokenizer(folder: Path) -> Any:
    """transformers' CLIPTokenizer from the vocabulary and the merges that we ship."""
    from transformers import CLIPTokenizer

    tokenizer = Tokenizer.from_merges(MERGES)
    (folder / "vocab.json").write_text(json.dumps(tokenizer.vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in read_merges(MERGES))]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def diffusers_folder(folder: Path, **kwargs: Any) -> Path:
    """The same as a diffusers folder; `kwargs` as `save_pretrained` takes them."""
    pipeline(folder).save_pretrained(folder / "model", **kwargs)
    return folder / "model"
