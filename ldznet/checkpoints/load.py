"""Heads from safetensors, by mapping them: nothing is initialised, nothing copied before the cast. And back into files.

May be imported by the predictor's side (`ldznet.load_head`), by the tiny world and by training.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, overload

import torch
from torch import nn

from ..attention import AttentionHead
from ..config import HeadConfig
from ..errors import CheckpointError, cause, shown
from ..models import Network, build_head
from ..placing import device_of, dtype_of
from ..sources import require_no_url
from .files import TensorFile, open_safetensors, stream_tensors
from .formats import FORMAT_VERSION, TensorInfo, match

ATTENTION, CONCEPTS = "attention", "concepts"  # the heads without weights
WITHOUT_WEIGHTS = (ATTENTION, CONCEPTS)
OWNER = "an LD-ZNet head"  # whose tensors an error says are expected
WEIGHTS = Path(__file__).parents[1] / "tinyworld" / "weights"
EMBEDDED: dict[str, Path] = {  # heads that come with the library, by the name that `load_head` takes
    "tiny": WEIGHTS / "ldznet.safetensors",
    "tiny-light": WEIGHTS / "light.safetensors",
    "tiny-znet": WEIGHTS / "ldznet.safetensors",
}
ZNET = "tiny-znet"  # LD-ZNet's weights without attn3, which are all that a ZNet has

Module = TypeVar("Module", bound=nn.Module)


@overload
def load_head(source: Literal["attention", "concepts"]) -> AttentionHead: ...  # type: ignore[overload-overlap]


@overload
def load_head(
    source: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    operations: Any = nn,
) -> Network: ...


def load_head(
    source: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    operations: Any = nn,
) -> Network | AttentionHead:
    """The head in a .safetensors file, or an embedded one: "tiny" (LD-ZNet), "tiny-light", or "tiny-znet", which
    is "tiny" without attn3; ready to run, frozen.
    "attention" needs no file and runs where its host does; "concepts" is concept attention, for Flux.1 and Chroma.

    `device` None is the CPU. `dtype` None is float32 on a CPU and the file's own elsewhere. In its own dtype on a CPU a
    head stays mapped: its pages come from the file when they are used. `operations` supplies the layer classes.
    A file without our metadata is taken if its names and shapes are exactly those of the published head.
    Raises CheckpointError, which lists every deviation at once or says what the file seems to be.
    """
    device, dtype = device_of(device), dtype_of(dtype)
    if str(source) in WITHOUT_WEIGHTS:
        return AttentionHead(concepts=str(source) == CONCEPTS)
    with _opened(source) as (file, config):
        return _fill(meta_head(config, operations), file, OWNER, device, dtype)


class HeadInfo(NamedTuple):
    """What a head is, without its weights."""

    config: Any  # HeadConfig, or what the attention head has in its place
    parameters: int
    dtype: torch.dtype | None
    metadata: Mapping[str, str]  # of the file, without the configuration


def head_info(source: str | Path) -> HeadInfo:
    """Of any head that `load_head` takes, from its file's first bytes alone; raises as that does."""
    if str(source) in WITHOUT_WEIGHTS:
        return HeadInfo(AttentionHead(concepts=str(source) == CONCEPTS).head_config, 0, None, {})
    with _opened(source) as (file, config):
        match(file.tensors, layout_of(meta_head(config)), file.path.name, OWNER)
        parameters = sum(torch.Size(info.shape).numel() for info in file.tensors.values())
        metadata = {key: text for key, text in file.metadata.items() if key != "config"}
        return HeadInfo(config, parameters, common_dtype([info.dtype for info in file.tensors.values()]), metadata)


@contextmanager
def _opened(source: str | Path) -> Iterator[tuple[TensorFile, HeadConfig]]:
    """The file of a head, and its configuration."""
    with open_safetensors(_path_of(source)) as file:
        config = config_of(file) or HeadConfig()
        if str(source) == ZNET:
            config = replace(config, network="znet")
            own = layout_of(meta_head(config))
            file = replace(file, tensors={name: info for name, info in file.tensors.items() if name in own})
        yield file, config


def _path_of(source: str | Path) -> Path:
    require_no_url(source, "a head's file")
    path = EMBEDDED.get(str(source), Path(source))
    if not os.path.exists(path):  # Path.exists raises for names that no file can have
        names = ", ".join([*WITHOUT_WEIGHTS, *EMBEDDED])
        got = shown(source, 300)
        raise CheckpointError(f"Expected a .safetensors file or one of {names}, got {got}, which does not exist.")
    return path


def load_weights(
    module: Module, path: str | Path, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> Module:
    """Fills `module` (in place, best built on the meta device) from a safetensors of its state dict, and freezes it.

    As `load_head`, for anything else: every name and shape must fit. Buffers outside the state dict stay as they are,
    so a module that has some is built on a real device.
    """
    with open_safetensors(Path(path)) as file:
        return _fill(module, file, type(module).__name__, device, dtype)


def save_head(head: Network, path: str | Path, metadata: Mapping[str, str], dtype: torch.dtype = torch.float16) -> None:
    """Writes `head` in `dtype` as one safetensors, whole or not at all, with its configuration in the metadata.

    `metadata` is text: licence, what it was trained on, and the like. Raises InputError on anything but text.
    """
    state = head.state_dict()
    layout = {name: TensorInfo(dtype, tuple(tensor.shape)) for name, tensor in state.items()}
    stream_tensors(path, layout, lambda name: state[name].to(dtype), {**metadata, **own_metadata(head.head_config)})


def own_metadata(config: HeadConfig) -> dict[str, str]:
    """What marks a file as a head of ours, and says which."""
    return {"ldznet_format": FORMAT_VERSION, "config": config.to_json()}


def config_of(file: TensorFile) -> HeadConfig | None:
    """The configuration in the file's metadata; None for a file that is not marked as ours."""
    version = file.metadata.get("ldznet_format")
    if version is None:
        return None
    if version != FORMAT_VERSION or "config" not in file.metadata:
        raise CheckpointError(
            f'Expected a head of format "{FORMAT_VERSION}" with its configuration in {shown(file.path.name)}, got '
            f'format "{shown(version)}". Update the pack if the head is newer; else convert the original again.'
        )
    return HeadConfig.from_json(file.metadata["config"])


def meta_head(config: HeadConfig, operations: Any = nn) -> Network:
    """The network of `config` without memory for its weights; CheckpointError where none can be built."""
    try:
        with torch.device("meta"):
            return build_head(config, operations)
    except CheckpointError:
        raise
    except Exception as error:  # the configuration comes from a file and can hold anything
        raise CheckpointError(
            f"Expected the configuration of a head, got one that cannot be built: {cause(error)}"
        ) from error


def layout_of(module: nn.Module) -> dict[str, TensorInfo]:
    """Names, shapes and dtypes of a state dict."""
    return {name: TensorInfo(tensor.dtype, tuple(tensor.shape)) for name, tensor in module.state_dict().items()}


def common_dtype(dtypes: list[torch.dtype]) -> torch.dtype:
    """The narrowest that holds all of them: a file's own dtype, where it has one. No layer runs in float8: it counts as
    float16."""
    floats = [torch.float16 if dtype.is_floating_point and dtype.itemsize == 1 else dtype for dtype in dtypes]
    return reduce(torch.promote_types, floats)


def _fill(
    module: Module, file: TensorFile, owner: str, device: str | torch.device | None, dtype: torch.dtype | None
) -> Module:
    keys = match(file.tensors, layout_of(module), file.path.name, owner).keys
    device, dtype = device_of(device), dtype_of(dtype)
    floats = [info.dtype for info in file.tensors.values() if info.dtype.is_floating_point]
    dtype = dtype or (torch.float32 if device.type == "cpu" else common_dtype(floats))
    state = {}
    for name, key in keys.items():
        tensor = file.read(key)
        state[name] = tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
    module.load_state_dict(state, assign=True)
    return module.requires_grad_(False).eval()
