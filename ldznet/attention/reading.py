"""Reads attention out of a denoising UNet: forward hooks on `to_q` and `to_k`, and the softmax done here.

The host's attention runs as ever, with whatever kernel it has; modules are found by their names, which are the same in
the LDM, ComfyUI, A1111, Forge and diffusers. Imports contracts, errors, shapes and taps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from ..contracts import TapSpec
from ..errors import TapError
from ..shapes import Float, Size, tap_size
from ..taps import exclusively, transformers_of, watching

CROSS, SELF = "attn2", "attn1"  # their names in every host's transformer blocks
PARTS = ("to_q", "to_k")  # what is read of each
MOST_SCORES = 2**24  # attention scores held at once, over all heads: 64 MB in float32


class Attention(NamedTuple):
    """Attention probabilities, float32, averaged over heads and over the layers of a block's transformer.

    `cross`: by block, b n h w, how much each pixel attends to each of n text tokens (they sum to 1 over n).
    `self_attention`: by block, b (h w) (h w), from each pixel to every pixel (rows sum to 1).
    """

    cross: dict[str, Tensor]
    self_attention: dict[str, Tensor]


class _Layer:
    """One attention layer: gathers its queries and keys, then makes its probabilities and lets both go."""

    def __init__(self, block: str, number: int, kind: str, module: nn.Module) -> None:
        self.name, self.block, self.kind, self.module = f"{block}.{number}.{kind}", block, kind, module
        self.heads = _heads_of(self.name, module)
        self.parts: dict[str, Tensor] = {}

    def take(self, part: str, output: Tensor, pixels: Size) -> Tensor | None:
        """The probabilities b n m as soon as both parts are there; `output` is its own to keep.

        Raises TapError where they are not of `pixels`: tokens were merged, or pictures cut into tiles.
        """
        self.parts[part] = output
        if len(self.parts) < 2:
            return None
        query, key = self.parts.pop("to_q"), self.parts.pop("to_k")
        self._require_pixels(query, pixels)
        if self.kind == SELF:
            self._require_pixels(key, pixels)
        if len(query) != len(key):
            raise TapError(f"Expected as many rows of keys as of queries in {self.name}, got {len(key)}, {len(query)}.")
        return probabilities(query, key, self.heads)

    def _require_pixels(self, part: Tensor, size: Size) -> None:
        if part.shape[1] != size[0] * size[1]:
            raise TapError(
                f"Expected {size[0]} x {size[1]} tokens in {self.name}, got {part.shape[1]}. Switch token merging off."
            )


@torch.no_grad()
def probabilities(
    query: Float[Tensor, "b n d"], key: Float[Tensor, "b m d"], heads: int, most_scores: int = MOST_SCORES
) -> Float[Tensor, "b n m"]:
    """softmax(q k^T / sqrt(d / heads)) in float32, averaged over heads: no head's matrix is kept."""
    q, k = (rearrange(x, "b n (heads c) -> b heads n c", heads=heads) for x in (query, key))
    return mean_softmax(q, k, q.shape[3] ** -0.5, most_scores)


def mean_softmax(
    query: Float[Tensor, "b heads n c"],
    key: Float[Tensor, "b heads m c"],
    scale: float,
    most_scores: int,
    columns: slice = slice(None),
    masked: Callable[[Tensor, slice, slice], Tensor] = lambda scores, heads, rows: scores,
) -> Float[Tensor, "b n _"]:
    """softmax(q k^T · scale) over all keys in float32, averaged over heads; of the keys in `columns`.

    No more than `most_scores` scores are held at once: those of as many heads as fit, or of some rows of one, for a
    product of few large matrices is faster than one of many small ones. `masked` gets the scores of `heads` and `rows`.
    """
    batch, heads, count, _ = query.shape
    together = max(1, min(heads, most_scores // (batch * count * key.shape[2])))
    chunk = max(1, most_scores // (batch * together * key.shape[2]))
    width = len(range(key.shape[2])[columns])
    total = torch.zeros(batch, count, width, dtype=torch.float32, device=query.device)
    for first in range(0, heads, together):
        some = slice(first, first + together)
        keys = key[:, some].float().transpose(2, 3)
        for start in range(0, count, chunk):
            rows = slice(start, min(start + chunk, count))
            scores = masked(query[:, some, rows].float() * scale @ keys, some, rows)
            total[:, rows] += scores.softmax(dim=-1)[..., columns].sum(dim=1)
    return total / heads


@contextlib.contextmanager
def reading_attention(
    unet: nn.Module,
    cross_blocks: Sequence[str],
    self_blocks: Sequence[str],
    specs: Mapping[str, TapSpec],
    latent_size: Size,
    end_early: bool = True,
    choose: Callable[[Tensor], Tensor] = torch.clone,
) -> Iterator[Attention]:
    """Fills an `Attention` while `unet` runs once inside, over latents of `latent_size`; its hooks go whatever happens.

    With `end_early` the pass stops as soon as the last keys are known. Without it, a later run replaces what was read.
    `choose` copies the rows b of queries and keys that are read.
    Raises TapError for a block without such attention. One that never ran, or whose tokens are not its pixels (merged,
    or cut into tiles), raises it too, unless the pass is somebody else's (without `end_early`): then it is missing.
    """
    layers = {**_parts(unet, cross_blocks, CROSS), **_parts(unet, self_blocks, SELF)}
    modules = {name: getattr(layer.module, _part(name)) for name, layer in layers.items()}
    found, means, unreadable = Attention({}, {}), {CROSS: _Mean(), SELF: _Mean()}, set[str]()

    def read(name: str, output: Any) -> None:
        layer = layers[name]
        pixels = tap_size(latent_size, specs[layer.block].stride)
        try:
            maps = layer.take(_part(name), choose(output.detach()), pixels)
        except TapError:
            if end_early:
                raise
            unreadable.add(name)
            return
        if maps is None:
            return
        mean = means[layer.kind].add(layer.block, layer.name, maps)
        if layer.kind == CROSS:
            found.cross[layer.block] = rearrange(mean, "b (h w) n -> b n h w", h=pixels[0])
        else:
            found.self_attention[layer.block] = mean

    with exclusively(unet), watching(modules, read, end_early) as silent:
        yield found
    for name in silent | unreadable:
        (found.cross if layers[name].kind == CROSS else found.self_attention).pop(layers[name].block, None)


Reader = Callable[..., contextlib.AbstractContextManager[Attention]]
"""`reading_attention`, or what reads another kind of network, with the same arguments."""


def reader_of(host: Any) -> Reader:
    """What reads the attention of a host's network: a host whose network is no UNet brings its own."""
    own: Reader = getattr(host, "reading_attention", reading_attention)
    return own


class _Mean:
    """Means over the layers of each block, without holding more than one map a block."""

    def __init__(self) -> None:
        self.seen: dict[str, list[str]] = {}
        self.maps: dict[str, Tensor] = {}

    def add(self, block: str, layer: str, maps: Tensor) -> Tensor:
        seen = self.seen.setdefault(block, [])
        if layer in seen:  # a further run of the UNet
            seen.clear()
        if not seen:
            self.maps[block] = maps
        else:
            self.maps[block] += (maps - self.maps[block]) / (len(seen) + 1)
        seen.append(layer)
        return self.maps[block]


def _parts(unet: nn.Module, blocks: Sequence[str], kind: str) -> dict[str, _Layer]:
    """By the names of what is read, queries and keys, the layers of one kind that they belong to."""
    found: dict[str, _Layer] = {}
    for block, transformer in transformers_of(unet, blocks).items():
        for layer in _layers(block, transformer, kind):
            found |= {f"{layer.name}.{part}": layer for part in PARTS}
    return found


def _part(name: str) -> str:
    return name.rpartition(".")[2]


def _layers(block: str, transformer: nn.Module, kind: str) -> list[_Layer]:
    """A spatial transformer's attention layers of one kind: one in SD 1.x, up to ten in SDXL."""
    found = []
    for i, inner in enumerate(getattr(transformer, "transformer_blocks", ())):
        module = getattr(inner, kind, None)
        has_both = all(isinstance(getattr(module, part, None), nn.Module) for part in PARTS)
        if not isinstance(module, nn.Module) or not has_both:
            raise TapError(f"Expected to_q and to_k in {kind} of {block}, got none. Use a Stable Diffusion UNet.")
        found.append(_Layer(block, i, kind, module))
    if not found:
        raise TapError(f"Expected transformer blocks in {block}, got none. Use a Stable Diffusion UNet.")
    return found


def _heads_of(name: str, module: nn.Module) -> int:
    heads = getattr(module, "heads", None)
    if not isinstance(heads, int):
        raise TapError(f"Expected the number of heads in {name}, got none. Use a Stable Diffusion UNet.")
    return heads
