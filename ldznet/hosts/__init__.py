"""The diffusion models that heads read: `open_host`, and one adapter a file, imported only when it is asked for.

To add a host: an adapter that keeps `contracts.Host`, a line in `HOSTS`, and one in tests/hosts/test_contract.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..contracts import Host
from ..errors import HostError, InputError, shown
from ..placing import device_of, dtype_of
from ..sources import require_no_url

__all__ = ["HOSTS", "open_host"]

SINGLE_FILES = (".safetensors", ".ckpt")

Device = torch.device | str | None
Dtype = torch.dtype | None


def open_host(source: Any, *, device: Device = None, dtype: Dtype = None) -> Host:
    """The host of `source`: "tiny", a diffusers folder, a checkpoint in one file, a loaded pipeline,
    or the `sd_model` of A1111 or a Forge.

    Weights go to `device` (None: the CPU) as `dtype` (None: float32 on a CPU, float16 elsewhere). A pipeline is used
    where and as it is: neither may be given. Raises InputError for a source of no known kind, HostError for a model
    that is none of SD 1.x, SD 2.x, SDXL and, in diffusers, SD 3 and Flux.1, or a missing library, CheckpointError for
    a damaged or incomplete file.
    """
    if _is_path(source):
        require_no_url(source, "a model")
    where = None if device is None else device_of(device), dtype_of(dtype)  # before gigabytes are read
    for accepts, opens in HOSTS.values():
        if accepts(source):
            return opens(source, *where)
    kinds = ", ".join(HOSTS)
    raise InputError(f"Expected one of {kinds}, got {_described(source)}.")


def _tiny(source: Any, device: Device, dtype: Dtype) -> Host:
    from .tiny import TinyHost

    return TinyHost.load(device, dtype)


def _folder(source: Any, device: Device, dtype: Dtype) -> Host:
    return _hf_diffusers().open_folder(Path(source), device=device, dtype=dtype)


def _single_file(source: Any, device: Device, dtype: Dtype) -> Host:
    return _hf_diffusers().DiffusersHost.from_single_file(Path(source), device=device, dtype=dtype)


def _pipeline(source: Any, device: Device, dtype: Dtype) -> Host:
    if device is not None or dtype is not None:
        raise InputError(
            "Expected no device and no dtype with a loaded pipeline, got one: call pipeline.to(…) instead."
        )
    return _hf_diffusers().open_pipeline(source)


def _webui(source: Any, device: Device, dtype: Dtype) -> Host:
    from .webui import open_webui

    if device is not None or dtype is not None:
        raise InputError("Expected no device and no dtype with a host's loaded model, got one: the host decides both.")
    return open_webui(source)


def _hf_diffusers() -> Any:
    try:
        from . import hf_diffusers
    except ImportError as error:
        install = 'pip install "ldznet[diffusers]"'
        raise HostError(
            f"Expected diffusers and transformers, which this host runs on, got: {error}. {install}"
        ) from error
    return hf_diffusers


def _is_path(source: Any) -> bool:
    return isinstance(source, (str, Path))


def _is_folder(source: Any) -> bool:
    return _is_path(source) and os.path.isdir(source)  # Path.is_dir raises for names that no file can have


def _is_single_file(source: Any) -> bool:
    return _is_path(source) and os.path.isfile(source) and Path(source).suffix.lower() in SINGLE_FILES


def _is_pipeline(source: Any) -> bool:
    return any(hasattr(source, part) for part in ("unet", "vae", "transformer"))


def _is_webui(source: Any) -> bool:
    from .webui import is_loaded

    return not _is_path(source) and is_loaded(source)


def _described(source: Any) -> str:
    if not _is_path(source):
        return f"a {type(source).__name__}"
    name = shown(source, 300)
    if not os.path.exists(source):
        return f'"{name}", which does not exist on this machine (nothing is downloaded by its name)'
    return f'the file "{name}", which is none of {" ".join(SINGLE_FILES)}'


# What is taken for a source of this kind, and what opens it; the first that takes it does.
HOSTS: dict[str, tuple[Callable[[Any], bool], Callable[[Any, Device, Dtype], Host]]] = {
    '"tiny"': (lambda source: source == "tiny", _tiny),
    "a diffusers folder": (_is_folder, _folder),
    "a single-file checkpoint": (_is_single_file, _single_file),
    "a loaded diffusers pipeline": (_is_pipeline, _pipeline),
    "the model that A1111 or a Forge has loaded": (_is_webui, _webui),
}
