"""LD-ZNet, ZNet and RGBNet (PNVR et al., ICCV 2023, arXiv 2303.12343): a Stable Diffusion UNet that outputs a mask.

Three configurations of one network: ZNet is LD-ZNet without taps, RGBNet is ZNet behind a convolutional stem. Official
code: github.com/koutilya-pnvr/LD-ZNet (Apache 2.0). For checkpoints and training, never for a host.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from ..config import HeadConfig
from ..contracts import Taps
from ..errors import InputError
from ..shapes import PIXELS_PER_LATENT, Float, Int
from .layers import NUM_GROUPS
from .trained import TrainedHead
from .unet import UNet


def published_mask_head(operations: Any = nn) -> nn.Sequential:
    """The 55 parameters of the paper's `final`: three times convolution and doubling, all in one channel."""
    ops = operations
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [ops.Conv2d(1, 1, 3, padding=1), nn.SiLU(), ops.ConvTranspose2d(1, 1, 2, stride=2), nn.SiLU()]
    return nn.Sequential(*layers, ops.Conv2d(1, 1, 3, padding=1))


def wide_mask_head(channels: tuple[int, ...], operations: Any = nn) -> nn.Sequential:
    """Three doublings by pixel shuffle, so that detail below 8 px can pass. `channels` before each of them."""
    layers: list[nn.Module] = []
    for here, after in zip(channels, (*channels[1:], 1), strict=True):
        layers += [operations.Conv2d(here, after * 4, 3, padding=1), nn.PixelShuffle(2), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


class LDZNet(UNet, TrainedHead):
    """Words and latents in, mask out; with taps of a denoising UNet where its configuration has blocks."""

    def __init__(self, config: HeadConfig, operations: Any = nn) -> None:
        super().__init__(config.unet, config.tap_specs, config.latent_grid, operations)
        self.head_config = config
        width, channels = config.unet.model_channels, config.mask_channels
        published = channels == (1,)
        # As many groups as channels would leave each channel's mean out: all and nothing would look the same.
        groups = NUM_GROUPS if published else 1
        self.out = nn.Sequential(
            operations.GroupNorm(groups, width), nn.SiLU(), operations.Conv2d(width, channels[0], 3, padding=1)
        )
        self.final = published_mask_head(operations) if published else wide_mask_head(channels, operations)
        if config.has_presence:
            self.presence_head = nn.Sequential(
                operations.Linear(width * 2 + 1, width * 2), nn.SiLU(), operations.Linear(width * 2, 1)
            )

    @property
    def example(self) -> Tensor:
        """A parameter."""
        return next(self.parameters())

    def masks_and_presence(
        self,
        latents: Float[Tensor, "b c h w"],
        timesteps: Int[Tensor, " b"],
        context: Float[Tensor, "b n d"],
        taps: Taps | None = None,
    ) -> tuple[Float[Tensor, "b 1 8*h 8*w"], Float[Tensor, " b"] | None]:
        """Mask logits and presence logits (None for a head without that output), from one pass."""
        self._check(latents, taps)
        return self.read(self.features(latents, timesteps, context, taps))

    def read(
        self, features: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b 1 8*h 8*w"], Float[Tensor, " b"] | None]:
        """What `masks_and_presence` gives, from the features of the last block."""
        logits = self.final(nn.functional.silu(self.out(features)))
        if not self.head_config.has_presence:
            return logits, None
        peak = logits.amax(dim=(1, 2, 3))[:, None]
        pooled = torch.cat([features.mean(dim=(2, 3)), features.amax(dim=(2, 3)), peak], dim=1)
        return logits, self.presence_head(pooled)[:, 0]

    def forward(
        self,
        latents: Float[Tensor, "b c h w"],
        timesteps: Int[Tensor, " b"],
        context: Float[Tensor, "b n d"],
        taps: Taps | None = None,
    ) -> Float[Tensor, "b 1 H W"]:
        """Mask logits at 8 times the size of `latents` (clean, model space). The paper's head is run at timestep 0.

        `context` is the text given to the feature pass too; `taps` holds at least the configuration's blocks.
        """
        return self.masks_and_presence(latents, timesteps, context, taps)[0]

    def presence(
        self,
        latents: Float[Tensor, "b c h w"],
        timesteps: Int[Tensor, " b"],
        context: Float[Tensor, "b n d"],
        taps: Taps | None = None,
    ) -> Float[Tensor, " b"] | None:
        """Logits of "the phrase is in this image", or None where the head was not trained for that."""
        return self.masks_and_presence(latents, timesteps, context, taps)[1]

    def _check(self, latents: Tensor, taps: Taps | None) -> None:
        channels = self.head_config.unet.in_channels
        if latents.ndim != 4 or latents.shape[1] != channels:
            raise InputError(f"Expected latents b {channels} h w, got {tuple(latents.shape)}. Give the host's latents.")
        for block, spec in self.head_config.tap_specs.items():
            if taps is None or block not in taps:
                given = ", ".join(taps) if taps else "none"
                raise InputError(f"Expected a tap for block {block}, got {given}. Extract all of this head's blocks.")
            if taps[block].ndim != 4 or taps[block].shape[1] != spec.channels:
                shape = tuple(taps[block].shape)
                raise InputError(f"Expected tap {block} as b {spec.channels} h w, got {shape}. Use the head's host.")


class RGBNet(LDZNet):
    """The same network on pixels in [-1, 1]. The paper leaves the shape open: three strided convolutions here."""

    def __init__(self, config: HeadConfig, operations: Any = nn) -> None:
        super().__init__(config, operations)
        widths = (3, 32, 64, config.unet.in_channels)
        layers: list[nn.Module] = []
        for here, after in itertools.pairwise(widths):
            layers += [operations.Conv2d(here, after, 3, stride=2, padding=1), nn.SiLU()]
        self.stem = nn.Sequential(*layers[:-1])

    def masks_and_presence(
        self,
        latents: Float[Tensor, "b 3 h w"],
        timesteps: Int[Tensor, " b"],
        context: Float[Tensor, "b n d"],
        taps: Taps | None = None,
    ) -> tuple[Float[Tensor, "b 1 h w"], Float[Tensor, " b"] | None]:
        """As LD-ZNet's, with pixels in the place of latents; their sides are multiples of 8."""
        if latents.ndim != 4 or latents.shape[1] != 3 or any(s % PIXELS_PER_LATENT for s in latents.shape[2:]):
            raise InputError(f"Expected pixels b 3 h w with sides in multiples of 8, got {tuple(latents.shape)}.")
        return super().masks_and_presence(self.stem(latents), timesteps, context, None)
