"""Convolutions on a CPU in less time, for passes over networks that may be somebody else's. Imports shapes alone.

oneDNN brings a layer's weights into another order at every call, which few pixels do not pay back, and multiplies every
weight by every pixel. Inside `quicker_convolutions` a small grid is one matrix product over its unfolded pixels, and a
larger one is filtered in tiles of m x m outputs by (m + 2)^2 products for each pair of channels in the place of 9 m^2:
Winograd's minimal filtering (Lavin and Gray, CVPR 2016, arXiv 1509.09308).

No layer is touched: what is caught is this thread's call of `torch.conv2d`, with whatever weights the layer, its host
or another pack hands it. Nothing is kept from one call to the next but the three small matrices of each m.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .shapes import Float

BUFFER = 2**22  # numbers in a buffer: 16 MB, which the allocator keeps; larger ones cost a page fault every 4 kB
FEW_WEIGHTS = 128 * 128  # pairs of channels: below, moving numbers about takes longer than multiplying them
FEW_PIXELS = 100  # up to here unfolding costs less than transforming the weights; docs/cost.md has the times
MANY_TILES = 64  # of 4 x 4, from which on their transform of the weights, four times the weights' size, pays

FILTERING = {  # by m, the paper's B^T (inputs), G (weights) and A^T (outputs) for one axis
    2: (
        ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
        ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
        ((1, 1, 1, 0), (0, 1, -1, -1)),
    ),
    4: (
        (
            *((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0)),
            *((0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1)),
        ),
        (
            *((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6)),
            *((1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1)),
        ),
        ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
    ),
}


class quicker_convolutions(TorchFunctionMode):
    """Inside, this thread's convolutions of float32 on a CPU without gradients run in the quickest way for their size.

    An output differs from torch's own by at most 5e-5 of the largest. Whatever a way is not made for goes to torch:
    other kernels, groups, dilations, dtypes, devices, layouts, subclasses of tensors, autocast, gradients.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d and not types and not torch.is_grad_enabled():
            way = _way(*args, **kwargs)
            if way is not None:
                return way()
        return func(*args, **kwargs)


def _way(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Callable[[], Tensor] | None:
    """How to convolve these (arguments as torch.conv2d's) without torch; None where torch is to do it, as for groups,
    whose weights have fewer channels than the input."""
    fits = (
        *(all(_is_plain(tensor) for tensor in (input, weight, bias) if tensor is not None), weight.is_contiguous()),
        *(input.ndim == 4, weight.shape[2:] == (3, 3), input.shape[1:2] == weight.shape[1:2], _is_exact()),
        *(_pair(padding) == (1, 1), _pair(dilation) == (1, 1), weight.shape[:2].numel() >= FEW_WEIGHTS),
    )
    if not all(fits):
        return None
    strides = _pair(stride)
    pixels = len(input) * _steps(input.shape[2], strides[0]) * _steps(input.shape[3], strides[1])
    if 0 < pixels <= FEW_PIXELS:
        return functools.partial(unfolded, input, weight, bias, strides)
    if strides != (1, 1) or not pixels:
        return None
    many = len(input) * _steps(input.shape[2], 4) * _steps(input.shape[3], 4) >= MANY_TILES
    return functools.partial(filtered, input, weight, bias, 4 if many else 2)


def unfolded(
    x: Float[Tensor, "b c h w"], weight: Float[Tensor, "d c 3 3"], bias: Tensor | None, stride: tuple[int, int]
) -> Float[Tensor, "b d H W"]:
    """The convolution with padding 1 as one product of matrices, all pictures beside each other."""
    height, width = _steps(x.shape[2], stride[0]), _steps(x.shape[3], stride[1])
    columns = F.unfold(x, 3, padding=1, stride=stride)  # b c*9 H*W
    columns = columns.transpose(0, 1).reshape(columns.shape[1], -1)  # c*9 b*H*W
    out = torch.mm(weight.view(len(weight), -1), columns)
    if bias is not None:
        out += bias[:, None]
    return out.view(len(weight), len(x), height, width).transpose(0, 1).contiguous()


def filtered(
    x: Float[Tensor, "b c h w"], weight: Float[Tensor, "d c 3 3"], bias: Tensor | None, m: int
) -> Float[Tensor, "b d h w"]:
    """The convolution with padding 1 in tiles of m x m (2 or 4), some rows of tiles and some outputs at a time."""
    (batch, channels, height, width), outputs, cells = x.shape, len(weight), (m + 2) ** 2
    of_input, of_weight, of_output = _matrices(m)
    down, across = _steps(height, m), _steps(width, m)
    tiles = F.pad(x, (1, across * m - width + 1, 1, down * m - height + 1)).unfold(2, m + 2, m).unfold(3, m + 2, m)
    out = x.new_empty(batch, outputs, down, m, across, m)
    for rows in _parts(down, cells * channels * batch * across):
        band = tiles[:, :, rows]  # b c rows across i j
        inputs = (of_input @ band.permute(4, 5, 1, 0, 2, 3).reshape(cells, -1)).view(cells, channels, -1)
        for part in _parts(outputs, cells * channels):
            kernels = (of_weight @ weight[part].view(-1, 9).t()).view(cells, -1, channels)
            products = of_output @ torch.bmm(kernels, inputs).view(cells, -1)
            products = products.view(m, m, -1, batch, band.shape[2], across)  # i j d b rows across
            out[:, part, rows] = products.permute(3, 2, 4, 0, 5, 1)
    if bias is not None:
        out += bias[:, None, None, None, None]
    return out.view(batch, outputs, down * m, across * m)[:, :, :height, :width].contiguous()


def _parts(length: int, numbers: int) -> list[slice]:
    """Slices of about one size that cover a length of which each step takes `numbers`, as BUFFER holds them."""
    step = -(-length // -(-length * numbers // BUFFER))
    return [slice(first, first + step) for first in range(0, length, step)]


@functools.cache
def _matrices(m: int) -> list[Tensor]:
    """`FILTERING` for both axes at once, over tiles that are written as vectors."""
    rows = [torch.tensor(matrix, dtype=torch.float32, device="cpu") for matrix in FILTERING[m]]
    return [torch.kron(matrix, matrix) for matrix in rows]


def _is_plain(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.layout == torch.strided


def _is_exact() -> bool:
    """Whether float32 matrices are multiplied as such: neither autocast nor torch's setting of precision forbid it."""
    try:
        return torch.get_float32_matmul_precision() == "highest" and not torch.is_autocast_enabled("cpu")
    except TypeError:  # torch before 2.4
        return not torch.is_autocast_cpu_enabled()
    except RuntimeError:  # torch will not say, where it was set by backend
        return False


def _pair(value: Any) -> tuple[Any, ...]:
    """A size as torch.conv2d takes it, for both axes; of one that has a name ("same"), letters."""
    return (value, value) if isinstance(value, int) else (*value, *value)[:2]


def _steps(length: int, stride: int) -> int:
    """How many strides reach over a length."""
    return -(-length // stride)
