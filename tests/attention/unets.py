"""Small diffusers UNets of the three architectures, whole SDXL and SD 2.x pipelines of them, and a tiny host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hosts import small

from ldznet.hosts.tiny import TinyHost
from ldznet.tinyworld import world

CONTEXT = 64
BASE: dict[str, Any] = {"sample_size": 16, "block_out_channels": (32, 64, 64, 64), "cross_attention_dim": CONTEXT}
XL_BLOCKS: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (32, 64, 128),
    "transformer_layers_per_block": (1, 2, 3),
    "attention_head_dim": (2, 4, 8),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 32,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "sd1": {**BASE, "attention_head_dim": 4},
    "sd2": {**BASE, "attention_head_dim": (2, 4, 4, 8), "use_linear_projection": True},
    "sdxl": {**BASE, **XL_BLOCKS, "use_linear_projection": True},
}


def unet(architecture: str) -> Any:
    """A UNet2DConditionModel, always with the same weights."""
    diffusers = pytest.importorskip("diffusers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return diffusers.UNet2DConditionModel(**ARCHITECTURES[architecture]).eval().requires_grad_(False)


def inputs(architecture: str, batch: int = 1, size: tuple[int, int] = (16, 24)) -> dict[str, Any]:
    """Arguments of a pass: noised latents, timesteps, context, and SDXL's further ones."""
    generator = torch.Generator().manual_seed(1)
    given = {
        "sample": torch.randn(batch, 4, *size, generator=generator),
        "timestep": torch.full((batch,), 100),
        "encoder_hidden_states": torch.randn(batch, 77, CONTEXT, generator=generator),
    }
    if architecture == "sdxl":
        pooled = torch.randn(batch, 32, generator=generator)
        given["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.ones(batch, 6)}
    return given


def pipeline(folder: Path, architecture: str) -> Any:
    """A loaded pipeline of random weights around `unet`."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    vae = diffusers.AutoencoderKL.from_config(small.config("vae"))
    tokenizer = small.transformers_tokenizer(folder)
    tokenizer.model_max_length = 77
    scheduler = diffusers.DDIMScheduler(**small.SCHEDULE, prediction_type="v_prediction")
    parts = {"vae": vae, "unet": unet(architecture), "scheduler": scheduler, "tokenizer": tokenizer}
    config = small.config("text_encoder")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        if architecture != "sdxl":
            encoder = CLIPTextModel(CLIPTextConfig(**config))
            extra = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
            return diffusers.StableDiffusionPipeline(text_encoder=encoder, **parts, **extra)
        half = CLIPTextConfig(**{**config, "hidden_size": 32, "projection_dim": 32})
        both = {"text_encoder": CLIPTextModel(half), "text_encoder_2": CLIPTextModelWithProjection(half)}
        return diffusers.StableDiffusionXLPipeline(**parts, **both, tokenizer_2=tokenizer)


def tiny_host() -> TinyHost:
    """The tiny world's models with random weights, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        models = world.fresh()
    for module in models[:3]:
        module.eval().requires_grad_(False)
    return TinyHost(models)


def hooks_of(model: torch.nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
