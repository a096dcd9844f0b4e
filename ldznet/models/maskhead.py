"""From the last features to mask logits and presence: what every head with weights ends in."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..contracts import Taps
from ..shapes import Float, Int
from .layers import NUM_GROUPS
from .trained import TrainedHead


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


class MaskHead(TrainedHead):
    """Mix-in of a module: the layers `out` and `final`, and `presence_head` where there is that output."""

    out: nn.Sequential
    final: nn.Module
    presence_head: nn.Module | None

    def _end_in(self, width: int, channels: tuple[int, ...], has_presence: bool, operations: Any) -> None:
        published = channels == (1,)
        # As many groups as channels would leave each channel's mean out: all and nothing would look the same.
        groups = NUM_GROUPS if published else 1
        self.out = nn.Sequential(
            operations.GroupNorm(groups, width), nn.SiLU(), operations.Conv2d(width, channels[0], 3, padding=1)
        )
        self.final = published_mask_head(operations) if published else wide_mask_head(channels, operations)
        self.presence_head = None
        if has_presence:
            self.presence_head = nn.Sequential(
                operations.Linear(width * 2 + 1, width * 2), nn.SiLU(), operations.Linear(width * 2, 1)
            )

    def read(
        self, features: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b 1 8*h 8*w"], Float[Tensor, " b"] | None]:
        """Mask logits and presence logits (None without that output) of the features of the last block."""
        logits = self.final(F.silu(self.out(features)))
        if self.presence_head is None:
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
