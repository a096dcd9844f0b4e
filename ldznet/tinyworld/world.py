"""The tiny world's models: their sizes, where their weights lie, and how to load them. For hosts and training."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import nn

from .. import clip_bpe
from ..checkpoints import load_weights
from ..checkpoints.load import WEIGHTS
from ..config import PUBLISHED_BLOCKS, HeadConfig, UNetConfig
from ..errors import CheckpointError
from ..models import UNet
from .text import TextConfig, TextEncoder
from .vae import TinyVAE
from .words import VOCABULARY

# 64 channels, not 32: hosts fix 32 groups of norms, and a group of one channel takes out that channel's mean, so that
# a text could not say how bright or of which tint a picture is.
UNET = UNetConfig(model_channels=64, channel_mult=(1, 1, 1, 1), num_heads=4, context_dim=64)
HEAD = dataclasses.replace(UNET, out_channels=1)  # so that a head starts from all of the UNet
LIGHT_WIDTH = 96
LIGHT_BLOCKS = ("input.2", "input.4", "input.5", "output.7", "output.8", "output.10", "output.11")  # 16 x 16 and 8 x 8
PIXELS = 128
LATENT = PIXELS // 8
# Words of phrases and captions, and those of the published templates: each is one token.
WORDS = sorted(word for word in VOCABULARY | {"image", "picture", "the", "one", "thing", "."})

Module = TypeVar("Module", bound=nn.Module)


def head_config(network: str) -> HeadConfig:
    """The embedded heads' configuration: a wider mask head than the published one, and a presence output."""
    light = network == "light"
    return HeadConfig(
        network=network,
        unet=dataclasses.replace(HEAD, model_channels=LIGHT_WIDTH) if light else HEAD,
        blocks=LIGHT_BLOCKS if light else PUBLISHED_BLOCKS,
        host_unet=UNET,
        latent_grid=(LATENT, LATENT),
        size_multiple=32,
        timestep=200,
        timestep_range=(50, 350),
        template="{}",
        mask_channels=(64, 32, 16),
        has_presence=True,
        presence_threshold=0.5,  # on unseen scenes 96 % of the present are found, 14 % of the absent
    )


class Models(NamedTuple):
    """Everything that a Stable Diffusion has."""

    vae: TinyVAE
    text: TextEncoder
    unet: UNet
    tokenizer: clip_bpe.Tokenizer


@functools.cache
def tokenizer() -> clip_bpe.Tokenizer:
    """CLIP's tokenizer over the tiny vocabulary; learned from `WORDS`, the same everywhere."""
    return clip_bpe.Tokenizer(*clip_bpe.learn(WORDS))


def unknown_words(texts: Iterable[str]) -> list[str]:
    """The words of `texts`, cut as the tokenizer cuts them, that are not in `WORDS`, each once, in order; no signs."""
    words = (word for text in texts for word in clip_bpe.split_words(text))
    return [word for word in dict.fromkeys(words) if word not in WORDS and word.isalnum()]


def fresh() -> Models:
    """Untrained models."""
    words = tokenizer()
    return Models(TinyVAE(), TextEncoder(TextConfig(len(words.vocabulary))), UNet(UNET), words)


def load(device: torch.device | str | None = None, dtype: torch.dtype | None = None, weights: Path = WEIGHTS) -> Models:
    """The trained models in the folder `weights`, frozen. `dtype` None is float32 on a CPU and the file's elsewhere."""
    with torch.device("meta"):
        empty = fresh()
    return Models(
        _filled(empty.vae, weights / "vae.safetensors", device, dtype),
        _filled(empty.text, weights / "text.safetensors", device, dtype),
        _filled(empty.unet, weights / "unet.safetensors", device, dtype),
        empty.tokenizer,
    )


def _filled(module: Module, path: Path, device: torch.device | str | None, dtype: torch.dtype | None) -> Module:
    if not path.exists():
        raise CheckpointError(f"Expected weights of the tiny world at {path}, found none. Run `ldznet train` first.")
    return load_weights(module, path, device=device, dtype=dtype)
