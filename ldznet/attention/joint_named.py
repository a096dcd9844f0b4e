"""Attention of transformers whose code calls its kernel by a name and hands it no options, seen at that name.

ComfyUI's PixArt, HunyuanDiT and ERNIE-Image call `optimized_attention`, a name of their own Python module, without
`transformer_options`, so that no override is asked. While one pass of one thread is read, that name stands for a
function that looks at a call and then calls whatever stood there, unchanged: any kernel that a user chose or another
pack put there is read alike, with queries and keys after their norms and rotary embeddings. Hooks on projections would
see them before, and `joint_torch` sees no kernel but torch's. Imports this folder's joint and taps;
`hosts/comfyui_joint.py` imports it.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..taps import exclusively
from .joint import Reader


class NamedReader(Reader):
    """Of a network whose layout has `function`."""

    unseen = "no attention call went by its name in this network's code: this host may call it otherwise"
    running = ""

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Stands in for the function while the network runs; another thread that reads a network of this code waits.

        The name is given back, unless another pack has put something there meanwhile: what that calls of ours is then
        a function that hands on.
        """
        part = next(iter(self.layout.modules(self.network).values()))
        code, name = sys.modules.get(type(part).__module__), self.layout.function
        if code is None or not hasattr(code, name):
            yield  # `taken` says so, in a pass of ours
            return
        with exclusively(code):
            there = getattr(code, name)

            @functools.wraps(there)
            def seen(*args: Any, **named: Any) -> Tensor:
                return self.called(there, args, named)

            try:
                setattr(code, name, seen)
                yield
            finally:
                self.running = ""
                if getattr(code, name, None) is seen:
                    setattr(code, name, there)

    def around(self, name: str) -> Callable[..., None]:
        """A pre-hook that says which block runs."""

        def enter(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            if threading.get_ident() == self.thread and not self.fault:
                self.maps.pop(name, None)
                self.running = name

        return enter

    def taken(self, name: str) -> tuple[Tensor | None, Tensor | None]:
        """As `Reader.taken`; calls between blocks belong to none."""
        self.running = ""
        return super().taken(name)

    def called(self, kernel: Callable[..., Tensor], args: Sequence[Any], named: Mapping[str, Any]) -> Tensor:
        """What `kernel` makes of a call, which is looked at if it is of this thread's block that runs."""
        if not self.running or threading.get_ident() != self.thread:
            return kernel(*args, **named)
        return self.attended(self.running, kernel, args, named)
