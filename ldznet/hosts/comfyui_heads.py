"""Heads in ComfyUI's memory management: it owns their weights, and moves them before a pass.

Only `nodes/` may import this. Imports comfy, attention, checkpoints, models and `comfyui_world`.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management as memory
import comfy.ops
import torch
from torch import Tensor

from ..attention import AttentionConfig, AttentionHead
from ..checkpoints import load_head
from ..config import HeadConfig
from ..contracts import FAMILIES, Conditioning, Host, Taps
from ..errors import HostError
from ..models import DeltaHead, Network, TrainedHead
from .comfyui_world import patcher
from .memo import Memo

DTYPES = [torch.float16, torch.bfloat16, torch.float32]  # a head's, best first
_WITHOUT_FILE: weakref.WeakKeyDictionary[Any, Head] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Head:
    """A head under ComfyUI's memory management: `patcher` owns the weights, `name` is what the user chose.

    `memo` holds the last soft maps, for ComfyUI 0.25 drops what a node expanded to as soon as any other output of the
    next prompt is there: then a new threshold alone would run the UNet again.
    """

    name: str
    patcher: Any
    memo: Memo = field(default_factory=Memo)

    @property
    def config(self) -> HeadConfig | AttentionConfig:
        """What the head asks of a host."""
        return self.patcher.model.head_config

    @property
    def reads_attention(self) -> bool:
        """Whether it is a head without weights."""
        return isinstance(self.patcher.model, AttentionHead)

    @property
    def reads_concepts(self) -> bool:
        """Whether it takes passes of its own for whatever it is asked, as concept attention does."""
        return isinstance(self.config, AttentionConfig) and self.config.concepts

    def running(self) -> RunningHead | AttentionHead:
        """What a predictor takes."""
        return self.patcher.model if self.reads_attention else RunningHead(self.patcher)


class RunningHead(TrainedHead):
    """A trained head that ComfyUI brings to its device before each pass."""

    def __init__(self, patcher: Any) -> None:
        self._patcher, self.head_config = patcher, patcher.model.head_config

    @property
    def example(self) -> Tensor:
        """Of the dtype and device that passes run in: offloaded weights lie elsewhere."""
        return torch.empty(0, dtype=self._patcher.model.example.dtype, device=self._patcher.load_device)

    def fitted_to(self, host: Host) -> RunningHead:
        """Itself; raises HostError for a model of a family that the head does not fit."""
        family = FAMILIES[host.family]
        if not family.has_trained_heads:
            raise HostError(
                f"Expected an SD 1.x, 2.x or SDXL UNet in the socket model, got {family.title}. No trained head fits "
                "it yet: load the checkpoint that the head belongs to, or take the head attention (no download) for "
                "this model."
            )
        return super().fitted_to(host)

    @torch.no_grad()
    def masks_and_presence(
        self, latents: Tensor, timesteps: Tensor, context: Tensor, taps: Taps | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """As LDZNet's."""
        return self._loaded(latents).masks_and_presence(latents, timesteps, context, taps)

    @torch.no_grad()
    def masks_over(self, host: Host, rows: Tensor, text: Conditioning, taps: Taps) -> tuple[Tensor, Tensor | None]:
        """As the head's own: a delta head runs the model's UNet."""
        if isinstance(self._patcher.model, DeltaHead):
            return self._loaded(rows).masks_over(host, rows, text, taps)
        return super().masks_over(host, rows, text, taps)

    def _loaded(self, latents: Tensor) -> Any:
        """The network, where ComfyUI wants it for a pass over `latents`."""
        needed = latents.shape[0] * latents.shape[2] * latents.shape[3] * self.head_config.unet.model_channels * 4096
        memory.load_models_gpu([self._patcher], memory_required=needed)
        return self._patcher.model


def open_head(source: str, name: str) -> Head:
    """The head in a .safetensors file, or an embedded one, as ComfyUI's to move. Raises CheckpointError."""
    device = memory.get_torch_device()
    dtype = memory.unet_dtype(device=device, supported_dtypes=DTYPES)
    head: Network = load_head(source, dtype=dtype, operations=comfy.ops.manual_cast)
    return Head(name, patcher(head, device))


def attention_head(model: Any) -> Head:
    """The head that needs no file, one for each MODEL: what its memo holds goes with that."""
    if model not in _WITHOUT_FILE:
        _WITHOUT_FILE[model] = open_head("attention", "attention")
    return _WITHOUT_FILE[model]
