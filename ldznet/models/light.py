"""The light head: a small decoder over the latents and the LDM's taps, without a second UNet.

The paper's head is a UNet of its own that starts from the LDM's weights, and can compute from the latents whatever the
taps of the same UNet would say. This one is too small for that: what a phrase means and where it is, it has to read
from the taps. Every tap and the latents come to one width by a norm and a 1 x 1 convolution and to one of two grids;
a few residual blocks and transformer blocks, which attend to the phrase, decode them, coarse grid first.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import HeadConfig
from ..contracts import Taps
from ..shapes import PIXELS_PER_LATENT, Float, Int, Size, tap_size
from .checking import require_inputs
from .layers import NUM_GROUPS, SpatialTransformer
from .maskhead import MaskHead

COARSE_LAYERS, FINE_LAYERS = 2, 2


class Convolutions(nn.Module):
    """A residual block without a timestep: the head knows none but 0."""

    def __init__(self, width: int, operations: Any = nn) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [
                operations.GroupNorm(NUM_GROUPS, width),
                nn.SiLU(),
                operations.Conv2d(width, width, 3, padding=1),
            ]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x + self.layers(x)


class LightHead(MaskHead, nn.Module):
    """Words, latents and taps in, mask out. Its configuration's `unet` gives width, attention heads and context.

    An input that is missing (latents or taps) is a learned constant: it was left out in a share of the training.
    """

    def __init__(self, config: HeadConfig, operations: Any = nn) -> None:
        super().__init__()
        ops, unet = operations, config.unet
        width = unet.model_channels
        self.head_config = config
        self.fine, self.coarse = config.strides
        self.latents = ops.Conv2d(unet.in_channels, width, 3, padding=1)
        self.taps = nn.ModuleDict(
            {
                _key(block): nn.Sequential(
                    ops.GroupNorm(NUM_GROUPS, spec.channels), ops.Conv2d(spec.channels, width, 1)
                )
                for block, spec in config.tap_specs.items()
            }
        )
        self.missing = nn.Parameter(torch.zeros(2, width))  # in the place of latents, and of each tap

        def decoder(layers: int) -> nn.ModuleList:
            return nn.ModuleList(
                nn.ModuleList(
                    [
                        Convolutions(width, ops),
                        SpatialTransformer(width, unet.num_heads, unet.context_dim, operations=ops),
                    ]
                )
                for _ in range(layers)
            )

        self.coarse_layers, self.fine_layers = decoder(COARSE_LAYERS), decoder(FINE_LAYERS)
        self.up = ops.Conv2d(width, width, 3, padding=1)
        self.last = Convolutions(width, ops)
        self._end_in(width, config.mask_channels, config.has_presence, ops)

    @property
    def example(self) -> Tensor:
        """A parameter."""
        return self.missing

    def masks_and_presence(
        self,
        latents: Float[Tensor, "b c h w"],
        timesteps: Int[Tensor, " b"],
        context: Float[Tensor, "b n d"],
        taps: Taps | None = None,
    ) -> tuple[Float[Tensor, "b 1 8*h 8*w"], Float[Tensor, " b"] | None]:
        """Mask logits and presence logits (None for a head without that output); `timesteps` are those of no layer."""
        require_inputs(self.head_config, latents, taps)
        logits, presence = self.read(self.features(latents, timesteps, context, taps))
        height, width = (PIXELS_PER_LATENT * side for side in latents.shape[2:])
        return logits[..., :height, :width], presence  # latents of uneven sides have a cell in part

    def read(self, features: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b 1 H W"], Float[Tensor, " b"] | None]:
        """As `MaskHead.read`, brought to pixels where the finer map is coarser than the latents."""
        logits, presence = super().read(features)
        if self.fine > 1:
            logits = F.interpolate(logits, scale_factor=self.fine, mode="bilinear", align_corners=False)
        return logits, presence

    def features(
        self,
        latents: Float[Tensor, "b c h w"],
        timesteps: Int[Tensor, " b"],
        context: Float[Tensor, "b n d"],
        taps: Taps | None = None,
        kept: Float[Tensor, "b 2"] | None = None,
    ) -> Float[Tensor, "b m fine_h fine_w"]:
        """The map that `read` reads. `kept`: 1 where the latents, and where the taps, of a row are there; 0 where not.

        Without `taps` none is there.
        """
        size = (latents.shape[2], latents.shape[3])
        fine, coarse = tap_size(size, self.fine), tap_size(size, self.coarse)
        kept = torch.ones(len(latents), 2, dtype=latents.dtype, device=latents.device) if kept is None else kept
        own = self._kept(self.latents(latents), kept, 0)
        maps: dict[int, Tensor] = {self.fine: _brought(own, fine), self.coarse: _brought(own, coarse)}
        for block, spec in self.head_config.tap_specs.items():
            grid = self.fine if spec.stride <= self.fine else self.coarse
            tap = self.taps[_key(block)](taps[block]) if taps else own.new_zeros(len(own), own.shape[1], 1, 1)
            tap = self._kept(tap, kept if taps else torch.zeros_like(kept), 1)
            maps[grid] = maps[grid] + _brought(tap, fine if grid == self.fine else coarse)
        h = self._decoded(self.coarse_layers, maps[self.coarse], context)
        h = self.up(F.interpolate(h, size=fine, mode="nearest")) + maps[self.fine]
        return self.last(self._decoded(self.fine_layers, h, context))

    def _kept(self, x: Tensor, kept: Tensor, which: int) -> Tensor:
        keep = kept[:, which, None, None, None]
        return keep * x + (1 - keep) * self.missing[which, :, None, None]

    def _decoded(self, layers: nn.ModuleList, h: Tensor, context: Tensor) -> Tensor:
        for layer in layers:
            convolutions, transformer = layer.children()
            h = transformer(convolutions(h), context)
        return h


def _key(block: str) -> str:
    """A block's name as a module's: without a dot."""
    return block.replace(".", "_")


def _brought(x: Tensor, size: Size) -> Tensor:
    """A map at another size: averaged where it becomes smaller, bilinear where larger."""
    if x.shape[2:] == size:
        return x
    if x.shape[2] >= size[0] and x.shape[3] >= size[1]:
        return F.adaptive_avg_pool2d(x, size)
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
