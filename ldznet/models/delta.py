"""The delta head: the host's own UNet a second time, changed for that one pass by what a small file holds.

The published head is a UNet of 859 M parameters that started as the very one which the host has loaded, and the paper's
additions (section 3.3, figure 4). Here the first is kept as its difference from the host's: products of low rank for
matrices and convolutions (Hu et al., LoRA, ICLR 2022), norms and biases whole. Hooks add the differences while the
pass runs, and put attn3 behind attn2; no weight of the host is touched: its LoRAs, casts and offloading stay its own.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..config import HeadConfig, UNetConfig
from ..contracts import AttentionHost, Conditioning, Host, Observer, Taps, TapSpec
from ..errors import HostError, TapError
from ..parts import OUT, parts_of
from ..schedule import alphas_cumprod
from ..shapes import Float, tap_size
from ..taps import exclusively
from .checking import require_inputs
from .layers import AttentionPool2d, CrossAttention, drawn, position_at
from .maskhead import MaskHead
from .unet import UNet

Layers = Mapping[str, Mapping[str, torch.Size]]
"""By the LDM's name of a layer with weights: the shapes of its parameters, "weight" and "bias"."""


@functools.lru_cache(maxsize=8)
def layers_of(config: UNetConfig) -> Layers:
    """Every layer that a delta head may change, in order: all of a UNet's but those after its last hidden state."""
    with torch.device("meta"):
        unet = UNet(config)
    found: dict[str, dict[str, torch.Size]] = {}
    for name, parameter in unet.named_parameters():
        layer, _, kind = name.rpartition(".")
        if not layer.startswith(f"{OUT}."):
            found.setdefault(layer, {})[kind] = parameter.shape
    return found


def matrices_of(config: UNetConfig) -> list[str]:
    """The layers whose weight is a matrix or a convolution: `HeadConfig.ranks` has a rank for each, in this order."""
    return [name for name, shapes in layers_of(config).items() if len(shapes["weight"]) > 1]


class Product(nn.Module):
    """A difference of low rank, up · down, of a linear layer or a convolution, and that of its bias, whole."""

    def __init__(self, shapes: Mapping[str, torch.Size], rank: int) -> None:
        super().__init__()
        weight = shapes["weight"]
        self.down = nn.Parameter(torch.zeros(rank, *weight[1:])) if rank else None
        self.up = nn.Parameter(torch.zeros(weight[0], rank)) if rank else None
        self.bias = nn.Parameter(torch.zeros(shapes["bias"])) if "bias" in shapes else None

    def forward(self, layer: Any, x: Tensor, output: Tensor) -> Tensor:
        if self.down is not None and self.up is not None:
            output = output + self._product(layer, x)
        if self.bias is None:
            return output
        bias = self.bias.to(output)
        return output + (bias[:, None, None] if output.ndim == 4 else bias)

    def _product(self, layer: Any, x: Tensor) -> Tensor:
        assert self.down is not None
        assert self.up is not None
        down, up = self.down.to(x), self.up.to(x)
        if x.ndim != 4:
            return F.linear(F.linear(x, down.flatten(1)), up)
        down = down.reshape(*down.shape[:2], *down.shape[2:] or (1, 1))
        narrow = F.conv2d(x, down, stride=layer.stride, padding=layer.padding)
        return F.conv2d(narrow, up[:, :, None, None])


class Norm(nn.Module):
    """The difference of a norm's weight and bias, whole."""

    def __init__(self, shapes: Mapping[str, torch.Size]) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.zeros(shapes[kind])) for kind in ("weight", "bias"))

    def forward(self, layer: Any, x: Tensor, output: Tensor) -> Tensor:
        weight, bias = self.weight.to(output), self.bias.to(output)
        if x.ndim == 4:
            plain = F.group_norm(x, layer.num_groups, eps=layer.eps)
            weight, bias = weight[:, None, None], bias[:, None, None]
        else:
            plain = F.layer_norm(x, x.shape[-1:], eps=layer.eps)
        return output + plain * weight + bias


class Addition(nn.Module):
    """What the paper adds to a spatial transformer: all tokens of a tap, and attn3 over them."""

    def __init__(self, channels: int, tap_dim: int, grid: tuple[int, int], heads: int, operations: Any) -> None:
        super().__init__()
        self.attentionpool2D = AttentionPool2d(grid, tap_dim, heads, operations)
        self.norm_sd = operations.LayerNorm(channels)
        self.attn3 = CrossAttention(channels, tap_dim, heads, operations)

    def forward(self, before: Tensor, text: Tensor, tap: Tensor) -> Tensor:
        """What takes attn2's place: its output `text`, and attn3's over what the residual sum will be."""
        dtype = self.norm_sd.weight.dtype
        h, pooled = (before + text).to(dtype), self.attentionpool2D(tap.to(dtype))
        return text + self.attn3(self.norm_sd(h), pooled).to(text.dtype)


class SlimAddition(nn.Module):
    """The same at a fraction of the size: attn3 is `width` wide inside, and reads the tap's own cells, which it tells
    apart, as those that ask, by one positional embedding; there is no self-attention among them before."""

    def __init__(self, channels: int, grid: tuple[int, int], heads: int, width: int, operations: Any) -> None:
        super().__init__()
        self.grid = grid
        self.positional_embedding = nn.Parameter(drawn(torch.empty(channels, grid[0] * grid[1]), channels**-0.5))
        self.norm_sd, self.norm_tap = operations.LayerNorm(channels), operations.LayerNorm(channels)
        self.attn3 = CrossAttention(channels, channels, heads, operations, width)

    def forward(self, before: Tensor, text: Tensor, tap: Tensor) -> Tensor:
        """As `Addition`'s."""
        dtype = self.norm_sd.weight.dtype
        place = position_at(self.positional_embedding, self.grid, (tap.shape[2], tap.shape[3])).T
        asking = self.norm_sd((before + text).to(dtype)) + place.to(dtype)
        read = self.norm_tap(rearrange(tap.to(dtype), "b c h w -> b (h w) c")) + place.to(dtype)
        return text + self.attn3(asking, read).to(text.dtype)


class Hooks:
    """What a delta head's hooks saw of a pass, and how often each fired."""

    def __init__(self) -> None:
        self.seen: dict[str, Tensor] = {}
        self.fired = Counter[str]()

    def require_once(self) -> None:
        """Raises TapError that names a layer which did not run exactly once."""
        wrong = [name for name, times in self.fired.items() if times != 1]
        if wrong:
            raise TapError(
                f"Expected {wrong[0]} to run once in the head's pass, got {self.fired[wrong[0]]} times "
                f"({len(wrong)} of {len(self.fired)} layers are so). Is the UNet compiled, cached or patched? Take "
                "that away for the mask."
            )


class DeltaHead(MaskHead, nn.Module):
    """A head that runs the host's UNet under its own changes: two passes with taps (LD-ZNet), one without (ZNet)."""

    def __init__(self, config: HeadConfig, operations: Any = nn) -> None:
        super().__init__()
        self.head_config = config
        layers, ranks = layers_of(config.unet), dict(zip(matrices_of(config.unet), config.ranks, strict=True))
        self.changes = nn.ModuleDict(
            {
                layer_key(name): Product(shapes, ranks[name]) if name in ranks else Norm(shapes)
                for name, shapes in layers.items()
                if ranks.get(name, 1) or "bias" in shapes
            }
        )
        self.additions = nn.ModuleDict(
            {layer_key(block): _addition(config, spec, operations) for block, spec in config.tap_specs.items()}
        )
        self._end_in(config.unet.model_channels, config.mask_channels, config.has_presence, operations)

    @property
    def example(self) -> Tensor:
        """A parameter."""
        return next(self.parameters())

    def fitted_to(self, host: Host) -> DeltaHead:
        """Itself; raises HostError for a host that is not what it was trained on, or that shows no pass of its UNet."""
        if not isinstance(host, AttentionHost):
            raise HostError(
                f"Expected a host whose UNet can run again, got a {type(host).__name__}: it has no `observe`."
            )
        return super().fitted_to(host)

    def begin(self) -> DeltaHead:
        """Itself, as training starts: it changes nothing yet, and every part of it has a gradient soon."""
        for change in self.changes.values():
            if isinstance(change, Product) and change.down is not None:
                nn.init.kaiming_uniform_(change.down, a=5**0.5)
        for addition in self.additions.values():
            last: Any = addition.attn3
            nn.init.zeros_(last.to_out[0].weight)
            nn.init.zeros_(last.to_out[0].bias)
        return self

    def masks_over(
        self, host: Any, rows: Float[Tensor, "n c h w"], text: Conditioning, taps: Taps
    ) -> tuple[Float[Tensor, "n 1 8*h 8*w"], Float[Tensor, " n"] | None]:
        """Mask logits and presence logits, from a pass of the host's UNet over clean latents at timestep 0."""
        require_inputs(self.head_config, rows, taps)
        return self.read(self.features_over(host, rows, text, lambda unet: self.applied(unet, taps)))

    def features_over(
        self, host: Any, rows: Float[Tensor, "n c h w"], text: Conditioning, changed: Observer[Any]
    ) -> Float[Tensor, "n f h w"]:
        """The last hidden state of a pass over clean latents at timestep 0, in which `changed` changes the UNet."""
        return host.observe(*clean(host, rows), text, changed)[OUT].to(self.example)

    @contextlib.contextmanager
    def applied(self, unet: nn.Module, taps: Taps) -> Iterator[dict[str, Tensor]]:
        """Changes one pass of `unet`, which runs inside; yields a dict that then holds the last hidden state, "out".

        Every hook has to fire exactly once: compiled graphs and replaced layers skip them in silence, and a mask from
        half of the changes would look like one. Raises TapError that names those that did not. Hooks are gone after.
        """
        with exclusively(unet), self.hooked(unet, taps, threading.get_ident()) as hooks:
            yield hooks.seen
        hooks.require_once()

    @contextlib.contextmanager
    def hooked(self, unet: nn.Module, taps: Taps, reader: int | None = None) -> Iterator[Hooks]:
        """Hooks on `unet` as long as the context lasts, which for training is until gradients are there: layers that a
        checkpoint runs again then have to be changed again. `reader`: the thread whose passes are changed, all if None.
        """
        parts, hooks, handles = parts_of(unet), Hooks(), []

        def counted(name: str, change: Callable[..., Any]) -> Callable[..., Any]:
            def hook(layer: nn.Module, args: Any, *output: Any) -> Any:
                if reader not in (None, threading.get_ident()):
                    return None
                hooks.fired[name] += 1
                return change(layer, args[0], *output)

            return hook

        try:
            for name, change in self._hooks(taps, hooks.seen).items():
                layer, _, place = name.partition(" ")
                if layer not in parts:
                    raise TapError(f"Expected a UNet with {layer}, got none. Use the model that the head belongs to.")
                register: Any = parts[layer].register_forward_pre_hook if place else parts[layer].register_forward_hook
                handles.append(register(counted(name, change)))
                hooks.fired[name] = 0
            yield hooks
        finally:
            for handle in handles:
                handle.remove()

    def _hooks(self, taps: Taps, seen: dict[str, Tensor]) -> dict[str, Callable[..., Any]]:
        """By layer, what is done to its output; by layer and " before", what is read of its input."""

        def read(name: str) -> Callable[[Any, Tensor], None]:
            def reader(layer: Any, x: Tensor) -> None:
                seen[name] = x.clone()  # hosts add to it in place

            return reader

        layers = layers_of(self.head_config.unet)
        hooks: dict[str, Callable[..., Any]] = {
            name: self.changes[layer_key(name)] for name in layers if layer_key(name) in self.changes
        }
        for block in self.head_config.tap_specs:
            transformer = _last_block(layers, block)
            hooks[f"{transformer}.norm2 before"] = read(block)
            hooks[f"{transformer}.attn2"] = functools.partial(
                _added, self.additions[layer_key(block)], seen, block, taps
            )
        hooks[f"{OUT} before"] = read(OUT)
        return hooks


def _addition(config: HeadConfig, spec: TapSpec, operations: Any) -> nn.Module:
    grid, heads = tap_size(config.latent_grid, spec.stride), config.unet.num_heads
    if config.attn3_width:
        return SlimAddition(spec.channels, grid, heads, config.attn3_width, operations)
    own = config.unet.tap_specs()[spec.block].channels
    return Addition(own, spec.channels, grid, heads, operations)


def _added(
    addition: nn.Module, seen: dict[str, Tensor], block: str, taps: Taps, layer: Any, x: Tensor, text: Tensor
) -> Tensor:
    return addition(seen.pop(block), text, taps[block])


def clean(host: Host, latents: Float[Tensor, "n c h w"]) -> tuple[Tensor, Tensor]:
    """`latents` and timesteps such that the host's UNet gets those very latents, at timestep 0 (paper, section 3.2)."""
    timesteps = torch.zeros(len(latents), dtype=torch.int64, device=latents.device)
    scaled = latents / float(alphas_cumprod()[0]) ** 0.5
    return host.add_noise(scaled, torch.zeros_like(scaled), timesteps), timesteps


def ldm_name(block: str) -> str:
    """ "input.8" to the name of its spatial transformer."""
    stage, _, index = block.partition(".")
    return "middle_block.1" if stage == "middle" else f"{stage}_blocks.{index}.1"


def _last_block(layers: Layers, block: str) -> str:
    """The name of the last transformer block of a spatial transformer: attn3 stands there."""
    name, depth = f"{ldm_name(block)}.transformer_blocks", 1
    while f"{name}.{depth}.norm2" in layers:
        depth += 1
    return f"{name}.{depth - 1}"


def layer_key(name: str) -> str:
    """A layer's name as a module's: without a dot."""
    return name.replace(".", "_")
