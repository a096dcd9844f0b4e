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
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, NUM_TIMESTEPS, dtype=torch.float64, device="cpu") ** 2
    return torch.cumprod(1 - betas, dim=0)


def add_noise(
    latents: Float[Tensor, "b c h w"],
    noise: Float[Tensor, "b c h w"],
    timesteps: Int[Tensor, " b"],
    alphas: Float[Tensor, " 1000"] | None = None,
) -> Float[Tensor, "b c h w"]:
    """sqrt(a_t) * latents + sqrt(1 - a_t) * noise (DDPM, equation 4), in the dtype of `latents`.

    `alphas`: the schedule's products of 1 - beta on the CPU; None for SD's own.
    """
    levels = alphas_cumprod() if alphas is None else alphas
    a = levels[timesteps.cpu()][:, None, None, None]  # indexed on the CPU: MPS has no float64
    signal, sigma = (level.sqrt().to(latents.dtype).to(latents.device) for level in (a, 1 - a))
    return signal * latents + sigma * noise


def seeded_noise(shape: tuple[int, ...], seed: int) -> Float[Tensor, "*shape"]:
    """Unit normal noise, float32 from a CPU generator of its own: the same on every device and under every default that
    torch was given. Any int is a seed."""
    generator = torch.Generator("cpu").manual_seed(seed % 2**64)
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
