"""Words in, mask out, from the Stable Diffusion that is already loaded: LD-ZNet (ICCV 2023) as a library.

host = ldznet.open_host("tiny")
predictor = ldznet.Predictor(host, ldznet.load_head("tiny"))
predictor.set_image(image)
masks = predictor.predict(["a red star", "grass"]).masks()
"""

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


def __getattr__(name: str) -> object:
    """`ldznet.tinyworld`, imported when it is first asked for."""
    if name == "tinyworld":
        import importlib

        return importlib.import_module(".tinyworld", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
