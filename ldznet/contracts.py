"""The central types: what a host offers, what a head asks for, what a segmentation is. Imports errors and shapes alone.

`Block` and `TapSpec` describe; `Host` and `Segmenter` are protocols, so that no model or predictor ever imports a host.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from .errors import InputError
from .shapes import Float, Int

STAGES = ("input", "middle", "output")


@dataclasses.dataclass(frozen=True)
class Block:
    """A UNet block in LDM numbering, as in ComfyUI's `transformer_options["block"]`. `str()` gives "input.8"."""

    stage: str
    index: int

    @classmethod
    def parse(cls, name: str) -> Block:
        """Block from its name, "input.8", "middle.0" or "output.5"; raises InputError on anything else."""
        stage, _, index = str(name).partition(".")
        if stage not in STAGES or not index.isdecimal():
            raise InputError(f'Expected a block such as "input.8", "middle.0" or "output.5", got "{name}".')
        return cls(stage, int(index))

    def __str__(self) -> str:
        return f"{self.stage}.{self.index}"

    @property
    def order(self) -> tuple[int, int]:
        """Sorts blocks in the order in which a UNet runs them."""
        return STAGES.index(self.stage), self.index


class TapSpec(NamedTuple):
    """What comes out right after a block's spatial transformer: its channels, and its stride in latent pixels."""

    block: str
    channels: int
    stride: int


Taps = Mapping[str, Tensor]
"""Read-only mapping from block name to tensor b c h w: the hidden state after that block's spatial transformer."""


@runtime_checkable
class Host(Protocol):
    """A loaded diffusion model. Every call leaves it as it was, also when it raises."""

    @property
    def specs(self) -> Mapping[str, TapSpec]: ...

    @property
    def context_dim(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def encode_image(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 4 h/8 w/8"]:
        """Model-space latents (times the scale factor) of `pixels` in [-1, 1]: the mode of the VAE's posterior."""
        ...

    def decode_latents(self, latents: Float[Tensor, "b 4 h w"]) -> Float[Tensor, "b 3 8*h 8*w"]:
        """`pixels` in [-1, 1] of model-space latents."""
        ...

    def encode_text(self, phrases: Sequence[str]) -> Float[Tensor, "b 77 d"]:
        """Context of each phrase; over-long text raises InputError with the count of its tokens."""
        ...

    def add_noise(
        self, latents: Float[Tensor, "b 4 h w"], noise: Float[Tensor, "b 4 h w"], timesteps: Int[Tensor, " b"]
    ) -> Float[Tensor, "b 4 h w"]:
        """Latents noised to `timesteps` (0..999) by the model's own schedule."""
        ...

    def extract(
        self,
        latents: Float[Tensor, "b 4 h w"],
        timesteps: Int[Tensor, " b"],
        context: Float[Tensor, "b n d"],
        blocks: Sequence[str],
    ) -> Taps:
        """Taps of one conditional pass over already noised latents, ended right after the last block asked for."""
        ...


@runtime_checkable
class SmallVocabulary(Protocol):
    """A host whose text encoder has seen a few words only: the tiny world's. No other has this."""

    def unknown_words(self, texts: Sequence[str]) -> list[str]:
        """The words of `texts` that it has never seen, each once, in order."""
        ...


@dataclasses.dataclass(frozen=True)
class Conditioning:
    """What prompts give a UNet: `context`, and what else its host needs with it (SDXL's pooled text), opaque here."""

    context: Float[Tensor, "b n d"]
    extras: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)


T = TypeVar("T")
Observer = Callable[[nn.Module], AbstractContextManager[T]]
"""Makes, for a host's UNet, the context in which one pass is to run: hooks that read and leave everything as it was."""


@runtime_checkable
class AttentionHost(Host, Protocol):
    """A host that shows its attention too: what a mask without a trained head needs. No other head asks for it."""

    @property
    def family(self) -> str:
        """ "tiny", "sd1", "sd2" or "sdxl"; chooses the constants of the attention head."""
        ...

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text of any length, without start, end and padding."""
        ...

    def condition(self, prompts: Sequence[str]) -> Conditioning:
        """As `encode_text`, with all else that a pass needs; over-long text raises InputError."""
        ...

    def observe(
        self,
        latents: Float[Tensor, "b 4 h w"],
        timesteps: Int[Tensor, " b"],
        conditioning: Conditioning,
        observer: Observer[T],
    ) -> T:
        """What `observer(unet)` yields, after one conditional pass over already noised latents ran inside it."""
        ...


@runtime_checkable
class Segmenter(Protocol):
    """A head: latents, text and (for LD-ZNet) taps in, logits out."""

    def __call__(
        self,
        latents: Float[Tensor, "b 4 h w"],
        timesteps: Int[Tensor, " b"],
        context: Float[Tensor, "b n d"],
        taps: Taps | None = None,
    ) -> Float[Tensor, "b 1 8*h 8*w"]: ...

    def presence(
        self,
        latents: Float[Tensor, "b 4 h w"],
        timesteps: Int[Tensor, " b"],
        context: Float[Tensor, "b n d"],
        taps: Taps | None = None,
    ) -> Float[Tensor, " b"] | None: ...


@runtime_checkable
class JointSegmenter(Protocol):
    """A head that needs no training: it asks its host for more than taps, and takes all phrases at once."""

    @property
    def head_config(self) -> Any:
        """Constants, under the names of `HeadConfig` where the predictor reads them."""
        ...

    def fitted_to(self, host: Host) -> JointSegmenter:
        """The same with the constants for `host`; raises HostError for one that it cannot read."""
        ...

    def segment_together(
        self, host: Host, latents: Float[Tensor, "b 4 h w"], phrases: Sequence[str], timestep: int, seed: int
    ) -> tuple[Float[Tensor, "b p h w"], Float[Tensor, "b p"]]:
        """Logits and presence scores in [0, 1] of all phrases, from clean latents; it noises them itself."""
        ...
