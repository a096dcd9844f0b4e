"""Which Stable Diffusion a UNet is, by its configuration as diffusers writes it. Imports contracts and errors.

`hf_diffusers`, `comfyui` and `webui` import it; nothing here needs any of their libraries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..contracts import FAMILIES, PUBLISHED_WIDTHS, named_width
from ..errors import HostError, shown
from ..shapes import Float

GREY = (0.8223, -0.6876, 0.6364, 0.1380)  # model-space latents of a grey image, ComfyUI's blank_inpaint_image_like
IN_CHANNELS = (4, INPAINTING_CHANNELS := 9)  # the latents; for inpainting a mask and the masked image's latents too

TRANSFORMERS = ", ".join(family.title for family in FAMILIES.values() if not family.context_dim)

# What a UNet of each family is, where that is one of diffusers' defaults or tells it from other families and variants.
COMMON: dict[str, Any] = {"layers_per_block": 2, "class_embed_type": None, "encoder_hid_dim_type": None}
FACTS: dict[str, dict[str, Any]] = {
    "sd1": {**COMMON, "use_linear_projection": False, "transformer_layers_per_block": 1, "addition_embed_type": None},
    "sd2": {**COMMON, "use_linear_projection": True, "transformer_layers_per_block": 1, "addition_embed_type": None},
    "sdxl": {**COMMON, "use_linear_projection": True, "addition_embed_type": "text_time"},
}


def family_of(config: Mapping[str, Any]) -> str:
    """ "sd1", "sd2" or "sdxl" by a UNet's configuration; raises HostError that names what is none of theirs.

    By the architecture, not by its widths: a UNet of a family's form passes at any context width that no other family
    has, so that small models of that form work too.
    """
    if config.get("_class_name", "UNet2DConditionModel") != "UNet2DConditionModel":
        raise no_host(f"a {shown(config['_class_name'])}")
    has_sizes = config.get("addition_embed_type") == "text_time"
    family = "sdxl" if has_sizes else "sd2" if config.get("use_linear_projection") else "sd1"
    title = FAMILIES[family].title
    for width in _values(config.get("cross_attention_dim")):
        if PUBLISHED_WIDTHS.get(width, title) != title:
            raise no_host(f"{named_width(width)} in a UNet of {title}'s form")
    for name, expected in FACTS[family].items():
        if _values(config.get(name, expected)) != {expected}:
            raise no_host(f"one with {name} {shown(config[name])}, where {title} has {expected}")
    if config.get("in_channels", 4) not in IN_CHANNELS:
        raise no_host(f"one of {shown(config['in_channels'])} input channels, where {title} has 4, or 9 to inpaint")
    return family


def inpainting_part(latents: Float[Tensor, "b 4 h w"]) -> Float[Tensor, "b 5 h w"]:
    """What an inpainting UNet gets with its latents where all is to be painted: a mask of ones, and a grey image."""
    grey = latents.new_tensor(GREY)[None, :, None, None].expand_as(latents)
    return torch.cat([torch.ones_like(latents[:, :1]), grey], dim=1)


def _values(value: Any) -> set[Any]:
    """What a field holds, once each; what is neither a word nor a number, by its kind."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return {v if v is None or isinstance(v, (str, int, float)) else f"a {type(v).__name__}" for v in values}


def no_host(got: str) -> HostError:
    """For a model that cannot be used here at all."""
    return HostError(
        "Expected an SD 1.x (context width 768), SD 2.x (1024) or SDXL (2048) UNet that reads text, "
        f"got {got}. Open a model of one of these."
    )


def no_loaded_model(got: str) -> HostError:
    """As `no_host`, for what is loaded in ComfyUI: it says what works beside that model."""
    return HostError(
        f"Expected a Stable Diffusion or one of {TRANSFORMERS} in the socket model, got {got}, which no head reads "
        "yet. A Stable Diffusion beside it segments any picture: give Segment by Text model, clip and vae of a Load "
        "Checkpoint, and the picture itself (from VAE Decode or Load Image) as image, without a latent. Workflow 8 "
        "shows it."
    )


def require_epsilon(family: str, prediction: str | None) -> None:
    """Raises HostError for an SD 1.x model that predicts anything but the noise; SD 2.x comes in both kinds."""
    if family == "sd1" and prediction not in (None, "epsilon"):
        raise no_host(f"one trained for {prediction}, where SD 1.x predicts the noise (epsilon)")
