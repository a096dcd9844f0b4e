"""Which Stable Diffusion a UNet is, by its configuration as diffusers writes it. Imports errors alone.

`hf_diffusers` imports it; nothing here needs diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import HostError

# What tells SD 1.x's UNet from its successors and variants; the values are diffusers' own defaults.
SD1_FACTS: dict[str, Any] = {
    "use_linear_projection": False,
    "transformer_layers_per_block": 1,
    "layers_per_block": 2,
    "addition_embed_type": None,
    "class_embed_type": None,
    "encoder_hid_dim_type": None,
}
OTHER_WIDTHS = {1024: "SD 2.x", 1280: "SDXL's refiner", 2048: "SDXL"}  # of the context; SD 1.x's is 768
INPAINTING_CHANNELS = 9  # 4 of the latents, 1 of a mask, 4 of the masked image's latents


def require_sd1(config: Mapping[str, Any]) -> None:
    """Raises HostError that names the first fact in which a UNet's configuration is not SD 1.x's.

    Facts of the architecture, not its widths: a UNet of SD 1.x's form passes at any context width that no other family
    has, so that small models of that form work too.
    """
    if config.get("_class_name", "UNet2DConditionModel") != "UNet2DConditionModel":
        raise no_head_fits(f"a {config['_class_name']}")
    for width in _values(config.get("cross_attention_dim")):
        if width in OTHER_WIDTHS:
            raise no_head_fits(f"{width} ({OTHER_WIDTHS[width]})")
    for name, expected in SD1_FACTS.items():
        if _values(config.get(name, expected)) != {expected}:
            raise no_head_fits(f"one with {name} {config[name]}, where SD 1.x has {expected}")
    if config.get("in_channels", 4) not in (4, INPAINTING_CHANNELS):
        raise no_head_fits(f"one of {config['in_channels']} input channels, where SD 1.x has 4, or 9 for inpainting")


def family_of(config: Mapping[str, Any]) -> str:
    """ "sd1", "sd2" or "sdxl" by a UNet's configuration; raises HostError as `require_sd1` for any other."""
    widths = _values(config.get("cross_attention_dim"))
    if config.get("addition_embed_type") == "text_time" and 1280 not in widths:  # the refiner's
        return "sdxl"
    if config.get("use_linear_projection") and not config.get("addition_embed_type"):
        require_sd1({**config, "use_linear_projection": False, "cross_attention_dim": None})
        return "sd2"
    require_sd1(config)
    return "sd1"


def _values(value: Any) -> set[Any]:
    return set(value) if isinstance(value, (list, tuple)) else {value}


def no_head_fits(got: str) -> HostError:
    """For a model that cannot be used, or only without a trained head."""
    return HostError(
        f"Expected an SD 1.x UNet (context width 768), got {got}. No trained head fits it yet: open an SD 1.x model, "
        "or give the attention head a loaded SD 2.x or SDXL pipeline."
    )


def require_epsilon(prediction: str | None) -> None:
    """Raises HostError for an SD 1.x model that predicts anything but the noise."""
    if prediction not in (None, "epsilon"):
        raise no_head_fits(f"one trained for {prediction}, where SD 1.x predicts the noise (epsilon)")
