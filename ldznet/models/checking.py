"""What a head's network refuses, in words."""

from __future__ import annotations

from torch import Tensor

from ..config import HeadConfig
from ..contracts import Taps
from ..errors import InputError


def require_inputs(config: HeadConfig, latents: Tensor, taps: Taps | None) -> None:
    """Raises InputError that names the first of latents and taps which a head of `config` cannot read."""
    channels = config.unet.in_channels
    if latents.ndim != 4 or latents.shape[1] != channels:
        raise InputError(f"Expected latents b {channels} h w, got {tuple(latents.shape)}. Give the host's latents.")
    for block, spec in config.tap_specs.items():
        if taps is None or block not in taps:
            given = ", ".join(taps) if taps else "none"
            raise InputError(f"Expected a tap for block {block}, got {given}. Extract all of this head's blocks.")
        if taps[block].ndim != 4 or taps[block].shape[1] != spec.channels:
            shape = tuple(taps[block].shape)
            raise InputError(f"Expected tap {block} as b {spec.channels} h w, got {shape}. Use the head's host.")
