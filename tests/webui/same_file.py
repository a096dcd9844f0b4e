"""A checkpoint that a host has loaded, opened again by diffusers' adapter, and heads of random weights for it."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ldznet.checkpoints import save_head
from ldznet.hosts import hf_diffusers
from ldznet.hosts.single_file import CONFIGURATIONS, ENCODERS, MERGES, UNET, VAE
from ldznet.models import Network, build_head
from ldznet.models.known import unet_config
from ldznet.train.tiers import tier_config

HEAD_CHANNELS = 64  # of SD 2.x's and SDXL's attention, where no configuration lies beside the file
SPREAD = 30  # between the logits of a picture
WEIGHTED = ("light", "one")  # tiers of `ldznet train head`


def opened(path: Path, folder: Path) -> hf_diffusers.DiffusersHost:
    """The checkpoint at `path`, of whatever width; `folder` gets the configurations that it lacks."""
    with safe_open(path, "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    family = family_of(shapes)
    for rest in {*CONFIGURATIONS[family].values(), MERGES}:
        (folder / rest).parent.mkdir(exist_ok=True)
        shutil.copy(hf_diffusers.CONFIGURATIONS / rest, folder / rest)
    beside = path.with_suffix(".yaml")
    told = re.search(r"num_head_channels: (\d+)", beside.read_text()) if beside.is_file() else None
    changes = {"unet": unet_sizes(shapes, family, int(told[1]) if told else HEAD_CHANNELS), "vae": vae_sizes(shapes)}
    for encoder in ENCODERS[family]:
        if encoder.open_clip:
            changes[encoder.name] = text_sizes(shapes, encoder.prefix, drops_last=family == "sd2")
    for name, sizes in changes.items():
        config = folder / CONFIGURATIONS[family][name]
        config.write_text(json.dumps({**json.loads(config.read_text()), **sizes}))
    return hf_diffusers.DiffusersHost.from_single_file(path, dtype=torch.float32, configs=folder)


def family_of(shapes: dict[str, Any]) -> str:
    """By the names and shapes of its UNet."""
    if f"{UNET}label_emb.0.0.weight" in shapes:
        return "sdxl"
    return "sd2" if len(shapes[f"{UNET}middle_block.1.proj_in.weight"]) == 2 else "sd1"


def unet_sizes(shapes: dict[str, Any], family: str, head_channels: int) -> dict[str, Any]:
    """What a diffusers configuration says of them."""
    width, levels = shapes[f"{UNET}input_blocks.0.0.weight"][0], (1, 2, 4) if family == "sdxl" else (1, 2, 4, 4)
    widths = [width * level for level in levels]
    sizes: dict[str, Any] = {
        "block_out_channels": widths,
        "cross_attention_dim": shapes[f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight"][1],
    }
    if family != "sd1":
        sizes["attention_head_dim"] = [width // head_channels for width in widths]  # diffusers' name for their number
    if family == "sdxl":
        depths = [_count(shapes, f"{UNET}input_blocks.{block}.1.transformer_blocks.") for block in (4, 7)]
        sizes["transformer_layers_per_block"] = [1, *depths]
        sizes["projection_class_embeddings_input_dim"] = shapes[f"{UNET}label_emb.0.0.weight"][1]
    return sizes


def vae_sizes(shapes: dict[str, Any]) -> dict[str, Any]:
    """As `unet_sizes`."""
    width = shapes[f"{VAE}encoder.conv_in.weight"][0]
    return {"block_out_channels": [width, 2 * width, 4 * width, 4 * width]}


def text_sizes(shapes: dict[str, Any], prefix: str, drops_last: bool) -> dict[str, Any]:
    """Of OpenCLIP's text encoder, whose heads have 64 channels; SD 2.x reads its last layer but one."""
    width, layers = shapes[f"{prefix}token_embedding.weight"][1], _count(shapes, f"{prefix}transformer.resblocks.")
    return {
        "hidden_size": width,
        "intermediate_size": shapes[f"{prefix}transformer.resblocks.0.mlp.c_fc.weight"][0],
        "projection_dim": shapes[f"{prefix}text_projection"][1],
        "num_hidden_layers": layers - drops_last,
        "num_attention_heads": width // 64,
    }


def _count(shapes: dict[str, Any], prefix: str) -> int:
    """How many numbers follow `prefix`."""
    return len({name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)})


def random_head(tier: str, host: Any, path: Path) -> None:
    """A head of `tier` over a host's UNet, of random weights that make much of phrases; all is found."""
    config = tier_config(tier, host.family, unet_config(host.unet), 128, rank=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head: Network = build_head(dataclasses.replace(config, presence_threshold=0.0))
        for name, parameter in head.named_parameters():
            if not parameter.any():  # as training begins
                parameter.data = torch.randn(parameter.shape) * 0.1
            elif "attn2.to_v" in name:
                parameter.data *= 10
        head.final[-2].weight.data *= SPREAD
    save_head(head, path, {"what": "random weights, for a test"})
