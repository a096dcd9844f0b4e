"""Taps: reading the hidden states of a denoising UNet with forward hooks, the same way in every host.

A spatial transformer is found by what it is (its class name), named by block, and read right after it ran. Imports
contracts and errors; every host adapter imports this.
"""

from __future__ import annotations

import contextlib
import re
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from .contracts import Block, TapSpec
from .errors import TapError

SPATIAL_TRANSFORMERS = ("SpatialTransformer", "Transformer2DModel")  # LDM, ComfyUI, A1111, Forge; diffusers

LDM_NAME = re.compile(r"(?:^|\.)(?:(input|output)_blocks\.(\d+)|(middle)_block)\.\d+$")
DIFFUSERS_NAME = re.compile(r"(?:^|\.)(?:(down|up)_blocks\.(\d+)\.attentions\.(\d+)|(mid)_block\.attentions\.0)$")


_locks: weakref.WeakKeyDictionary[Any, threading.RLock] = weakref.WeakKeyDictionary()
_making_locks = threading.Lock()


@contextlib.contextmanager
def exclusively(module: nn.Module | ModuleType) -> Iterator[None]:
    """Waits until no other thread reads or changes `module` by this context; the same thread may enter it again.

    Whatever hangs hooks into a host's module, or sets its flags for a pass, does so inside; whatever stands in for a
    function of a Python module, too.
    """
    with _making_locks:
        lock = _locks.setdefault(module, threading.RLock())
    with lock:
        yield


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


def ldm_specs(unet: Any) -> dict[str, TapSpec]:
    """Every tap of a UNet under the LDM's names (ComfyUI, A1111, the Forges): channels from its transformer, stride
    from the down- and upsamplers passed."""

    def passed(blocks: Any, kind: str) -> int:
        return sum(type(layer).__name__ == kind for block in blocks for layer in block)

    down = passed(unet.input_blocks, "Downsample")

    def level(block: Block) -> int:
        if block.stage == "input":
            return passed(unet.input_blocks[: block.index], "Downsample")
        return down - (passed(unet.output_blocks[: block.index], "Upsample") if block.stage == "output" else 0)

    modules: dict[str, Any] = spatial_transformers(unet)
    return {name: TapSpec(name, m.norm.num_channels, 2 ** level(Block.parse(name))) for name, m in modules.items()}


@contextlib.contextmanager
def watching(
    modules: Mapping[str, nn.Module], read: Callable[[str, Any], None], end_early: bool = True
) -> Iterator[set[str]]:
    """Calls `read(name, output)` after each of `modules` ran inside; removes its hooks whatever happens.

    With `end_early` the pass is the caller's own: it stops right after the last of them (and this context swallows what
    stopped it), and one that never ran raises TapError. Without, it is somebody else's, who must not be disturbed: what
    is yielded names those that have not run. `read` must not keep an output as it is: hosts change them in place.
    Passes of other threads are neither read nor stopped.
    """
    silent, reader = set(modules), threading.get_ident()

    def hook_for(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if threading.get_ident() != reader:
                return
            read(name, output)
            silent.discard(name)
            if end_early and not silent:
                raise _Enough

        return hook

    handles = []
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_hook(hook_for(name)))
        with contextlib.suppress(_Enough):
            yield silent
    finally:
        for handle in handles:
            handle.remove()
    if silent and end_early:
        names = ", ".join(name for name in modules if name in silent)
        raise TapError(f"Expected a tap from {names}, got none: it never ran. Is the UNet patched or cached?")


def transformers_of(unet: nn.Module, blocks: Sequence[str]) -> dict[str, nn.Module]:
    """The spatial transformers of `blocks`, each once; raises TapError for a block that this UNet does not have."""
    modules = spatial_transformers(unet)
    missing = [block for block in dict.fromkeys(blocks) if block not in modules]
    if missing:
        known = ", ".join(modules) or "none"
        raise TapError(f"Expected blocks that this UNet has ({known}), got {', '.join(missing)}: use the head's model.")
    return {block: modules[block] for block in blocks}


@contextlib.contextmanager
def reading(unet: nn.Module, blocks: Sequence[str], end_early: bool = True) -> Iterator[dict[str, Tensor]]:
    """Fills a dict with a copy of each block's tap while `unet` runs inside; `watching` says the rest.

    Raises TapError for a block that this UNet does not have, and for one that never fired, unless the pass is somebody
    else's (without `end_early`): then that one is missing.
    """
    taps: dict[str, Tensor] = {}

    def read(block: str, output: Any) -> None:
        taps[block] = _tensor(output).detach().clone()  # hosts add to a block's output in place

    with exclusively(unet), watching(transformers_of(unet, blocks), read, end_early):
        yield taps


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
