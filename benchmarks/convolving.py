"""The quickest way of a 3 x 3 convolution on this processor, by size: where the rule of ldznet/convolving.py is from.

    python benchmarks/convolving.py --pairs 3

"packed" is oneDNN's, given weights that lie in its own order already: what a second copy of them would give. One
thread, seconds of the processor, each way the best of its runs, which alternate. The sizes are those of Stable
Diffusion 1.x: its UNet at 384 px, and its VAE's encoder.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ldznet.convolving import filtered, unfolded

SIZES = [  # pictures, channels, outputs, side
    *((1, 1280, 1280, 6), (1, 1280, 1280, 12), (1, 2560, 1280, 12), (4, 1280, 1280, 6), (4, 1280, 1280, 12)),
    *((1, 640, 640, 24), (1, 320, 320, 48), (1, 512, 512, 96), (1, 256, 256, 192), (1, 128, 128, 384)),
]
SMALL = 24  # a side, up to which unfolding and weights in oneDNN's own order can be of use
SHOWN = ("packed", "unfolded", "2 x 2", "4 x 4")


def ways(x: Tensor, weight: Tensor, bias: Tensor) -> dict[str, Callable[[], Tensor]]:
    found: dict[str, Callable[[], Tensor]] = {"torch": lambda: F.conv2d(x, weight, bias, padding=1)}
    if x.shape[2] <= SMALL:
        sizes = ((1, 1), (1, 1), (1, 1), 1, list(x.shape))  # padding, stride, dilation, groups
        packed, own = torch._C._nn.mkldnn_reorder_conv2d_weight(weight.to_mkldnn(), *sizes), bias.to_mkldnn()
        found["packed"] = lambda: F.conv2d(x.to_mkldnn(), packed, own, padding=1).to_dense()
        found["unfolded"] = lambda: unfolded(x, weight, bias, (1, 1))
    return {**found, "2 x 2": lambda: filtered(x, weight, bias, 2), "4 x 4": lambda: filtered(x, weight, bias, 4)}


def matrix_rate(side: int) -> float:
    """GFLOP/s of a product of two square matrices, the best of four."""
    square, best = torch.ones(side, side), float("inf")
    for _ in range(4):
        start = time.thread_time()
        square @ square
        best = min(best, time.thread_time() - start)
    return 2 * side**3 / best / 1e9


@torch.no_grad()
def measured(size: tuple[int, int, int, int], pairs: int) -> tuple[dict[str, float], float]:
    """Seconds of each way, and the largest difference from torch's values as a share of the largest."""
    batch, channels, outputs, side = size
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(shape, generator=generator)
        for shape in ((batch, channels, side, side), (outputs, channels, 3, 3), (outputs,))
    )
    runs = ways(x, weight, bias)
    values = {name: run() for name, run in runs.items()}
    error = max(float((value - values["torch"]).abs().max() / value.abs().max()) for value in values.values())
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(pairs):
        for name, run in runs.items():
            start = time.thread_time()
            run()
            best[name] = min(best[name], time.thread_time() - start)
    return best, error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3, help="runs of each way (default: 3)")
    parser.add_argument("--shrink", type=int, default=1, help="divide channels and sides by this (default: 1)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"a product of matrices: {matrix_rate(2048 // given.shrink):.0f} GFLOP/s")
    print(f"| pictures, channels, outputs, side | torch, GFLOP/s | {' | '.join(SHOWN)} | apart |")
    print("|---|---|---|---|---|---|---|")
    for size in SIZES:
        batch, channels, outputs, side = (size[0], *(max(2, number // given.shrink) for number in size[1:]))
        seconds, error = measured((batch, channels, outputs, side), given.pairs)
        whole = seconds["torch"]
        rate = 18 * batch * channels * outputs * side**2 / whole / 1e9
        shares = [f"{seconds[name] / whole:.2f}" if name in seconds else "" for name in SHOWN]
        print(
            f"| {batch}, {channels}, {outputs}, {side} | {rate:.0f} | {' | '.join(shares)} | {error:.0e} |", flush=True
        )


if __name__ == "__main__":
    main()
