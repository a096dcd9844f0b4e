"""Taps: reading the hidden states of a denoising UNet with forward hooks, the same way in every host.

A spatial transformer is found by what it is (its class name), named by block, and read right after it ran. Imports
contracts and errors; every host adapter imports this.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .contracts import Block
from .errors import TapError

SPATIAL_TRANSFORMERS = ("SpatialTransformer", "Transformer2DModel")  # LDM, ComfyUI, A1111, Forge; diffusers

LDM_NAME = re.compile(r"(?:^|\.)(?:(input|output)_blocks\.(\d+)|(middle)_block)\.\d+$")
DIFFUSERS_NAME = re.compile(r"(?:^|\.)(?:(down|up)_blocks\.(\d+)\.attentions\.(\d+)|(mid)_block\.attentions\.0)$")


class _Enough(BaseException):
    """Ends a pass whose last tap has been read. Never leaves this module; no host's `except Exception` may keep it."""


def block_of(module_name: str, layers_per_level: int = 2) -> Block | None:
    """The block of a spatial transformer by its module name, LDM's or diffusers'; None for any other name.

    A level of a diffusers UNet holds `layers_per_level` residual blocks down (LDM counts the downsampler with them,
    and the first convolution as input.0) and one more up.
    """
    if match := LDM_NAME.search(module_name):
        stage, index, middle = match.groups()
        return Block("middle", 0) if middle else Block(stage, int(index))
    if match := DIFFUSERS_NAME.search(module_name):
        stage, level, index, middle = match.groups()
        if middle:
            return Block("middle", 0)
        if stage == "down":
            return Block("input", 1 + int(level) * (layers_per_level + 1) + int(index))
        return Block("output", int(level) * (layers_per_level + 1) + int(index))
    return None


def spatial_transformers(unet: nn.Module) -> dict[str, nn.Module]:
    """Every spatial transformer of `unet` by block name, in the order in which they run."""
    found = {}
    for name, module in unet.named_modules():
        if type(module).__name__ in SPATIAL_TRANSFORMERS:
            block = block_of(name)
            if block is not None:
                found[block] = module
    return {str(block): found[block] for block in sorted(found, key=lambda b: b.order)}


@contextlib.contextmanager
def reading(unet: nn.Module, blocks: Sequence[str], end_early: bool = True) -> Iterator[dict[str, Tensor]]:
    """Fills a dict with a copy of each block's tap while `unet` runs inside; removes its hooks whatever happens.

    With `end_early` the pass stops right after the last tap (and this context swallows what stopped it). Raises
    TapError for a block that this UNet does not have, or that was asked for and never fired.
    """
    modules, blocks = spatial_transformers(unet), list(dict.fromkeys(blocks))
    missing = [block for block in blocks if block not in modules]
    if missing:
        known = ", ".join(modules) or "none"
        raise TapError(f"Expected blocks that this UNet has ({known}), got {', '.join(missing)}: use the head's model.")
    taps: dict[str, Tensor] = {}

    def hook_for(block: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            taps[block] = _tensor(output).detach().clone()  # hosts add to a block's output in place
            if end_early and len(taps) == len(blocks):
                raise _Enough

        return hook

    handles = []
    try:
        for block in blocks:
            handles.append(modules[block].register_forward_hook(hook_for(block)))
        with contextlib.suppress(_Enough):
            yield taps
    finally:
        for handle in handles:
            handle.remove()
    silent = [block for block in blocks if block not in taps]
    if silent:
        raise TapError(
            f"Expected a tap from {', '.join(silent)}, got none: it never ran. Is the UNet patched or cached?"
        )


@torch.no_grad()
def extract_taps(unet: nn.Module, blocks: Sequence[str], run: Callable[[], Any]) -> dict[str, Tensor]:
    """Taps of `blocks` (block name to b c h w) from one pass of `unet`, which `run` starts and the last tap ends."""
    if not blocks:
        return {}
    with reading(unet, blocks) as taps:
        run()
    return taps


def _tensor(output: Any) -> Tensor:
    """A spatial transformer's hidden state: it may come bare, in a tuple, or in a diffusers output object."""
    if isinstance(output, Tensor):
        return output
    return output[0] if isinstance(output, (tuple, list)) else output.sample
