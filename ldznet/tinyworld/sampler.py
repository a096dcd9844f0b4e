"""DDIM (Song et al., ICLR 2021) with classifier-free guidance, for the tiny world's own pictures."""

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
) -> Float[Tensor, "b c h w"]:
    """Clean latents from `noise`: `steps` deterministic steps from timestep 999 to 0; equation 12 with sigma 0."""
    timesteps = torch.linspace(NUM_TIMESTEPS - 1, 0, steps).round().long()
    levels = alphas_cumprod()[timesteps]
    x, both = noise, torch.cat([empty, context])
    for i, t in enumerate(timesteps):
        batch = t.expand(2 * len(x)).to(x.device)
        free, conditional = unet(torch.cat([x, x]), batch, both).chunk(2)
        eps = free + guidance * (conditional - free)
        a = float(levels[i])
        clean = (x - (1 - a) ** 0.5 * eps) / a**0.5
        after = float(levels[i + 1]) if i + 1 < steps else 1.0
        x = after**0.5 * clean + (1 - after) ** 0.5 * eps
    return x
