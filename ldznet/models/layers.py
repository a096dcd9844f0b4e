"""Layers of Stable Diffusion's UNet and of LD-ZNet, under their official parameter names. Pure functions of tensors.

Structure after CompVis/latent-diffusion (MIT) and koutilya-pnvr/LD-ZNet (Apache 2.0), written anew. Each class takes
`operations`, a namespace with `torch.nn`'s layer classes, so that a host can pass its own casting and offloading ones.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..config import NUM_GROUPS
from ..shapes import Float, Real, Size


def timestep_embedding(timesteps: Real[Tensor, " b"], dim: int, max_period: float = 10_000) -> Float[Tensor, "b d"]:
    """Sinusoidal embedding in float32: cosines first, then sines."""
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps.float()[:, None] * torch.exp(-math.log(max_period) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def drawn(values: Tensor, deviation: float) -> Tensor:
    """`values`, in place, from a normal distribution. On the meta device they stay as they are: torch would load its
    compiler to draw nothing there, which takes longer than to load a head."""
    return values if values.is_meta else values.normal_(std=deviation)


class ResBlock(nn.Module):
    """Residual block with the time embedding added in the middle."""

    def __init__(self, channels: int, emb_channels: int, out_channels: int, operations: Any = nn) -> None:
        super().__init__()
        ops = operations
        self.in_layers = nn.Sequential(
            ops.GroupNorm(NUM_GROUPS, channels), nn.SiLU(), ops.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), ops.Linear(emb_channels, out_channels))
        self.out_layers = nn.Sequential(
            ops.GroupNorm(NUM_GROUPS, out_channels),
            nn.SiLU(),
            nn.Identity(),  # dropout in the official code; keeps the convolution's index
            ops.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else ops.Conv2d(channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"], emb: Float[Tensor, "b e"]) -> Float[Tensor, "b d h w"]:
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Downsample(nn.Module):
    """Halves height and width, rounding up."""

    def __init__(self, channels: int, operations: Any = nn) -> None:
        super().__init__()
        self.op = operations.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c H W"]:
        return self.op(x)


class Upsample(nn.Module):
    """Nearest neighbour to `size` (that of the skip that follows, so odd sizes fit), then a convolution."""

    def __init__(self, channels: int, operations: Any = nn) -> None:
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"], size: Size) -> Float[Tensor, "b c H W"]:
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


class GEGLU(nn.Module):
    """x · gelu(gate), the gate being the second half of the projection."""

    def __init__(self, dim: int, inner_dim: int, operations: Any = nn) -> None:
        super().__init__()
        self.proj = operations.Linear(dim, inner_dim * 2)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n e"]:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU to four times the width and back."""

    def __init__(self, dim: int, operations: Any = nn) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, dim * 4, operations), nn.Identity(), operations.Linear(dim * 4, dim))

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return self.net(x)


class CrossAttention(nn.Module):
    """Multi-head attention of `dim`-wide queries over `context_dim`-wide keys and values; q, k, v without bias."""

    def __init__(self, dim: int, context_dim: int, heads: int, operations: Any = nn, width: int | None = None) -> None:
        """`width` of queries, keys and values; `dim` if None."""
        super().__init__()
        width = width or dim
        self.heads = heads
        self.to_q = operations.Linear(dim, width, bias=False)
        self.to_k = operations.Linear(context_dim, width, bias=False)
        self.to_v = operations.Linear(context_dim, width, bias=False)
        self.to_out = nn.Sequential(operations.Linear(width, dim), nn.Identity())

    def forward(self, x: Float[Tensor, "b n d"], context: Float[Tensor, "b m c"]) -> Float[Tensor, "b n d"]:
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        q, k, v = (rearrange(t, "b n (heads c) -> b heads n c", heads=self.heads) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(rearrange(out, "b heads n c -> b n (heads c)"))


class BasicTransformerBlock(nn.Module):
    """Self-attention, text cross-attention, then (where `tap_dim` is given) attn3 over a pooled tap, feed-forward.

    The order and the norms are those of LD-ZNet's figure 4: attn3 stands between attn2 and the feed-forward.
    """

    def __init__(self, dim: int, heads: int, context_dim: int, tap_dim: int | None = None, operations: Any = nn):
        super().__init__()
        ops = operations
        self.attn1 = CrossAttention(dim, dim, heads, ops)
        self.ff = FeedForward(dim, ops)
        self.attn2 = CrossAttention(dim, context_dim, heads, ops)
        self.norm1, self.norm2, self.norm3 = (ops.LayerNorm(dim) for _ in range(3))
        if tap_dim is not None:
            self.attn3 = CrossAttention(dim, tap_dim, heads, ops)
            self.norm_sd = ops.LayerNorm(dim)

    def forward(
        self, x: Float[Tensor, "b n d"], context: Float[Tensor, "b m c"], pooled: Float[Tensor, "b k t"] | None = None
    ) -> Float[Tensor, "b n d"]:
        h = self.norm1(x)
        x = x + self.attn1(h, h)
        x = x + self.attn2(self.norm2(x), context)
        if pooled is not None:
            x = x + self.attn3(self.norm_sd(x), pooled)
        return x + self.ff(self.norm3(x))


def position_at(embedding: Float[Tensor, "c n"], grid: Size, size: Size) -> Float[Tensor, "c m"]:
    """A positional embedding that was learned on `grid`, for a map of `size`: resized bicubically; compared by
    (h, w), since 8 x 18 has as many cells as 12 x 12."""
    if tuple(size) == tuple(grid):
        return embedding
    cells = rearrange(embedding.float(), "c (h w) -> 1 c h w", h=grid[0])
    cells = F.interpolate(cells, size=size, mode="bicubic", align_corners=False)
    return rearrange(cells[0], "c h w -> c (h w)").to(embedding.dtype)


class AttentionPool2d(nn.Module):
    """All tokens of a tap after one full self-attention, the mean token first: what attn3 attends to.

    After CLIP's AttentionPool2d, which keeps the mean token alone. The positional embedding was learned on `grid`
    (height, width); at any other size its grid part is resized bicubically.
    """

    def __init__(self, grid: Size, channels: int, heads: int, operations: Any = nn) -> None:
        super().__init__()
        self.grid, self.heads = grid, heads
        tokens = grid[0] * grid[1] + 1
        self.positional_embedding = nn.Parameter(drawn(torch.empty(channels, tokens), channels**-0.5))
        self.qkv_proj = operations.Conv1d(channels, channels * 3, 1)
        self.c_proj = operations.Conv1d(channels, channels, 1)

    def position(self, size: Size) -> Float[Tensor, "c n"]:
        """The embedding for a tap of `size`."""
        mean, cells = self.positional_embedding[:, :1], self.positional_embedding[:, 1:]
        return torch.cat([mean, position_at(cells, self.grid, size)], dim=1)

    def forward(self, tap: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1+h*w c"]:
        x = rearrange(tap, "b c h w -> b c (h w)")
        x = torch.cat([x.mean(dim=-1, keepdim=True), x], dim=-1)
        x = x + self.position((tap.shape[2], tap.shape[3])).to(x)
        q, k, v = rearrange(self.qkv_proj(x), "b (three heads c) n -> three b heads n c", three=3, heads=self.heads)
        out = F.scaled_dot_product_attention(q, k, v)
        return rearrange(self.c_proj(rearrange(out, "b heads n c -> b (heads c) n")), "b c n -> b n c")


class SpatialTransformer(nn.Module):
    """A transformer block over the pixels of a map, its input added back. Its output is what a tap reads."""

    def __init__(
        self,
        channels: int,
        heads: int,
        context_dim: int,
        tap_dim: int | None = None,
        tap_grid: Size = (1, 1),
        operations: Any = nn,
        depth: int = 1,
    ) -> None:
        """`depth`: how many transformer blocks there are; the last one reads the tap."""
        super().__init__()
        ops = operations
        self.norm = ops.GroupNorm(NUM_GROUPS, channels, eps=1e-6)
        self.proj_in = ops.Conv2d(channels, channels, 1)
        if tap_dim is not None:
            self.attentionpool2D = AttentionPool2d(tap_grid, tap_dim, heads, ops)
        taps = [*[None] * (depth - 1), tap_dim]
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(channels, heads, context_dim, tap, ops) for tap in taps
        )
        self.proj_out = ops.Conv2d(channels, channels, 1)

    def forward(
        self, x: Float[Tensor, "b c h w"], context: Float[Tensor, "b m d"], tap: Float[Tensor, "b t k l"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        pooled = None if tap is None else self.attentionpool2D(tap)
        h = rearrange(self.proj_in(self.norm(x)), "b c h w -> b (h w) c")
        for block in self.transformer_blocks[:-1]:
            h = block(h, context)
        h = self.transformer_blocks[-1](h, context, pooled)
        return x + self.proj_out(rearrange(h, "b (h w) c -> b c h w", h=x.shape[2]))


class ConcatenatingTransformer(SpatialTransformer):
    """One that reads its tap by concatenation, which the paper compares with attn3: the tap's channels beside the
    map's own, brought back to these by a 1 x 1 convolution, before all else. The map is added back, and the
    convolution starts small, so that the rest of the network is at first what it was."""

    def __init__(
        self, channels: int, heads: int, context_dim: int, tap_dim: int, operations: Any = nn, depth: int = 1
    ) -> None:
        super().__init__(channels, heads, context_dim, operations=operations, depth=depth)
        self.fuse = operations.Conv2d(channels + tap_dim, channels, 1)
        drawn(self.fuse.weight.data, 0.02)

    def forward(
        self, x: Float[Tensor, "b c h w"], context: Float[Tensor, "b m d"], tap: Float[Tensor, "b t h w"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        if tap is not None:
            x = x + self.fuse(torch.cat([x, tap], dim=1))
        return super().forward(x, context)
