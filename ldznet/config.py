"""Every number of an architecture, in one dataclass each, commented with its source and held within bounds.

A head's file carries its `HeadConfig` as JSON, so nothing is ever guessed from shapes or file names.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from .bounds import Bound, check, fault
from .contracts import TapSpec
from .errors import CheckpointError, cause
from .schedule import NUM_TIMESTEPS
from .shapes import PIXELS_PER_LATENT

READING_TAPS = ("ldznet", "concatenation", "light", "delta")  # the networks that do, a delta head where it has blocks
NUM_GROUPS = 32  # of the norms
PUBLISHED_BLOCKS = ("input.8", "middle.0", "output.3", "output.4", "output.5")


UNET_BOUNDS = {  # several times what any published UNet has, and little enough to be built at once
    "in_channels": Bound(1, 1024),
    "out_channels": Bound(1, 1024),
    "model_channels": Bound(NUM_GROUPS, 2048, step=NUM_GROUPS),
    "channel_mult": Bound(1, 16, most=6),
    "num_res_blocks": Bound(1, 4),
    "attention_downsampling": Bound(1, 64, most=6),
    "num_heads": Bound(1, 128),
    "transformer_depth": Bound(0, 64, most=6),
    "context_dim": Bound(1, 16_384),
}
HEAD_BOUNDS = {
    "latent_grid": Bound(1, 512),  # 4096 px
    "strides": Bound(1, 8, most=2),
    "attn3_width": Bound(0, 2048),
    "size_multiple": Bound(PIXELS_PER_LATENT, 512, step=PIXELS_PER_LATENT),
    "timestep": Bound(0, NUM_TIMESTEPS - 1),
    "timestep_range": Bound(0, NUM_TIMESTEPS - 1),
    "mask_channels": Bound(1, 1024, most=3),
    "presence_threshold": Bound(0, 1),
}
LONGEST_TEMPLATE = 300  # characters; a text encoder reads 75 tokens
MOST_BLOCKS = 64
MOST_RANK, MOST_MATRICES = 4096, 4096


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
    transformer_depth: tuple[int, ...] = (1,)  # transformer blocks at a place with attention, by level; one for all

    def __post_init__(self) -> None:
        """Raises InputError that names the first field which cannot be."""
        check(self, UNET_BOUNDS)
        if len(self.transformer_depth) not in (1, len(self.channel_mult)):
            raise fault("transformer_depth", self.transformer_depth, f"one, or {len(self.channel_mult)} for the levels")
        for mult in self.channel_mult:
            if mult * self.model_channels % self.num_heads:
                raise fault("num_heads", self.num_heads, f"a divisor of {mult * self.model_channels} channels")

    def depth(self, level: int) -> int:
        """Transformer blocks at a place with attention of a level."""
        return self.transformer_depth[level if len(self.transformer_depth) > 1 else 0]

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

    # "rgbnet", "znet", "ldznet", "concatenation": the paper's; "light", a decoder; "delta", the host's UNet
    network: str = "ldznet"
    unet: UNetConfig = UNetConfig(out_channels=1)
    blocks: tuple[str, ...] = PUBLISHED_BLOCKS  # where taps are cross-attended; paper section 3.3
    host_unet: UNetConfig = UNetConfig()  # the UNet whose taps it was trained on
    latent_grid: tuple[int, int] = (48, 48)  # latent size in training: the grid of the positional embedding
    strides: tuple[int, int] = (1, 2)  # of a light head's two maps, in latent pixels
    ranks: tuple[int, ...] = ()  # of a delta head's change to each matrix of the UNet (`models.delta.matrices_of`)
    attn3_width: int = 0  # of a delta head: inside its slim attn3; 0 for the paper's, with its pool
    size_multiple: int = 64  # pixels; the sides of the image at the head's resolution are multiples of this
    timestep: int = 400  # where taps are taken
    timestep_range: tuple[int, int] = (300, 499)  # where they were taken in training; ensembles draw from it
    template: str = "a photo of a {}."  # around each phrase, a leading article dropped where it ends in "a {}"
    mask_channels: tuple[int, ...] = (1,)  # (1,) is the published mask head; (64, 32, 16) a wider one
    has_presence: bool = False  # an output that says whether the phrase is in the image at all
    presence_threshold: float = 0.5  # on the presence probability, or on the score where there is no such output

    def __post_init__(self) -> None:
        """Raises InputError that names the first field which cannot be."""
        check(self, HEAD_BOUNDS)
        if self.timestep_range[0] > self.timestep_range[1]:
            raise fault("timestep_range", self.timestep_range, "the lower end first")
        if self.template.count("{}") != 1 or len(self.template) > LONGEST_TEMPLATE:
            raise fault("template", self.template, f"one {{}} for the phrase in {LONGEST_TEMPLATE} characters at most")
        if self.mask_channels != (1,) and len(self.mask_channels) != 3:
            raise fault("mask_channels", self.mask_channels, "(1,), or three, one before each doubling")
        if self.network in READING_TAPS and (self.blocks or self.network != "delta"):
            self._check_blocks()
        if not all(0 <= rank <= MOST_RANK for rank in self.ranks) or len(self.ranks) > MOST_MATRICES:
            raise fault("ranks", self.ranks[:3], f"at most {MOST_MATRICES} of 0 to {MOST_RANK}")

    def _check_blocks(self) -> None:
        """Each tap has a place where it is made, and a transformer of the head's own that reads it."""
        if not 1 <= len(self.blocks) <= MOST_BLOCKS:
            raise fault("blocks", self.blocks, f"1 to {MOST_BLOCKS} names")
        if self.attn3_width % self.unet.num_heads:
            raise fault("attn3_width", self.attn3_width, f"a multiple of {self.unet.num_heads} heads")
        for unet in (self.host_unet, self.unet) if self.network != "light" else (self.host_unet,):
            specs = unet.tap_specs()
            for block in self.blocks:
                if block not in specs:
                    raise fault("blocks", block, f"one of {', '.join(specs)}")
                if specs[block].channels % self.unet.num_heads:
                    raise fault("num_heads", self.unet.num_heads, f"a divisor of {specs[block].channels} channels")

    @property
    def in_channels(self) -> int:
        """Of the latents."""
        return self.unet.in_channels

    @property
    def pixels_per_latent(self) -> int:
        """The side of a latent pixel in the picture."""
        return PIXELS_PER_LATENT

    @property
    def calibrated(self) -> bool:
        """Scores are probabilities: of the phrase's presence, or of the mask's peak."""
        return True

    @property
    def phrases_compete(self) -> bool:
        """Each phrase has a pass of its own, so that its mask does not depend on the others."""
        return False

    @property
    def takes_pixels(self) -> bool:
        """RGBNet reads pixels; the others read latents."""
        return self.network == "rgbnet"

    @property
    def tap_specs(self) -> dict[str, TapSpec]:
        """The taps that this head needs; empty for RGBNet and ZNet."""
        if self.network not in READING_TAPS:
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
                    fields[name] = UNetConfig(**fields[name])
            return cls(**fields)
        except (TypeError, ValueError, RecursionError) as error:  # InputError is a ValueError
            raise CheckpointError(
                f"Expected the configuration of an LD-ZNet head as JSON, got one that cannot be: {cause(error)} "
                "Get the head's file anew, or update the pack if the head is newer."
            ) from error
