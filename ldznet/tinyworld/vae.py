"""The tiny world's autoencoder: 128 x 128 pixels to 4 x 16 x 16 latents, factor 8 like Stable Diffusion's.

Pixel-unshuffle by 4, then convolutions at a quarter and an eighth of the size; no norms. After training its latents are
normalised by folding their statistics into the convolutions next to them, so that 0.18215 applies as hosts assume.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..images import require_pixels
from ..shapes import Float

SCALE_FACTOR = 0.18215  # Stable Diffusion v1's: model-space latents = posterior mode * SCALE_FACTOR
LATENT_CHANNELS = 4
PATCH = 4


class ResidualConv(nn.Module):
    """x + conv(silu(conv(silu(x)))), all 3 x 3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        h = self.first(nn.functional.silu(x))
        return x + self.second(nn.functional.silu(h))


class TinyVAE(nn.Module):
    """Encoder and decoder. `widths` are the channels at a quarter and at an eighth of the image's size."""

    def __init__(self, widths: tuple[int, int] = (64, 128)) -> None:
        super().__init__()
        fine, coarse = widths
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(PATCH),
            nn.Conv2d(3 * PATCH**2, fine, 3, padding=1),
            ResidualConv(fine),
            nn.SiLU(),
            nn.Conv2d(fine, coarse, 3, stride=2, padding=1),
            ResidualConv(coarse),
            nn.SiLU(),
            nn.Conv2d(coarse, LATENT_CHANNELS * 2, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(LATENT_CHANNELS, coarse, 3, padding=1),
            ResidualConv(coarse),
            ResidualConv(coarse),
            nn.SiLU(),
            nn.Conv2d(coarse, fine * 4, 3, padding=1),
            nn.PixelShuffle(2),
            ResidualConv(fine),
            nn.SiLU(),
            nn.Conv2d(fine, 3 * PATCH**2, 3, padding=1),
            nn.PixelShuffle(PATCH),
        )

    def moments(self, pixels: Float[Tensor, "b 3 h w"]) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the posterior, each b 4 h/8 w/8, before the scale factor."""
        require_pixels(pixels)
        mean, log_variance = self.encoder(pixels).chunk(2, dim=1)
        return mean, log_variance.clamp(-30, 20)

    def encode(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 4 h/8 w/8"]:
        """Model-space latents of pixels in [-1, 1]: the posterior's mode times the scale factor."""
        return self.moments(pixels)[0] * SCALE_FACTOR

    def decode(self, latents: Float[Tensor, "b 4 h w"]) -> Float[Tensor, "b 3 8*h 8*w"]:
        """Pixels, about [-1, 1] and not clamped, of model-space latents."""
        return self.decoder(latents / SCALE_FACTOR)

    @torch.no_grad()
    def fold_statistics(self, mean: Float[Tensor, " 4"], std: Float[Tensor, " 4"]) -> None:
        """Makes model-space latents of zero mean and unit deviation, given those of the posterior's mode.

        In place and exact inside the image; at its border the decoder's zero padding now stands for the mean latent.
        """
        last, first = self.encoder[-1], self.decoder[0]
        assert isinstance(last, nn.Conv2d)
        assert isinstance(first, nn.Conv2d)
        assert last.bias is not None
        assert first.bias is not None
        gain = 1 / (std * SCALE_FACTOR)
        last.weight[:LATENT_CHANNELS] *= gain[:, None, None, None]
        last.bias[:LATENT_CHANNELS] = (last.bias[:LATENT_CHANNELS] - mean) * gain
        last.bias[LATENT_CHANNELS:] += 2 * gain.log()
        first.bias += (first.weight * mean[None, :, None, None]).sum(dim=(1, 2, 3))
        first.weight /= gain[None, :, None, None]
