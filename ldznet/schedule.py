"""Stable Diffusion's noise schedule: scaled-linear betas, 1000 steps, and noising by it. Imports only shapes."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .shapes import Float, Int

NUM_TIMESTEPS = 1000


@functools.cache
def alphas_cumprod() -> Float[Tensor, " 1000"]:
    """Products of 1 - beta in float64; betas = linspace(sqrt(0.00085), sqrt(0.012), 1000) squared."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, NUM_TIMESTEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0)


def add_noise(
    latents: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], timesteps: Int[Tensor, " b"]
) -> Float[Tensor, "b c h w"]:
    """sqrt(a_t) * latents + sqrt(1 - a_t) * noise (DDPM, equation 4), in the dtype of `latents`."""
    a = alphas_cumprod().to(timesteps.device)[timesteps][:, None, None, None]
    return a.sqrt().to(latents.dtype) * latents + (1 - a).sqrt().to(latents.dtype) * noise
