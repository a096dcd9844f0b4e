"""DDIM (Song et al., ICLR 2021) with classifier-free guidance, for the tiny world's own pictures.

Guidance of 5 makes this small model's pictures a quarter too strong in contrast; the guided estimate of the clean
latents is brought back towards the deviation of the conditional one (Lin et al., WACV 2024, section 3.4, who advise
0.7; ComfyUI's RescaleCFG).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..schedule import NUM_TIMESTEPS, alphas_cumprod
from ..shapes import Float


@torch.no_grad()
def sample(
    unet: nn.Module,
    noise: Float[Tensor, "b c h w"],
    context: Float[Tensor, "b n d"],
    empty: Float[Tensor, "b n d"],
    steps: int = 30,
    guidance: float = 5.0,
    rescale: float = 0.7,
    first: int = NUM_TIMESTEPS - 1,
) -> Float[Tensor, "b c h w"]:
    """Clean latents from `noise`: `steps` deterministic steps from timestep 999 to 0; equation 12 with sigma 0.

    With another `first` timestep, `noise` are latents that are noised so far.
    `rescale` in [0, 1]: how far the guided estimate takes on the deviation of the conditional one.
    """
    timesteps = torch.linspace(first, 0, steps, dtype=torch.float32, device="cpu").round().long()
    levels = alphas_cumprod()[timesteps]
    x, both = noise, torch.cat([empty, context])
    for i, t in enumerate(timesteps):
        batch = t.expand(2 * len(x)).to(x.device)
        free, conditional = unet(torch.cat([x, x]), batch, both).chunk(2)
        a = float(levels[i])
        captioned, clean = (_clean(x, eps, a) for eps in (conditional, free + guidance * (conditional - free)))
        clean = clean * (1 - rescale + rescale * _deviation(captioned) / _deviation(clean))
        eps = (x - a**0.5 * clean) / (1 - a) ** 0.5
        after = float(levels[i + 1]) if i + 1 < steps else 1.0
        x = after**0.5 * clean + (1 - after) ** 0.5 * eps
    return x


def _clean(x: Tensor, eps: Tensor, alpha: float) -> Tensor:
    """The clean latents that `x` comes from, if `eps` is its noise."""
    return (x - (1 - alpha) ** 0.5 * eps) / alpha**0.5


def _deviation(x: Tensor) -> Tensor:
    """Of each image, b 1 1 1."""
    return x.std(dim=(1, 2, 3), keepdim=True)
