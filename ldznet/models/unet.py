"""Stable Diffusion's denoising UNet (Rombach et al., CVPR 2022), under its official parameter names.

It is also the body of the three networks of LD-ZNet, which give it taps to cross-attend. `forward` is a pure function.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..config import UNetConfig
from ..contracts import Taps, TapSpec
from ..shapes import Float, Real, Size, tap_size
from .layers import NUM_GROUPS, Downsample, ResBlock, SpatialTransformer, Upsample, timestep_embedding


class UNet(nn.Module):
    """Predicts the noise in latents. `taps` names the blocks that cross-attend a host's taps (LD-ZNet's attn3).

    `latent_grid` (height, width in latent pixels) sets the grids of the positional embeddings; used with `taps` only.
    """

    def __init__(
        self,
        config: UNetConfig,
        taps: Mapping[str, TapSpec] | None = None,
        latent_grid: Size = (48, 48),
        operations: Any = nn,
    ) -> None:
        super().__init__()
        self.config = config
        self._ops, self._taps, self._grid = operations, dict(taps or {}), latent_grid
        width = config.model_channels
        self.time_embed = nn.Sequential(
            operations.Linear(width, width * 4), nn.SiLU(), operations.Linear(width * 4, width * 4)
        )
        self.input_blocks, skips = self._down()
        channels, last = skips[-1], len(config.channel_mult) - 1
        attention = self._transformer("middle.0", channels, last)
        self.middle_block = nn.ModuleList([self._res(channels, channels), attention, self._res(channels, channels)])
        self.output_blocks = self._up(channels, skips)
        self.out = nn.Sequential(
            operations.GroupNorm(NUM_GROUPS, width),
            nn.SiLU(),
            operations.Conv2d(width, config.out_channels, 3, padding=1),
        )

    def _res(self, channels: int, out_channels: int) -> ResBlock:
        return ResBlock(channels, self.config.model_channels * 4, out_channels, self._ops)

    def _transformer(self, block: str, channels: int, level: int) -> SpatialTransformer:
        sizes, depth = (channels, self.config.num_heads, self.config.context_dim), self.config.depth(level)
        spec = self._taps.get(block)
        if spec is None:
            return SpatialTransformer(*sizes, operations=self._ops, depth=depth)
        return SpatialTransformer(*sizes, spec.channels, tap_size(self._grid, spec.stride), self._ops, depth)

    def _down(self) -> tuple[nn.ModuleList, list[int]]:
        config = self.config
        channels = config.model_channels
        blocks = [nn.ModuleList([self._ops.Conv2d(config.in_channels, channels, 3, padding=1)])]
        skips = [channels]
        for level, mult in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks):
                layers: list[nn.Module] = [self._res(channels, mult * config.model_channels)]
                channels = mult * config.model_channels
                if 2**level in config.attention_downsampling:
                    layers.append(self._transformer(f"input.{len(blocks)}", channels, level))
                blocks.append(nn.ModuleList(layers))
                skips.append(channels)
            if level != len(config.channel_mult) - 1:
                blocks.append(nn.ModuleList([Downsample(channels, self._ops)]))
                skips.append(channels)
        return nn.ModuleList(blocks), skips

    def _up(self, channels: int, skips: list[int]) -> nn.ModuleList:
        config, skips = self.config, list(skips)
        blocks: list[nn.Module] = []
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            for i in range(config.num_res_blocks + 1):
                layers: list[nn.Module] = [self._res(channels + skips.pop(), mult * config.model_channels)]
                channels = mult * config.model_channels
                if 2**level in config.attention_downsampling:
                    layers.append(self._transformer(f"output.{len(blocks)}", channels, level))
                if level and i == config.num_res_blocks:
                    layers.append(Upsample(channels, self._ops))
                blocks.append(nn.ModuleList(layers))
        return nn.ModuleList(blocks)

    def features(
        self,
        latents: Float[Tensor, "b c h w"],
        timesteps: Real[Tensor, " b"],
        context: Float[Tensor, "b n d"],
        taps: Taps | None = None,
    ) -> Float[Tensor, "b m h w"]:
        """The map of `model_channels` channels that enters the `out` layers."""
        taps = {block: taps[block] for block in self._taps} if taps else {}
        embedding = timestep_embedding(timesteps, self.config.model_channels)
        emb = self.time_embed(embedding.to(latents.dtype))
        h, skips = latents, []
        for i, block in enumerate(self.input_blocks):
            h = _run(block, h, emb, context, taps.get(f"input.{i}"))
            skips.append(h)
        h = _run(self.middle_block, h, emb, context, taps.get("middle.0"))
        for i, block in enumerate(self.output_blocks):
            h = torch.cat([h, skips.pop()], dim=1)
            size = skips[-1].shape[2:] if skips else h.shape[2:]
            h = _run(block, h, emb, context, taps.get(f"output.{i}"), (size[0], size[1]))
        return h

    def forward(
        self, latents: Float[Tensor, "b c h w"], timesteps: Real[Tensor, " b"], context: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b c h w"]:
        """The noise in `latents` (b c h w, any size of at least 1 x 1) at `timesteps` (0..999), given the text."""
        return self.out(self.features(latents, timesteps, context))


def _run(
    block: nn.Module, h: Tensor, emb: Tensor, context: Tensor, tap: Tensor | None, size: Size | None = None
) -> Tensor:
    """One block: each layer with what it needs. `size` is where an upsampling layer must arrive."""
    for layer in block.children():
        if isinstance(layer, ResBlock):
            h = layer(h, emb)
        elif isinstance(layer, SpatialTransformer):
            h = layer(h, context, tap)
        elif isinstance(layer, Upsample):
            h = layer(h, size)
        else:
            h = layer(h)
    return h
