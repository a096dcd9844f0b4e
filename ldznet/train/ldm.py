"""Training the tiny latent diffusion model: UNet and text encoder together, on captions alone.

The model predicts the noise. Where noise dominates, its loss is weighted as that of v (Salimans and Ho, ICLR 2022),
1 / alpha: an error in the noise is divided by sqrt(alpha) on its way into the picture, and unweighted it left the
brightness of whole pictures adrift. Where the picture dominates, min-SNR bounds the weight (Hang et al., ICCV 2023).
A tenth of the captions is dropped, for classifier-free guidance.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..clip_bpe import Tokenizer
from ..data.cache import Cache
from ..models import UNet
from ..schedule import NUM_TIMESTEPS, add_noise, alphas_cumprod
from ..tinyworld.text import TextEncoder
from .engine import channels_last

CAPTION_DROP = 0.1
MIN_SNR_GAMMA = 5.0


class Denoising(nn.Module):
    """UNet and text encoder as a module whose forward is the loss."""

    weights: Tensor  # of the loss, by timestep

    def __init__(self, unet: UNet, text: TextEncoder) -> None:
        super().__init__()
        self.unet, self.text = unet, text
        alphas = alphas_cumprod()
        snr = alphas / (1 - alphas)
        weights = snr.clamp(max=MIN_SNR_GAMMA) / snr / alphas
        self.register_buffer("weights", weights.float(), persistent=False)

    def forward(
        self, latents: Tensor, noise: Tensor, timesteps: Tensor, ids: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        eps = self.unet(add_noise(latents, noise, timesteps), timesteps, self.text(ids))
        mse = ((eps.float() - noise) ** 2).mean(dim=(1, 2, 3))
        return (mse * self.weights[timesteps]).mean(), {"mse": mse.detach().mean()}


class LDMTask:
    """Batches of cached latents with one of their captions each."""

    def __init__(self, unet: UNet, text: TextEncoder, tokenizer: Tokenizer, cache: Cache) -> None:
        if cache.latents is None:
            raise ValueError("Expected a cache with latents, got one without. Call add_latents first.")
        self.module = channels_last(Denoising(unet, text))
        self.latents = cache.latents
        captions = [[tokenizer.encode(caption) for caption in record["captions"]] for record in cache.records]
        self.captions = torch.tensor(captions, dtype=torch.int16)
        self.empty = torch.tensor(tokenizer.encode(""))

    def batch(self, step: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        index = torch.randint(len(self.latents), (size,), generator=generator)
        latents = self.latents[index].float().contiguous(memory_format=torch.channels_last)
        ids = self.captions[index, torch.randint(self.captions.shape[1], (size,), generator=generator)].long()
        ids[torch.rand(size, generator=generator) < CAPTION_DROP] = self.empty
        timesteps = torch.randint(NUM_TIMESTEPS, (size,), generator=generator)
        noise = torch.randn(latents.shape, generator=generator).contiguous(memory_format=torch.channels_last)
        return latents, noise, timesteps, ids

    def loss(self, module: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        return module(*batch)
