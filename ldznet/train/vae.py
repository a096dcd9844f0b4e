"""Training the tiny world's VAE: reconstruct images, with a small pull of the posterior towards a unit normal."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..data.cache import Cache, images_to_pixels
from ..tinyworld.vae import TinyVAE
from .engine import channels_last

KL_WEIGHT = 2e-4
MEAN_SQUARE_WEIGHT = 4.0  # beside the absolute error: PSNR is about squares


class Autoencoding(nn.Module):
    """The VAE as a module whose forward is the loss, so that wrappers and compilers see the whole step."""

    def __init__(self, vae: TinyVAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels: Tensor, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        mean, log_variance = self.vae.moments(pixels)
        decoded = self.vae.decoder(mean + (0.5 * log_variance).exp() * noise)
        error = decoded - pixels
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        mse = (error**2).mean()
        loss = error.abs().mean() + MEAN_SQUARE_WEIGHT * mse + KL_WEIGHT * kl
        return loss, {"psnr": 10 * torch.log10(4 / mse.detach()), "kl": kl.detach()}


class VAETask:
    """Batches of images from a cache."""

    def __init__(self, vae: TinyVAE, cache: Cache) -> None:
        self.module = channels_last(Autoencoding(vae))
        self.cache = cache

    def batch(self, step: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        index = torch.randint(len(self.cache), (size,), generator=generator).numpy()
        pixels = images_to_pixels(self.cache.images[index])
        latent = (size, 4, pixels.shape[2] // 8, pixels.shape[3] // 8)
        return pixels, torch.randn(latent, generator=generator)

    def loss(self, module: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return module(*batch)


@torch.no_grad()
def fold(vae: TinyVAE, cache: Cache, images: int = 1024) -> None:
    """Normalises the latents of a trained VAE over the first `images` of `cache`, in place."""
    means = [vae.moments(images_to_pixels(cache.images[i : i + 64]))[0] for i in range(0, min(images, len(cache)), 64)]
    latents = torch.cat(means)
    vae.fold_statistics(latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3)))
