"""How much a phrase helps the UNet to see through noise: a sign of presence that costs passes of its own.

The diffusion classifier (Li et al., ICCV 2023, arXiv 2303.16203): a text that is true of a picture lowers the error of
the predicted noise. Imports contracts, errors, images, schedule, taps and this folder's prompts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..contracts import AttentionHost
from ..errors import TapError
from ..images import resize
from ..schedule import seeded_noise
from ..shapes import Float
from ..taps import exclusively, watching
from .prompts import STOP_WORDS, bare

LAST = ("conv_out", "out")  # a UNet's last module, in diffusers and in the LDM
MOST_TEXTS = 16  # in one pass

Rivals = Callable[[str, str], list[str]]
"""The texts that a phrase after an opening is held against."""


def opening_alone(opening: str, phrase: str) -> list[str]:
    """What is seen without the phrase: "a photo of"."""
    return [opening]


def without_each_word(opening: str, phrase: str) -> list[str]:
    """The phrase without each of its words that name something: "a photo of a star" and "a photo of a red"."""
    words = phrase.split()
    naming = [i for i, word in enumerate(words) if bare(word) not in STOP_WORDS]
    if len(naming) < 2:
        return [opening]
    return [" ".join([opening, *words[:i], *words[i + 1 :]]) for i in naming]


RIVALS: dict[str, Rivals] = {"gain": opening_alone, "weakest": without_each_word}  # by `Presence.measure`


@contextlib.contextmanager
def reading_output(unet: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Fills {"noise": b 4 h w} with what `unet` predicts when it runs inside; its hook goes whatever happens."""
    last = next((module for name in LAST if isinstance(module := getattr(unet, name, None), nn.Module)), None)
    if last is None:
        raise TapError(f"Expected a UNet that ends in {' or '.join(LAST)}, got a {type(unet).__name__}.")
    seen: dict[str, Tensor] = {}

    def read(name: str, output: Any) -> None:
        seen["noise"] = output.detach().clone()

    with exclusively(unet), watching({"the UNet's last layer": last}, read):
        yield seen


@torch.no_grad()
def gains(
    host: AttentionHost,
    latents: Float[Tensor, "b 4 h w"],
    opening: str,
    phrases: Sequence[str],
    timesteps: Sequence[int],
    seed: int,
    rivals: Rivals = opening_alone,
) -> Float[Tensor, "b p"]:
    """The share of the error of the predicted noise that "`opening` phrase" takes away from its hardest rival's.

    Mean over `timesteps`, one noise each; `latents` are clean. For models that predict the noise (epsilon).
    """
    errors, rows = text_errors(host, latents, opening, phrases, timesteps, seed, rivals)
    return torch.stack([least_gain(errors, row, of_rivals) for row, of_rivals in rows], dim=1)


def text_errors(
    host: AttentionHost,
    latents: Float[Tensor, "b 4 h w"],
    opening: str,
    phrases: Sequence[str],
    timesteps: Sequence[int],
    seed: int,
    rivals: Rivals,
) -> tuple[Float[Tensor, "b t n h w"], list[tuple[int, list[int]]]]:
    """Squared errors of the noise predicted under n texts, and each phrase's row among them and those of its rivals."""
    asked = [(f"{opening} {phrase}", rivals(opening, phrase)) for phrase in phrases]
    texts = list(dict.fromkeys(text for phrased, others in asked for text in (phrased, *others)))
    rows = [(texts.index(phrased), [texts.index(other) for other in others]) for phrased, others in asked]
    noises = [seeded_noise((1, *latents.shape[1:]), seed + i).to(latents) for i in range(len(timesteps))]
    errors = [
        torch.stack([_errors(host, z[None], n, texts, t) for n, t in zip(noises, timesteps, strict=True)])
        for z in latents
    ]
    return torch.stack(errors), rows


def least_gain(
    errors: Float[Tensor, "b t n h w"], row: int, others: Sequence[int], where: Float[Tensor, "b h w"] | None = None
) -> Float[Tensor, " b"]:
    """The share of the error that a text's is below its hardest rival's, mean over t; weighted by `where` if given."""
    if where is not None:
        errors = errors * resize(where[:, None], (errors.shape[3], errors.shape[4]))[:, None]
    sums = errors.sum(dim=(3, 4))
    return (1 - sums[:, :, [row]] / sums[:, :, list(others)]).mean(dim=1).amin(dim=1)


def _errors(
    host: AttentionHost, latents: Tensor, noise: Tensor, texts: Sequence[str], timestep: int
) -> Float[Tensor, "n h w"]:
    """Of the noise predicted for one picture under each text, mean over channels."""
    parts = []
    for start in range(0, len(texts), MOST_TEXTS):
        given = host.condition(list(texts[start : start + MOST_TEXTS]))
        steps = torch.full((len(given.context),), timestep, dtype=torch.int64, device=latents.device)
        noisy = host.add_noise(latents, noise, steps[:1]).expand(len(steps), -1, -1, -1)
        predicted = host.observe(noisy, steps, given, reading_output)["noise"]
        parts.append((predicted.float() - noise.float()).square().mean(dim=1))
    return torch.cat(parts)
