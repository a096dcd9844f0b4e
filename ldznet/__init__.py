"""Words in, mask out, from the Stable Diffusion that is already loaded: LD-ZNet (ICCV 2023) as a library.

host = ldznet.open_host("tiny")
predictor = ldznet.Predictor(host, ldznet.load_head("tiny"))
predictor.set_image(image)
masks = predictor.predict(["a red star", "grass"]).masks()
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import tinyworld
    from .checkpoints.load import load_head
    from .config import HeadConfig, UNetConfig
    from .contracts import Block, Captured, Head, Host, Taps, TapSpec
    from .hosts import open_host
    from .predictor import Predictor
    from .segmentation import Segmentation

__version__ = "0.1.0"

__all__ = [
    "Block",
    "Captured",
    "Head",
    "HeadConfig",
    "Host",
    "Predictor",
    "Segmentation",
    "TapSpec",
    "Taps",
    "UNetConfig",
    "load_head",
    "open_host",
    "tinyworld",
]

_PLACES = {  # the module of each name, imported when it is first asked for: `ldznet --help` needs no torch
    **dict.fromkeys(("Block", "Captured", "Head", "Host", "TapSpec", "Taps"), ".contracts"),
    **dict.fromkeys(("HeadConfig", "UNetConfig"), ".config"),
    "Predictor": ".predictor",
    "Segmentation": ".segmentation",
    "load_head": ".checkpoints.load",
    "open_host": ".hosts",
}


def __getattr__(name: str) -> object:
    """A name of `__all__`, from its place."""
    if name == "tinyworld":
        return importlib.import_module(".tinyworld", __name__)
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_PLACES[name], __name__), name)
    return value
