"""Makes checkpoints for the tests: heads of toy size, and files of the kinds that people have. Not a test itself."""

from __future__ import annotations

import io
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from ldznet.checkpoints.formats import FORMATS
from ldznet.checkpoints.load import layout_of, meta_head
from ldznet.config import HeadConfig, UNetConfig

NARROW = {"model_channels": 32, "channel_mult": (1, 1, 1, 1), "num_heads": 4, "context_dim": 16}
SMALL = HeadConfig(unet=UNetConfig(out_channels=1, **NARROW), host_unet=UNetConfig(**NARROW), latent_grid=(16, 16))
"""The published head in 6 MB: its blocks and taps, so narrow that four skip connections need no convolution."""


def _saves_float8() -> bool:
    try:
        torch.save(torch.zeros(1).to(torch.float8_e4m3fn), io.BytesIO())
    except KeyError:
        return False
    return True


SAVES_FLOAT8 = _saves_float8()  # torch does from 2.2 on


def head_state(config: HeadConfig = SMALL, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random float32 weights under the official names."""
    generator = torch.Generator().manual_seed(seed)
    layout = layout_of(meta_head(config))
    return {name: 0.05 * torch.randn(info.shape, generator=generator) for name, info in layout.items()}


def renamed(state: dict[str, torch.Tensor], form: str) -> dict[str, torch.Tensor]:
    return {FORMATS[form].key(name): tensor for name, tensor in state.items()}


def extras() -> dict[str, torch.Tensor]:
    """What stands beside the head in the published file, in little."""
    names = ("first_stage_model.quant_conv.weight", "cond_stage_model.transformer.text_model.final_layer_norm.bias")
    names += ("sd_features_stage_model.model.model.diffusion_model.out.2.bias", "betas", "alphas_cumprod_prev")
    counts = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(146_000)}
    return {**{name: torch.ones(3) for name in names}, **counts}


def lightning(state: dict[str, Any], **entries: Any) -> dict[str, Any]:
    """A Lightning checkpoint around a state dict."""
    return {
        "epoch": 3,
        "global_step": 146_000,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": OrderedDict(state),
        **entries,
    }


def published(config: HeadConfig = SMALL, seed: int = 0) -> dict[str, torch.Tensor]:
    """The published state dict's layout: averaged weights of `seed`, the model's own of another, and the extras."""
    ema, model = head_state(config, seed), head_state(config, seed + 1)
    return {**extras(), **renamed(model, "lightning"), **renamed(ema, "ema")}


def save_with_foreign_class(checkpoint: dict[str, Any], path: Path) -> None:
    """Saves with hyperparameters of a class that the reader cannot import, as OmegaConf's are in Lightning files."""
    module = types.ModuleType("foreign_configuration")
    module.Configuration = type("Configuration", (dict,), {"__module__": module.__name__})
    sys.modules[module.__name__] = module
    try:
        configuration = module.Configuration(lr=1.6e-5)
        configuration.parent = configuration
        torch.save({**checkpoint, "hyper_parameters": configuration}, path)
    finally:
        del sys.modules[module.__name__]


def torch_zip(path: Path, program: bytes, **storages: bytes) -> Path:
    """A torch zip with a hand-made pickle, its checksums right."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
    return path
