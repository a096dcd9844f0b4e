"""Every number of an architecture, in one dataclass each, commented with its source. Imports contracts and errors.

A head's file carries its `HeadConfig` as JSON, so nothing is ever guessed from shapes or file names.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from .contracts import TapSpec
from .errors import CheckpointError

PUBLISHED_BLOCKS = ("input.8", "middle.0", "output.3", "output.4", "output.5")


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """A Stable Diffusion UNet. The defaults are SD v1's."""

    in_channels: int = 4
    out_channels: int = 4
    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attention_downsampling: tuple[int, ...] = (1, 2, 4)
    num_heads: int = 8
    context_dim: int = 768

    def __post_init__(self) -> None:
        for name in ("channel_mult", "attention_downsampling"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def tap_specs(self) -> dict[str, TapSpec]:
        """Every tap of this UNet by block name, in the order in which they fire."""
        specs = {}
        stride, index = 1, 1
        last = len(self.channel_mult) - 1
        for level, mult in enumerate(self.channel_mult):
            for _ in range(self.num_res_blocks):
                if stride in self.attention_downsampling:
                    specs[f"input.{index}"] = TapSpec(f"input.{index}", mult * self.model_channels, stride)
                index += 1
            if level != last:
                stride, index = stride * 2, index + 1
        specs["middle.0"] = TapSpec("middle.0", self.channel_mult[-1] * self.model_channels, stride)
        index = 0
        for level, mult in reversed(list(enumerate(self.channel_mult))):
            for _ in range(self.num_res_blocks + 1):
                if 2**level in self.attention_downsampling:
                    specs[f"output.{index}"] = TapSpec(f"output.{index}", mult * self.model_channels, 2**level)
                index += 1
        return specs


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """What a head is, what it asks of a host, and how it was trained. The defaults are the published LD-ZNet's."""

    network: str = "ldznet"  # "rgbnet", "znet" or "ldznet": the three networks of the paper
    unet: UNetConfig = UNetConfig(out_channels=1)
    blocks: tuple[str, ...] = PUBLISHED_BLOCKS  # where taps are cross-attended; paper section 3.3
    host_unet: UNetConfig = UNetConfig()  # the UNet whose taps it was trained on
    latent_grid: tuple[int, int] = (48, 48)  # latent size in training: the grid of the positional embedding
    size_multiple: int = 64  # pixels; the sides of the image at the head's resolution are multiples of this
    timestep: int = 400  # where taps are taken
    timestep_range: tuple[int, int] = (300, 499)  # where they were taken in training; ensembles draw from it
    template: str = "a photo of a {}."  # around each phrase, a leading article dropped where it ends in "a {}"
    mask_channels: tuple[int, ...] = (1,)  # (1,) is the published mask head; (64, 32, 16) a wider one
    has_presence: bool = False  # an output that says whether the phrase is in the image at all
    presence_threshold: float = 0.5  # on the presence probability, or on the score where there is no such output

    def __post_init__(self) -> None:
        for name in ("blocks", "latent_grid", "timestep_range", "mask_channels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def in_channels(self) -> int:
        """Of the latents."""
        return self.unet.in_channels

    @property
    def calibrated(self) -> bool:
        """Scores are probabilities: of the phrase's presence, or of the mask's peak."""
        return True

    @property
    def takes_pixels(self) -> bool:
        """RGBNet reads pixels; the others read latents."""
        return self.network == "rgbnet"

    @property
    def tap_specs(self) -> dict[str, TapSpec]:
        """The taps that this head needs; empty for RGBNet and ZNet."""
        if self.network != "ldznet":
            return {}
        specs = self.host_unet.tap_specs()
        return {block: specs[block] for block in self.blocks}

    def to_json(self) -> str:
        """As stored in a head file's metadata."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> HeadConfig:
        """Back from `to_json`; raises CheckpointError that names an unknown or malformed field."""
        try:
            fields: dict[str, Any] = json.loads(text)
            for name in ("unet", "host_unet"):
                if name in fields:
                    fields[name] = _typed(UNetConfig(**fields[name]))
            return _typed(cls(**fields))
        except (TypeError, ValueError, RecursionError) as error:
            raise CheckpointError(f"Expected the configuration of an LD-ZNet head as JSON, got: {error}.") from error


Config = TypeVar("Config", UNetConfig, HeadConfig)


def _typed(config: Config) -> Config:
    """`config`, unless a field is not of the type that its class gives it: TypeError that names the first."""
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not _is(value, kind):
            raise TypeError(f"{name} {value!r}, where {kind} was expected")
    return config


def _is(value: Any, kind: Any) -> bool:
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        kinds = kinds[:1] * len(value) if kinds[-1] is ... else kinds
        return len(value) == len(kinds) and all(map(_is, value, kinds))
    return type(value) is kind or (kind is float and type(value) is int)
