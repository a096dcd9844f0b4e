"""The networks of the paper: `layers` and `unet` are Stable Diffusion's, `ldznet` adds what the paper adds."""

from .ldznet import LDZNet, RGBNet
from .registry import HEADS, build_head
from .unet import UNet

__all__ = ["HEADS", "LDZNet", "RGBNet", "UNet", "build_head"]
