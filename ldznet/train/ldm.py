"""Training the tiny latent diffusion model: UNet and text encoder together, on captions alone.

The model predicts the noise. Where noise dominates, its loss is weighted as that of v (Salimans and Ho, ICLR 2022),
1 / alpha: an error in the noise is divided by sqrt(alpha) on its way into the picture, and unweighted it left the
brightness of whole pictures adrift. Where the picture dominates, min-SNR bounds the weight (Hang et al., ICCV 2023).
A tenth of the captions is dropped, for classifier-free guidance.

Which thing was asked for changes few latents by little, against textures and noise that nobody can foresee; left to
the squared error alone, categories come long after colours and grounds. So the picture that each prediction implies
is also compared in the features of a frozen judge of latents (a perceptual loss on the predicted latents, after Lin
and Yang, arXiv 2401.00110, who take the diffusion model's own features).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..clip_bpe import Tokenizer
from ..data.cache import Cache
from ..models import UNet
from ..schedule import NUM_TIMESTEPS, add_noise, alphas_cumprod
from ..tinyworld.namer import Namer
from ..tinyworld.text import TextEncoder
from .engine import channels_last

CAPTION_DROP = 0.1
MIN_SNR_GAMMA = 5.0
PERCEPTUAL_WEIGHT = 5.0


class Denoising(nn.Module):
    """UNet and text encoder as a module whose forward is the loss."""

    weights: Tensor  # of the loss, by timestep
    alphas: Tensor

    def __init__(self, unet: UNet, text: TextEncoder, judge: Namer | None) -> None:
        super().__init__()
        self.unet, self.text = unet, text
        self.judge = (judge.requires_grad_(False),) if judge else ()  # in a tuple: no part of what is trained
        alphas = alphas_cumprod()
        self.register_buffer("alphas", alphas.float(), persistent=False)
        snr = alphas / (1 - alphas)
        weights = snr.clamp(max=MIN_SNR_GAMMA) / snr / alphas
        self.register_buffer("weights", weights.float(), persistent=False)

    def forward(
        self, latents: Tensor, noise: Tensor, timesteps: Tensor, ids: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        noisy = add_noise(latents, noise, timesteps)
        eps = self.unet(noisy, timesteps, self.text(ids)).float()
        mse = ((eps - noise) ** 2).mean(dim=(1, 2, 3))
        loss, figures = (mse * self.weights[timesteps]).mean(), {"mse": mse.detach().mean()}
        for judge in self.judge:
            alphas = self.alphas[timesteps][:, None, None, None]
            implied = (noisy - (1 - alphas).sqrt() * eps) / alphas.sqrt()
            seen = (alphas[:, 0, 0, 0] * perceptual_distance(judge, implied, latents)).mean()
            loss, figures["seen"] = loss + PERCEPTUAL_WEIGHT * seen, seen.detach()
        return loss, figures


def perceptual_distance(judge: Namer, implied: Tensor, latents: Tensor) -> Tensor:
    """Mean squared difference of the judge's features at cells of 8 and 16 pixels, b."""
    with torch.no_grad():
        wanted = judge.maps(latents)[1:]
    pairs = zip(judge.maps(implied)[1:], wanted, strict=True)
    return torch.stack([((a - b) ** 2).mean(dim=(1, 2, 3)) for a, b in pairs]).sum(0)


class LDMTask:
    """Batches of cached latents with one of their captions each, from all `caches` alike."""

    def __init__(
        self,
        unet: UNet,
        text: TextEncoder,
        tokenizer: Tokenizer,
        caches: Sequence[Cache],
        judge: Namer | None = None,
    ) -> None:
        latents = [cache.latents for cache in caches if cache.latents is not None]
        if len(latents) < len(caches):
            raise ValueError("Expected caches with latents, got one without. Call add_latents first.")
        self.module = channels_last(Denoising(unet, text, judge))
        self.latents = torch.cat(latents)
        records = [record for cache in caches for record in cache.records]
        captions = [[tokenizer.encode(caption) for caption in record["captions"]] for record in records]
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
