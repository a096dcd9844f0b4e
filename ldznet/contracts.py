"""The central types: what a host offers, what a head asks for, what a segmentation is. Imports errors and shapes alone.

`Block`, `TapSpec` and `Family` describe; `Host` and `Head` are protocols, so that no model or predictor ever imports a
host.
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

STAGES = ("input", "middle", "output", "joint")  # of a UNet; of a transformer


@dataclasses.dataclass(frozen=True)
class Block:
    """A UNet block in LDM numbering, as in ComfyUI's `transformer_options["block"]`, or one of a transformer's blocks.

    `str()` gives "input.8" or "joint.3"."""

    stage: str
    index: int

    @classmethod
    def parse(cls, name: str) -> Block:
        """Block from its name, "input.8", "middle.0", "output.5" or "joint.3"; raises InputError on anything else."""
        stage, _, index = str(name).partition(".")
        if stage not in STAGES or not index.isdecimal():
            raise InputError(f'Expected a block such as "input.8", "middle.0" or "output.5", got "{name}".')
        return cls(stage, int(index))

    def __str__(self) -> str:
        return f"{self.stage}.{self.index}"

    @property
    def order(self) -> tuple[int, int]:
        """Sorts blocks in the order in which a network runs them."""
        return STAGES.index(self.stage), self.index


class TapSpec(NamedTuple):
    """What comes out right after a block's spatial transformer: its channels, and its stride in latent pixels."""

    block: str
    channels: int
    stride: int


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of diffusion model: how people call it, the width of its published contexts, and what reads it.

    The width tells UNets apart; of transformers it is 0. The attention head reads all families.
    """

    title: str
    context_dim: int

    @property
    def has_trained_heads(self) -> bool:
        """Heads are trained over UNets alone."""
        return self.context_dim > 0


FAMILIES: dict[str, Family] = {  # by `Host.family`; the constants of each for the attention head are in its `CONFIGS`
    "tiny": Family("the tiny world", 64),
    "sd1": Family("SD 1.x", 768),
    "sd2": Family("SD 2.x", 1024),
    "sdxl": Family("SDXL", 2048),
    "sd3": Family("SD 3", 0),
    "flux": Family("Flux.1", 0),
    "flux2": Family("Flux.2", 0),
    "chroma": Family("Chroma", 0),
    "qwen": Family("Qwen-Image", 0),
    "lumina2": Family("Lumina 2", 0),
    "zimage": Family("Z-Image", 0),
    "krea2": Family("Krea 2", 0),
    "anima": Family("Anima", 0),
    "wan": Family("Wan", 0),
    "cosmos": Family("Cosmos Predict2", 0),
    "aura": Family("AuraFlow", 0),
    "hunyuan": Family("Hunyuan Image 2.1", 0),
    "omnigen2": Family("OmniGen2", 0),
    "hidream": Family("HiDream", 0),
    "kandinsky5": Family("Kandinsky 5", 0),
    "ideogram4": Family("Ideogram 4", 0),
    "lens": Family("Lens", 0),
    "longcat": Family("LongCat-Image", 0),
    "pixart": Family("PixArt", 0),
    "hydit": Family("HunyuanDiT", 0),
    "ernie": Family("ERNIE-Image", 0),
    "ovis": Family("Ovis-Image", 0),
    "boogu": Family("Boogu-Image", 0),
    "pixeldit": Family("PixelDiT", 0),
    "hidream_o1": Family("HiDream O1", 0),
}
PUBLISHED_WIDTHS: dict[int, str] = {  # titles by context width; the tiny world's may be any toy's
    **{family.context_dim: family.title for name, family in FAMILIES.items() if family.context_dim and name != "tiny"},
    1280: "SDXL's refiner",  # which nothing here reads
}


def named_width(width: Any) -> str:
    """A context width for messages: "2048 (SDXL)", or the number alone where nothing published has it."""
    return f"{width} ({PUBLISHED_WIDTHS[width]})" if width in PUBLISHED_WIDTHS else f"{width}"


Taps = Mapping[str, Tensor]
"""Read-only mapping from block name to tensor b c h w: the hidden state after that block's spatial transformer."""


@runtime_checkable
class Host(Protocol):
    """A loaded diffusion model. Every call leaves it as it was, also when it raises."""

    @property
    def family(self) -> str:
        """A name of `FAMILIES`."""
        ...

    @property
    def specs(self) -> Mapping[str, TapSpec]: ...

    @property
    def context_dim(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def encode_image(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c _ _"]:
        """Model-space latents (times the scale factor) of `pixels` in [-1, 1]: the mode of the VAE's posterior."""
        ...

    def decode_latents(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """`pixels` in [-1, 1] of model-space latents."""
        ...

    def encode_text(self, phrases: Sequence[str]) -> Float[Tensor, "b 77 d"]:
        """Context of each phrase; over-long text raises InputError with the count of its tokens."""
        ...

    def add_noise(
        self, latents: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], timesteps: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """Latents noised to `timesteps` (0..999) by the model's own schedule."""
        ...

    def extract(
        self,
        latents: Float[Tensor, "b c h w"],
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

    def repeated(self, count: int) -> Conditioning:
        """All rows `count` times, one whole after the other."""
        extras = {name: extra.repeat(count, *(1 for _ in extra.shape[1:])) for name, extra in self.extras.items()}
        return Conditioning(self.context.repeat(count, 1, 1), extras)


T = TypeVar("T")
Observer = Callable[[nn.Module], AbstractContextManager[T]]
"""Makes, for a host's UNet, the context in which one pass is to run: hooks that read and leave everything as it was."""


@runtime_checkable
class AttentionHost(Host, Protocol):
    """A host that shows its attention too: what a mask without a trained head needs. No other head asks for it."""

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text of any length, without start, end and padding."""
        ...

    def condition(self, prompts: Sequence[str]) -> Conditioning:
        """As `encode_text`, with all else that a pass needs; over-long text raises InputError."""
        ...

    def observe(
        self,
        latents: Float[Tensor, "b c h w"],
        timesteps: Int[Tensor, " b"],
        conditioning: Conditioning,
        observer: Observer[T],
    ) -> T:
        """What `observer(unet)` yields, after one conditional pass over already noised latents ran inside it.

        Where a host is trained over, gradients pass through it; the hosts of an interface let none pass.
        """
        ...


@runtime_checkable
class JointHost(AttentionHost, Protocol):
    """A host whose network is a transformer that reads text and picture together, in latents of its own kind."""

    @property
    def latent_channels(self) -> int: ...

    @property
    def pixels_per_latent(self) -> int:
        """The side of a latent pixel in the picture."""
        ...


class Captured(Protocol):
    """What a sampler's own passes left of the pictures that are segmented now: taps, or attention. A row a picture."""

    def fitted_to(self, config: Any, latents: Float[Tensor, "b c h w"]) -> Captured:
        """The same at the size of the clean `latents`, for a head of `config`; raises InputError where it is not of
        these latents or lacks what the head reads."""
        ...

    def rows(self, images: slice) -> Captured:
        """That of some of the pictures."""
        ...


@runtime_checkable
class Head(Protocol):
    """Phrases in, masks out: what trained heads and the attention head have in common, and all that a predictor knows.

    `head_config` says what the head asks for: `HeadConfig` names the fields that a predictor reads.
    """

    @property
    def head_config(self) -> Any: ...

    def fitted_to(self, host: Host) -> Head:
        """The head with what it needs to know of `host`; raises HostError for one that it cannot read."""
        ...

    def segment(
        self,
        host: Host,
        latents: Float[Tensor, "b c h w"] | None,
        phrases: Sequence[str],
        *,
        timestep: int,
        seed: int,
        captured: Captured | None = None,
        pixels: Float[Tensor, "b 3 _ _"] | None = None,
    ) -> tuple[Float[Tensor, "b p H W"], Float[Tensor, "b p"]]:
        """Logits and scores in [0, 1] of every phrase in every picture, from clean model-space `latents`.

        The head noises them to `timestep` with the noise of `seed` and reads `host`, unless `captured` spares it that.
        `pixels` in [-1, 1] are given where the pictures are at hand; a head that reads them alone gets no latents.
        """
        ...
