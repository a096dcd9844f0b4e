"""A training step as a CUDA graph: captured once, then replayed without a launch for each of its kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

WARM_UP = 3  # steps run as they are before the capture, so that every library has chosen its kernels

Step = Callable[[Any], dict[str, Tensor]]


class Graphed:
    """`step`, a function of a batch on a CUDA device, with the same result: figures, and whatever it changes in place.

    Batches must keep their shapes; figures are overwritten by the next call.
    """

    def __init__(self, step: Step) -> None:
        self.step, self.calls = step, 0
        self.graph, self.stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        self.batch: Any = None
        self.figures: dict[str, Tensor] = {}

    def __call__(self, batch: Any) -> dict[str, Tensor]:
        self.calls += 1
        if self.calls <= WARM_UP:
            return self._warm(batch)
        if self.calls == WARM_UP + 1:
            self.batch = batch
            with torch.cuda.graph(self.graph):
                self.figures = self.step(self.batch)
        else:
            _copy(batch, self.batch)
        self.graph.replay()
        return self.figures

    def _warm(self, batch: Any) -> dict[str, Tensor]:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            figures = self.step(batch)
        torch.cuda.current_stream().wait_stream(self.stream)
        return figures


def _copy(source: Any, target: Any) -> None:
    if isinstance(source, Tensor):
        target.copy_(source)
    elif isinstance(source, dict):
        for name, part in source.items():
            _copy(part, target[name])
    else:
        for part, place in zip(source, target, strict=True):
            _copy(part, place)
