"""What UNet a loaded one is: its configuration, read from the layers that it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..config import UNetConfig
from ..errors import InputError
from ..parts import parts_of
from .delta import layers_of

ATTENTION = "{}.1.transformer_blocks.{}.attn1.to_q"


def unet_config(unet: nn.Module) -> UNetConfig:
    """The configuration of a UNet of Stable Diffusion's kind (1.x, 2.x, SDXL), in any host's classes.

    Raises InputError for one that differs from what the configuration describes in a layer's name or size, and
    TapError for a module that is none.
    """
    parts = parts_of(unet)
    stem: Any = parts["input_blocks.0.0"].weight
    levels: list[list[str]] = [[]]
    for i in range(1, len(parts)):
        if f"input_blocks.{i}.0.op" in parts:
            levels.append([])
        elif f"input_blocks.{i}.0.in_layers.2" in parts:
            levels[-1].append(f"input_blocks.{i}")
        else:
            break
    depths = [_depth(parts, names[0]) for names in levels]
    with_attention = tuple(2**level for level, depth in enumerate(depths) if depth)
    context: Any = parts["middle_block.1.transformer_blocks.0.attn2.to_k"].weight
    widths = [_width(parts, names[-1]) for names in levels]
    config = UNetConfig(
        in_channels=stem.shape[1],
        model_channels=stem.shape[0],
        channel_mult=tuple(width // stem.shape[0] for width in widths),
        num_res_blocks=len(levels[0]),
        attention_downsampling=with_attention,
        context_dim=context.shape[1],
        transformer_depth=tuple(depths) if len(set(filter(None, depths))) > 1 else (max(depths),),
    )
    wrong = [name for name, shapes in layers_of(config).items() if not _fits(parts, name, shapes)]
    if wrong:
        raise InputError(
            f"Expected a UNet of the form of SD 1.x, 2.x or SDXL, got one that differs in {len(wrong)} layers, first "
            f"{wrong[0]}. Take a model of those families."
        )
    return config


def _depth(parts: Mapping[str, nn.Module], name: str) -> int:
    """Transformer blocks of an input block."""
    depth = 0
    while ATTENTION.format(name, depth) in parts:
        depth += 1
    return depth


def _width(parts: Mapping[str, Any], name: str) -> int:
    return int(parts[f"{name}.0.in_layers.2"].weight.shape[0])


def _fits(parts: Mapping[str, Any], name: str, shapes: Mapping[str, Any]) -> bool:
    """Whether a layer has parameters of these sizes; a 1 x 1 convolution may be a linear layer."""
    return name in parts and all(
        getattr(parts[name], kind, None) is not None and getattr(parts[name], kind).numel() == shape.numel()
        for kind, shape in shapes.items()
    )
