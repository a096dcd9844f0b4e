"""The tiny world's models as a host: plain torch, nothing to download. Keeps `contracts.Host`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .. import schedule
from ..contracts import Conditioning, Observer, T, Taps
from ..errors import InputError
from ..models import UNet
from ..shapes import Float, Int
from ..taps import extract_taps
from ..tinyworld import world
from ..tinyworld.sampler import sample


class TinyHost:
    """`models` as a host that shows its attention (`contracts.AttentionHost`); it can generate, too."""

    family = "tiny"

    def __init__(self, models: world.Models) -> None:
        self.models = models
        self.specs = models.unet.config.tap_specs()
        self.context_dim = models.unet.config.context_dim
        parameter = next(models.unet.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype

    @property
    def unet(self) -> UNet:
        """The denoising UNet itself."""
        return self.models.unet

    @classmethod
    def load(
        cls,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        weights: Path = world.WEIGHTS,
    ) -> TinyHost:
        """The models in `weights` (the embedded ones) on `device` (None: CPU) in `dtype` (None: float32 on a CPU)."""
        return cls(world.load(device, dtype, weights))

    @torch.no_grad()
    def encode_image(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 4 h/8 w/8"]:
        """Latents of `pixels` in [-1, 1], sides in multiples of 8: the mode of the posterior, of unit deviation."""
        return self.models.vae.encode(pixels.to(self.device, self.dtype))

    @torch.no_grad()
    def decode_latents(self, latents: Float[Tensor, "b 4 h w"]) -> Float[Tensor, "b 3 8*h 8*w"]:
        """`pixels` in [-1, 1] of latents."""
        return self.models.vae.decode(latents.to(self.device, self.dtype)).clamp(-1, 1)

    @torch.no_grad()
    def encode_text(self, phrases: Sequence[str]) -> Float[Tensor, "b 77 d"]:
        """Context of each phrase; over 75 tokens raise InputError with their count."""
        rows = [self.models.tokenizer.encode(phrase) for phrase in phrases]
        ids = torch.tensor(rows, dtype=torch.int64, device=self.device)
        return self.models.text(ids.reshape(len(phrases), -1))

    def add_noise(
        self, latents: Float[Tensor, "b 4 h w"], noise: Float[Tensor, "b 4 h w"], timesteps: Int[Tensor, " b"]
    ) -> Float[Tensor, "b 4 h w"]:
        """Latents at `timesteps` of Stable Diffusion's schedule."""
        return schedule.add_noise(latents, noise, timesteps)

    def extract(
        self,
        latents: Float[Tensor, "b 4 h w"],
        timesteps: Int[Tensor, " b"],
        context: Float[Tensor, "b n d"],
        blocks: Sequence[str],
    ) -> Taps:
        """Taps of noised latents, from a pass that ends after the last block asked for."""
        unet = self.models.unet
        if latents.ndim != 4 or latents.shape[1] != unet.config.in_channels:
            raise InputError(f"Expected latents b 4 h w in model space, got {tuple(latents.shape)}.")
        latents, context = latents.to(self.device, self.dtype), context.to(self.device, self.dtype)
        return extract_taps(unet, blocks, lambda: unet(latents, timesteps.to(self.device), context))

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text of any length, without start, end and padding."""
        return self.models.tokenizer.ids(text)

    def unknown_words(self, texts: Sequence[str]) -> list[str]:
        """The words of `texts` that the tiny world has never seen, each once, in order."""
        return world.unknown_words(texts)

    def condition(self, prompts: Sequence[str]) -> Conditioning:
        """The context of each prompt; this UNet needs nothing else."""
        return Conditioning(self.encode_text(prompts))

    def observe(
        self,
        latents: Float[Tensor, "b 4 h w"],
        timesteps: Int[Tensor, " b"],
        conditioning: Conditioning,
        observer: Observer[T],
    ) -> T:
        """What `observer` yields, after a pass over noised latents inside it; gradients pass where they are on."""
        latents, context = (x.to(self.device, self.dtype) for x in (latents, conditioning.context))
        with observer(self.models.unet) as seen:
            self.models.unet(latents, timesteps.to(self.device), context)
        return seen

    def generate(self, captions: Sequence[str], seed: int = 0, steps: int = 30, guidance: float = 5.0) -> Tensor:
        """Fresh latents b 4 16 16 of `captions`: DDIM with classifier-free guidance, noise from a CPU generator."""
        noise = schedule.seeded_noise((len(captions), 4, world.LATENT, world.LATENT), seed)
        context, empty = self.encode_text(captions), self.encode_text([""] * len(captions))
        return sample(self.models.unet, noise.to(self.device, self.dtype), context, empty, steps, guidance)

    def redraw(self, latents: Tensor, captions: Sequence[str], timestep: int, seed: int = 0, steps: int = 30) -> Tensor:
        """Clean `latents` b 4 h w, noised to `timestep` and drawn from there on with their `captions` (SDEdit, Meng et
        al., ICLR 2022); guidance as in `generate`."""
        latents = latents.to(self.device, self.dtype)
        noise = schedule.seeded_noise(tuple(latents.shape), seed).to(latents)
        timesteps = torch.full((len(latents),), timestep, dtype=torch.int64, device=self.device)
        noisy = self.add_noise(latents, noise, timesteps)
        context, empty = self.encode_text(captions), self.encode_text([""] * len(captions))
        return sample(self.models.unet, noisy, context, empty, steps, first=timestep)
