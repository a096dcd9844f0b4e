"""How much a phrase helps the UNet to see through noise: a sign of presence that costs passes of its own.

The diffusion classifier (Li et al., ICCV 2023, arXiv 2303.16203): a text that is true of a picture lowers the error of
the predicted noise. Imports contracts, errors, schedule and taps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..contracts import AttentionHost
from ..errors import TapError
from ..schedule import seeded_noise
from ..shapes import Float
from ..taps import watching

LAST = ("conv_out", "out")  # a UNet's last module, in diffusers and in the LDM
MOST_TEXTS = 16  # in one pass


@contextlib.contextmanager
def reading_output(unet: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Fills {"noise": b 4 h w} with what `unet` predicts when it runs inside; its hook goes whatever happens."""
    last = next((module for name in LAST if isinstance(module := getattr(unet, name, None), nn.Module)), None)
    if last is None:
        raise TapError(f"Expected a UNet that ends in {' or '.join(LAST)}, got a {type(unet).__name__}.")
    seen: dict[str, Tensor] = {}

    def read(name: str, output: Any) -> None:
        seen["noise"] = output.detach().clone()

    with watching({"the UNet's last layer": last}, read):
        yield seen


@torch.no_grad()
def gains(
    host: AttentionHost,
    latents: Float[Tensor, "b 4 h w"],
    opening: str,
    phrases: Sequence[str],
    timesteps: Sequence[int],
    seed: int,
) -> Float[Tensor, "b p"]:
    """The share of the error of the predicted noise that "`opening` phrase" takes away from that of `opening` alone.

    Mean over `timesteps`, one noise each; `latents` are clean. For models that predict the noise (epsilon).
    """
    texts = [opening, *(f"{opening} {phrase}" for phrase in phrases)]
    total = torch.zeros(len(latents), len(phrases), device=latents.device)
    for number, timestep in enumerate(timesteps):
        noise = seeded_noise((1, *latents.shape[1:]), seed + number).to(latents)
        errors = torch.stack([_errors(host, z[None], noise, texts, timestep) for z in latents])
        total += 1 - errors[:, 1:] / errors[:, :1]
    return total / len(timesteps)


def _errors(host: AttentionHost, latents: Tensor, noise: Tensor, texts: Sequence[str], timestep: int) -> Tensor:
    """Mean squared error of the noise predicted for one picture under each text."""
    parts = []
    for start in range(0, len(texts), MOST_TEXTS):
        given = host.condition(list(texts[start : start + MOST_TEXTS]))
        steps = torch.full((len(given.context),), timestep, device=latents.device)
        noisy = host.add_noise(latents, noise, steps[:1]).expand(len(steps), -1, -1, -1)
        predicted = host.observe(noisy, steps, given, reading_output)["noise"]
        parts.append((predicted.float() - noise.float()).square().mean(dim=(1, 2, 3)))
    return torch.cat(parts)
