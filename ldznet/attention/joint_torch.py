"""Attention of transformers that hold text and picture in one sequence, seen as it reaches torch's own kernel.

diffusers' attention processors make queries and keys, norms and rotary embeddings included, and give them to
`torch.nn.functional.scaled_dot_product_attention`. A `TorchFunctionMode` looks at that call on its way: processors,
modules and results stay what they are, and whichever processor a pipeline has set is the one that is read. Imports
this folder's joint; `hosts/hf_diffusers_joint.py` imports it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .joint import Reader


class TorchReader(Reader):
    """Of a network whose blocks are called with `hidden_states` (the picture's rows) and `encoder_hidden_states`."""

    unseen = (
        "no attention call reached torch's scaled_dot_product_attention. Set the transformer's attention backend to "
        '"native"'
    )
    running = ""

    def listening(self) -> TorchFunctionMode:
        """Looks at every attention call of this thread while the network runs."""
        return _Listening(self)

    def start(self, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Nothing: each block is given text and picture."""

    def around(self, name: str) -> Callable[..., None]:
        """A pre-hook that says which block runs, and where its text and picture are."""

        def enter(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            if threading.get_ident() != self.thread:
                return
            picture, text = (named[part].shape[1] for part in ("hidden_states", "encoder_hidden_states"))
            self.maps.pop(name, None)
            self.text, self.running, self.fault = text, name, ""
            if picture != self.grid[0] * self.grid[1]:
                self.running = ""
                self.fault = f"{self.grid[0]} x {self.grid[1]} rows of the picture were expected, and {picture} came"

        return enter

    def taken(self, name: str) -> tuple[Tensor | None, Tensor | None]:
        """As `Reader.taken`; calls of blocks that are not read belong to none."""
        self.running = ""
        return super().taken(name)

    def called(self, kernel: Callable[..., Tensor], args: Sequence[Any], named: Mapping[str, Any]) -> Tensor:
        """What torch's kernel makes of a call, which is looked at if it is the one of the block that runs."""
        if not self.running or self.running in self.maps:
            return kernel(*args, **named)
        given = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | dict(named)
        query, key, value, mask = given.pop("query"), given.pop("key"), given.pop("value"), given.pop("attn_mask", None)

        def run(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None, **_: Any) -> Tensor:
            return kernel(query, key, value, attn_mask=mask, **given)

        as_host = (query, key, value, query.shape[1], mask)
        return self.attended(self.running, run, as_host, {"scale": given.get("scale")})


class _Listening(TorchFunctionMode):
    """Tells a reader of attention calls; each runs as it is."""

    def __init__(self, reader: TorchReader) -> None:
        super().__init__()
        self.reader = reader

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self.reader.called(func, args, named)
        return func(*args, **named)
