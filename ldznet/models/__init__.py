"""The networks of the paper: `layers` and `unet` are Stable Diffusion's, `ldznet` adds what the paper adds,
`trained` runs it for phrases."""

from .delta import DeltaHead
from .ldznet import LDZNet, RGBNet
from .light import LightHead
from .registry import HEADS, Network, build_head
from .trained import CapturedTaps, TrainedHead
from .unet import UNet

__all__ = [
    "HEADS",
    "CapturedTaps",
    "DeltaHead",
    "LDZNet",
    "LightHead",
    "Network",
    "RGBNet",
    "TrainedHead",
    "UNet",
    "build_head",
]
