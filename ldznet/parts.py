"""The layers of a denoising UNet by the names that the LDM's own code gives them, whichever host holds the UNet.

ComfyUI, A1111, the Forges and the tiny world keep those names; diffusers has others. Imports errors and taps alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from .errors import TapError

RESIDUAL = {  # of a residual block: the LDM's name, diffusers' name
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
OUT = "out"  # what turns the last hidden state into noise: one module, or diffusers' first of three


def parts_of(unet: nn.Module) -> dict[str, nn.Module]:
    """Every layer with weights by its LDM name ("input_blocks.1.0.in_layers.2"), and the first of those after the last
    hidden state as "out". Raises TapError for a module that is no UNet of Stable Diffusion's kind."""
    if hasattr(unet, "input_blocks"):
        return {name: module for name, module in unet.named_modules() if name}
    if hasattr(unet, "down_blocks"):
        return _of_diffusers(unet)
    raise TapError(
        f"Expected a UNet with input_blocks or down_blocks, got a {type(unet).__name__}. Load an SD 1.x model."
    )


def _of_diffusers(unet: Any) -> dict[str, nn.Module]:
    per_level = unet.config.layers_per_block + 1
    found: dict[str, nn.Module] = {
        "time_embed.0": unet.time_embedding.linear_1,
        "time_embed.2": unet.time_embedding.linear_2,
        "input_blocks.0.0": unet.conv_in,
        OUT: unet.conv_norm_out,
    }
    for level, block in enumerate(unet.down_blocks):
        for i in range(len(block.resnets)):
            found |= _layers(f"input_blocks.{1 + level * per_level + i}", block, i)
        for sampler in block.downsamplers or ():
            found[f"input_blocks.{(level + 1) * per_level}.0.op"] = sampler.conv
    found |= _residual("middle_block.0", unet.mid_block.resnets[0])
    found |= _within("middle_block.1", unet.mid_block.attentions[0])
    found |= _residual("middle_block.2", unet.mid_block.resnets[1])
    for level, block in enumerate(unet.up_blocks):
        for i in range(len(block.resnets)):
            found |= _layers(f"output_blocks.{level * per_level + i}", block, i)
        for sampler in block.upsamplers or ():
            place = 2 if hasattr(block, "attentions") else 1
            found[f"output_blocks.{(level + 1) * per_level - 1}.{place}.conv"] = sampler.conv
    return found


def _layers(name: str, block: Any, which: int) -> dict[str, nn.Module]:
    found = _residual(f"{name}.0", block.resnets[which])
    return {**found, **_within(f"{name}.1", block.attentions[which])} if hasattr(block, "attentions") else found


def _residual(name: str, block: nn.Module) -> dict[str, nn.Module]:
    named: Mapping[str, Any] = dict(block.named_children())
    return {f"{name}.{own}": named[theirs] for own, theirs in RESIDUAL.items() if named.get(theirs) is not None}


def _within(name: str, transformer: nn.Module) -> dict[str, nn.Module]:
    """A spatial transformer's layers have the same names in both."""
    return {f"{name}.{own}": module for own, module in transformer.named_modules() if own}
