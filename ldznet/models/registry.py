"""The heads that exist, one line each. To add one: a file in this folder and a line here."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..config import HeadConfig
from ..errors import CheckpointError
from .delta import DeltaHead
from .ldznet import ConcatenationNet, LDZNet, RGBNet
from .light import LightHead

Network = LDZNet | LightHead | DeltaHead

HEADS: dict[str, type[Network]] = {
    "rgbnet": RGBNet,
    "znet": LDZNet,
    "ldznet": LDZNet,
    "concatenation": ConcatenationNet,
    "light": LightHead,
    "delta": DeltaHead,
}


def build_head(config: HeadConfig, operations: Any = nn) -> Network:
    """The network that `config` describes, with fresh weights (none under `torch.device("meta")`)."""
    if config.network not in HEADS:
        known = ", ".join(HEADS)
        raise CheckpointError(
            f'Expected a network of {known}, got "{config.network}". Update the pack for newer heads.'
        )
    return HEADS[config.network](config, operations)
