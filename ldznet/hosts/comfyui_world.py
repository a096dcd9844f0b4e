"""The embedded tiny world as ComfyUI's own objects: its MODEL, CLIP and VAE classes around our weights.

With `hosts/comfyui.py` the only files that import comfy.
"""

from __future__ import annotations

import functools
from typing import Any

import comfy.latent_formats
import comfy.model_management as memory
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL

from ..tinyworld import world
from ..tinyworld.vae import TinyVAE
from . import comfyui_tiny as parts


def tiny_models() -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of the embedded tiny world: ComfyUI's own classes around its weights."""
    models = world.load(dtype=torch.float32)
    return _tiny_model(models), _tiny_clip(models), _TinyComfyVAE(models.vae)


class TinyLatents(comfy.latent_formats.SD15):
    """SD 1.5's scale, with the colours that the tiny VAE's latents have."""

    def __init__(self) -> None:
        super().__init__()
        self.latent_rgb_factors, self.latent_rgb_factors_bias = parts.LATENT_COLOURS, parts.LATENT_BIAS


class TinySD15(comfy.supported_models.SD15):
    """SD 1.5 at the tiny world's widths."""

    latent_format = TinyLatents

    def __init__(self) -> None:
        super().__init__({})
        self.unet_config = parts.unet_config()
        self.set_inference_dtype(torch.float32, None)


def _tiny_model(models: world.Models) -> Any:
    base = TinySD15().get_model({}, "", device="cpu")
    base.diffusion_model.load_state_dict(models.unet.state_dict())
    return patcher(base)


def _tiny_clip(models: world.Models) -> Any:
    tokenizer = functools.partial(comfy.sd1_clip.SD1Tokenizer, tokenizer=_TinyTokenizer)
    encoder = functools.partial(comfy.sd1_clip.SD1ClipModel, clip_model=_TinyTextEncoder)
    target = comfy.supported_models_base.ClipTarget(tokenizer, encoder)
    clip = comfy.sd.CLIP(target, model_options={"dtype": torch.float32})
    transformer = clip.cond_stage_model.clip_l.transformer
    rows = transformer.get_input_embeddings().weight.shape[0]
    transformer.load_state_dict(parts.text_state(models.text, rows))
    return clip


class _TinyTokenizer(comfy.sd1_clip.SDTokenizer):
    """ComfyUI's prompt parser over the tiny vocabulary."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
        width = world.UNET.context_dim
        super().__init__("", embedding_directory=embedding_directory, embedding_size=width, tokenizer_class=parts.Words)


class _TinyTextEncoder(comfy.sd1_clip.SDClipModel):
    """ComfyUI's CLIP text encoder at the tiny world's sizes."""

    def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None) -> None:
        words = world.tokenizer()
        super().__init__(
            device=device,
            dtype=dtype,
            textmodel_json_config=parts.text_config(),
            special_tokens={"start": words.start, "end": words.end, "pad": words.end},
            return_projected_pooled=False,
            model_options=model_options or {},
        )


class _TinyComfyVAE(comfy.sd.VAE):
    """ComfyUI's VAE, everything but its first stage, around the tiny world's."""

    def __init__(self, vae: TinyVAE) -> None:
        config = {"params": {"ddconfig": parts.SHELL, "embed_dim": 4}}
        super().__init__(sd=AutoencoderKL(**config["params"]).state_dict(), config=config, dtype=torch.float32)
        self.first_stage_model = parts.FirstStage(vae)
        self.patcher = patcher(self.first_stage_model, self.device, memory.vae_offload_device())
        self.size = memory.module_size(self.first_stage_model)


def patcher(module: Any, device: Any = None, offload: Any = None) -> Any:
    """`module` under ComfyUI's memory management, on the UNet's devices unless told otherwise."""
    return comfy.model_patcher.ModelPatcher(
        module, load_device=device or memory.get_torch_device(), offload_device=offload or memory.unet_offload_device()
    )
