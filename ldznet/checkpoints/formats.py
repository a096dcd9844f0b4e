"""What a head looks like in the files that hold one, and what the files look like that are taken for it. Tables first.

To add a format, add a line to `FORMATS`: a contract test runs over all of them. May be imported by checkpoints alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import CheckpointError, shown

FORMAT_VERSION = "1"  # of our own safetensors, in its metadata as `ldznet_format`
LONGEST = 200  # characters of a name in which its kind is looked for: the patterns below take time for longer ones
LISTED = 20  # names that a complaint prints of each kind before it says "and N more"


class TensorInfo(NamedTuple):
    """A tensor without its values."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def sides(self) -> str:
        """The shape in words: "320x4x3x3"."""
        return "x".join(map(str, self.shape)) or "scalar"

    def __str__(self) -> str:
        return f"{self.sides} {str(self.dtype).removeprefix('torch.')}"


@dataclass(frozen=True)
class TensorFile:
    """An open file of named tensors. `read` gives one of them on the CPU; nothing is in memory before that."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    read: Callable[[str], Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)


class Format(NamedTuple):
    """How a kind of file names a head's parameters. `marker` and `extras` are patterns for the beginning of a name."""

    title: str
    key: Callable[[str], str]  # from a parameter's official name to its name in the file
    marker: str  # a file with such a name has this format
    extras: str  # what may stand beside the head, and is left behind


def ema_key(name: str) -> str:
    """Name of a parameter in LitEma's store, which deletes every dot (ldm/modules/ema.py): there is no way back."""
    return "model_ema." + f"diffusion_model.{name}".replace(".", "")


LIGHTNING_EXTRAS = (
    r"(first_stage_model|cond_stage_model|sd_features_stage_model)\.|model_ema\.(decay|num_updates)$|"
    r"(betas|alphas_cumprod|alphas_cumprod_prev|sqrt_alphas_cumprod|sqrt_one_minus_alphas_cumprod|"
    r"log_one_minus_alphas_cumprod|sqrt_recip_alphas_cumprod|sqrt_recipm1_alphas_cumprod|posterior_variance|"
    r"posterior_log_variance_clipped|posterior_mean_coef1|posterior_mean_coef2|lvlb_weights|logvar|scale_factor|"
    r"cond_ids)$"
)

FORMATS: dict[str, Format] = {  # the first whose marker is found is taken: the average is preferred
    "ema": Format(
        "the published Lightning checkpoint, averaged weights",
        ema_key,
        r"model_ema\.diffusion_model",
        rf"{LIGHTNING_EXTRAS}|model\.diffusion_model\.",
    ),
    "lightning": Format(
        "a Lightning checkpoint without averaged weights",
        "model.diffusion_model.{}".format,
        r"model\.diffusion_model\.",
        LIGHTNING_EXTRAS,
    ),
    "head": Format("a head alone", str, r"", r"(?!)"),
}

# What a file seems to be: the first pattern found in its lines of "name shape", such as "out.2.weight 4x320x3x3".
KINDS: tuple[tuple[str, str], ...] = (
    ("an LD-ZNet checkpoint", r"^model_ema\.diffusion_modelfinal|^model\.diffusion_model\.final\."),
    ("an LD-ZNet head", r"^final\.\d+\.|\.attentionpool2D\."),
    ("a ControlNet", r"^(control_model|controlnet_\w+|input_hint_block|zero_convs)\."),
    ("a LoRA", r"^lora_(unet|te\d?)_|[._]lora[._](A|B|down|up)\.|\.(hada|lokr)_w\d"),
    ("an IP-Adapter", r"^(image_proj|ip_adapter)\."),
    ("a Stable Diffusion XL model", r"^conditioner\.embedders\.|diffusion_model.*attn2\.?to_k\.?weight \d+x2048$"),
    ("a Stable Diffusion 2.x model", r"^cond_stage_model\.model\.|diffusion_model.*attn2\.?to_k\.?weight \d+x1024$"),
    ("a Stable Diffusion 1.x model", r"^cond_stage_model\.transformer|diffusion_model.*attn2\.?to_k\.?weight \d+x768$"),
    ("a Stable Diffusion UNet", r"^((model\.)?diffusion_model\.)?input_blocks\.0\.0\."),
    ("a diffusers UNet", r"^(unet\.)?(down_blocks|mid_block|up_blocks)\."),
    ("a Flux, SD3 or other transformer model", r"(double|joint|single_transformer)_blocks\.\d|^transformer_blocks\.\d"),
    ("a VAE", r"^(first_stage_model\.|vae\.)?((encoder|decoder)\.(conv_in|down|up|mid)|(post_)?quant_conv)"),
    ("a text encoder", r"\btext_model\.|^encoder\.block\.\d+\.layer\.|^transformer\.resblocks\."),
    ("a CLIP image encoder", r"\bvision_model\.|^visual\."),
    ("a textual-inversion embedding", r"^(emb_params|string_to_param|clip_[lg])\b"),
)


def seems_to_be(tensors: Mapping[str, TensorInfo] | Sequence[str]) -> str:
    """What a file with these tensors (or names alone) seems to be, as a noun phrase for an error."""
    if isinstance(tensors, Mapping):
        lines = [f"{name[:LONGEST]} {tensors[name].sides[:LONGEST]}" for name in tensors]
    else:
        lines = [name[:LONGEST] for name in tensors]
    text = "\n".join(line.replace("\n", " ") for line in lines)
    for kind, pattern in KINDS:
        if re.search(pattern, text, re.MULTILINE):
            return kind
    return f"something else, with tensors such as {listing(list(tensors), 3)}" if lines else "empty: it holds no tensor"


def listing(names: Sequence[Any], limit: int = LISTED, describe: Callable[[Any], str] = shown) -> str:
    """The first names, each as `describe` shows it, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(describe, names[:limit])) + more


class Match(NamedTuple):
    """Where each expected tensor is in a file, and what in the file is left behind."""

    format: Format
    keys: dict[str, str]  # from the official name to the name in the file
    ignored: list[str]


def match(found: Mapping[str, TensorInfo], expected: Mapping[str, TensorInfo], source: str, owner: str) -> Match:
    """Finds every tensor of `expected`, which `owner` needs, in `found`, which the file called `source` holds.

    Raises CheckpointError unless every one is there in its exact shape and beside them only what the format is known to
    carry. It lists all deviations at once, under the names that the file uses, and says what the file seems to be.
    """
    form = _format_of(found)
    keys = {name: form.key(name) for name in expected}
    wanted = set(keys.values())
    others = [key for key in found if key not in wanted]
    ignored = [key for key in others if re.match(form.extras, key)]
    present = [(key, expected[name]) for name, key in keys.items() if key in found]
    deviations = {
        "missing": [key for key in keys.values() if key not in found],
        "unexpected": [key for key in others if not re.match(form.extras, key)],
        "wrong shape": [
            f"{shown(key)} (expected {info}, got {shown(found[key])})"
            for key, info in present
            if not _fits(found[key], info)
        ],
    }
    if any(deviations.values()):
        complaint = _complaint(deviations, seems_to_be(found), bool(present))
        raise CheckpointError(f"Expected the {len(keys)} tensors of {owner} in {source}, got a file that {complaint}")
    return Match(form, keys, ignored)


def _format_of(found: Iterable[str]) -> Format:
    for form in FORMATS.values():
        if any(re.match(form.marker, key) for key in found):
            return form
    return FORMATS["head"]


def _fits(found: TensorInfo, expected: TensorInfo) -> bool:
    return found.shape == expected.shape and found.dtype.is_floating_point == expected.dtype.is_floating_point


def _complaint(deviations: Mapping[str, Sequence[str]], seems: str, any_present: bool) -> str:
    if not any_present:
        return f"seems to be {seems}. Nothing in it fits; docs/checkpoints.md says where the right file is."
    describe = {"wrong shape": str}
    lists = [
        f"{kind} ({len(names)}): {listing(names, describe=describe.get(kind, shown))}"
        for kind, names in deviations.items()
        if names
    ]
    return "\n  ".join([f"seems to be {seems}, and deviates. Download it again, or give the right file.", *lists])
