"""LD-ZNet, ZNet and RGBNet (PNVR et al., ICCV 2023, arXiv 2303.12343): a Stable Diffusion UNet that outputs a mask.

Configurations of one network: ZNet is LD-ZNet without taps, RGBNet is ZNet behind a convolutional stem, and
ConcatenationNet the fusion that the paper compares attn3 with. Official code: github.com/koutilya-pnvr/LD-ZNet (Apache
2.0). For checkpoints and training, never for a host.
"""

from __future__ import annotations

import itertools
from typing import Any

from torch import Tensor, nn

from ..config import HeadConfig
from ..contracts import Taps
from ..images import require_pixels
from ..shapes import Float, Int, Real
from .checking import require_inputs
from .layers import ConcatenatingTransformer, SpatialTransformer
from .maskhead import MaskHead
from .unet import UNet


class LDZNet(MaskHead, UNet):
    """Words and latents in, mask out; with taps of a denoising UNet where its configuration has blocks."""

    def __init__(self, config: HeadConfig, operations: Any = nn) -> None:
        super().__init__(config.unet, config.tap_specs, config.latent_grid, operations)
        self.head_config = config
        self._end_in(config.unet.model_channels, config.mask_channels, config.has_presence, operations)

    @property
    def example(self) -> Tensor:
        """A parameter."""
        return next(self.parameters())

    def features(
        self,
        latents: Float[Tensor, "b c h w"],
        timesteps: Real[Tensor, " b"],
        context: Float[Tensor, "b n d"],
        taps: Taps | None = None,
        kept: Float[Tensor, "b 2"] | None = None,
    ) -> Float[Tensor, "b m h w"]:
        """As a UNet's. `kept`: 1 where the latents, and where the taps, of a row are there; 0 where not (for training
        that leaves some out: zeros are in their place)."""
        if kept is not None:
            latents = latents * kept[:, 0, None, None, None]
            taps = {block: tap * kept[:, 1, None, None, None] for block, tap in (taps or {}).items()}
        return super().features(latents, timesteps, context, taps)

    def masks_and_presence(
        self,
        latents: Float[Tensor, "b c h w"],
        timesteps: Int[Tensor, " b"],
        context: Float[Tensor, "b n d"],
        taps: Taps | None = None,
    ) -> tuple[Float[Tensor, "b 1 8*h 8*w"], Float[Tensor, " b"] | None]:
        """Mask logits and presence logits (None for a head without that output), from one pass."""
        require_inputs(self.head_config, latents, taps)
        return self.read(self.features(latents, timesteps, context, taps))


class ConcatenationNet(LDZNet):
    """LD-ZNet with each tap concatenated to the map at its place instead of cross-attended (paper, section 4)."""

    def _transformer(self, block: str, channels: int, level: int) -> SpatialTransformer:
        if block not in self._taps:
            return super()._transformer(block, channels, level)
        sizes, depth = (channels, self.config.num_heads, self.config.context_dim), self.config.depth(level)
        return ConcatenatingTransformer(*sizes, self._taps[block].channels, self._ops, depth)


class RGBNet(LDZNet):
    """The same network on pixels in [-1, 1]. The paper leaves the shape open: three strided convolutions here."""

    def __init__(self, config: HeadConfig, operations: Any = nn) -> None:
        super().__init__(config, operations)
        widths = (3, 32, 64, config.unet.in_channels)
        layers: list[nn.Module] = []
        for here, after in itertools.pairwise(widths):
            layers += [operations.Conv2d(here, after, 3, stride=2, padding=1), nn.SiLU()]
        self.stem = nn.Sequential(*layers[:-1])

    def features(
        self,
        latents: Float[Tensor, "b 3 h w"],
        timesteps: Real[Tensor, " b"],
        context: Float[Tensor, "b n d"],
        taps: Taps | None = None,
        kept: Float[Tensor, "b 2"] | None = None,
    ) -> Float[Tensor, "b m h/8 w/8"]:
        """As LD-ZNet's, with pixels in the place of latents."""
        return super().features(self.stem(latents), timesteps, context, None, kept)

    def masks_and_presence(
        self,
        latents: Float[Tensor, "b 3 h w"],
        timesteps: Int[Tensor, " b"],
        context: Float[Tensor, "b n d"],
        taps: Taps | None = None,
    ) -> tuple[Float[Tensor, "b 1 h w"], Float[Tensor, " b"] | None]:
        """As LD-ZNet's, with pixels in the place of latents; their sides are multiples of 8."""
        require_pixels(latents)
        return self.read(self.features(latents, timesteps, context))
