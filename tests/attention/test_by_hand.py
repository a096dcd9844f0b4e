"""The attention head's recipe a second time, in numpy, from the papers' equations: maps, evidence, scores, logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from ldznet.attention import AttentionConfig
from ldznet.attention.denoising import opening_alone, text_errors
from ldznet.attention.finding import found_in, logits_of
from ldznet.attention.presence import MEASURES, Evidence
from ldznet.attention.prompts import Prompt
from ldznet.attention.reading import Attention
from ldznet.config import UNetConfig
from ldznet.hosts.tiny import TinyHost

SPECS = UNetConfig().tap_specs()
CONFIG = AttentionConfig(
    coarse=("2/input",),
    fine=("1/output",),
    self_attention=("1/output.0", "1/output.2"),
    weights=(0.7, 0.3),
    steps=3,
    sharpening=0.1,
    threshold=0.4,
)
PROMPT = Prompt("", ("a", "b"), ((1, 2), (3,)), ((4,), (5,)))
TOKENS, SIDE = 7, 4
DOUBLED = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])  # bilinear, 2 pixels to 4


@pytest.fixture(scope="module")
def attention() -> Attention:
    """Random cross-attention of two levels, and self-attention whose rows sum to 1."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator) ** 2

    cross = {block: drawn(1, TOKENS, 2, 2) for block in ("input.4", "input.5")}
    cross |= {block: drawn(1, TOKENS, SIDE, SIDE) for block in ("output.9", "output.10", "output.11")}
    links = {block: drawn(1, SIDE**2, SIDE**2) for block in ("output.9", "output.11")}
    return Attention(cross, {block: part / part.sum(dim=2, keepdim=True) for block, part in links.items()})


def tokens_of(attention: Attention, normalised: bool) -> np.ndarray:
    """n (h w): each block's map brought to size, summing to 1 if `normalised`; 0.7 of one level's mean, 0.3 of the
    other's."""
    cross = {block: maps[0].double().numpy() for block, maps in attention.cross.items()}
    coarse = [DOUBLED @ cross[block] @ DOUBLED.T for block in ("input.4", "input.5")]
    fine = [cross[block] for block in ("output.9", "output.10", "output.11")]
    if normalised:
        coarse, fine = ([maps / maps.sum((1, 2), keepdims=True) for maps in level] for level in (coarse, fine))
    return (0.7 * np.mean(coarse, axis=0) + 0.3 * np.mean(fine, axis=0)).reshape(TOKENS, -1)


def grouped(tokens: np.ndarray, groups: Sequence[Sequence[int]]) -> np.ndarray:
    return np.stack([tokens[list(group)].mean(0) for group in groups])


def stretched(maps: np.ndarray) -> np.ndarray:
    low, high = maps.min(1, keepdims=True), maps.max(1, keepdims=True)
    return (maps - low) / (high - low)


def links_of(attention: Attention) -> np.ndarray:
    """iSeg's entropy reduction of the mean self-attention."""
    mean = np.mean([part[0].double().numpy() for part in attention.self_attention.values()], axis=0)
    a = mean / mean.max(0, keepdims=True)
    a = np.maximum(0, a + 0.1 * np.log10(np.e * a))
    return a / a.sum(1, keepdims=True)


def expected(attention: Attention) -> tuple[np.ndarray, Evidence]:
    """Maps p (h w), and the evidence as arrays."""
    groups = (*PROMPT.phrase_tokens, *PROMPT.background_tokens)
    tokens = tokens_of(attention, normalised=True)
    maps = grouped(tokens, groups) / tokens[1:6].sum(0)
    links = links_of(attention)
    filled = maps @ np.linalg.matrix_power(links, 3).T
    m = stretched(maps[:2])
    for _ in range(3):
        m = m @ links.T
        m = m - m.min(1, keepdims=True)
        m = m / m.sum(1, keepdims=True)
    bare = grouped(tokens_of(attention, normalised=False), groups)
    return stretched(m), Evidence(bare[:2], maps[:2], filled[:2], bare[2:], filled[2:])


def close(found: torch.Tensor, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found[0].double().numpy().reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-6)


def test_maps_and_evidence(attention: Attention) -> None:
    found, (maps, evidence) = found_in(attention, PROMPT, CONFIG, SPECS, (SIDE, SIDE)), expected(attention)
    close(found.maps, maps)
    for name in Evidence._fields:
        close(getattr(found.evidence, name), getattr(evidence, name))


def test_logits(attention: Attention) -> None:
    """Of the stretched map over the threshold; on one scale, of the lead over the best background word."""
    maps, evidence = expected(attention)
    found = found_in(attention, PROMPT, CONFIG, SPECS, (SIDE, SIDE))
    close(logits_of(found, CONFIG), 10 * (maps - 0.4))
    common = dataclasses.replace(CONFIG, scale="common")
    most = max(evidence.filled.max(), evidence.filled_background.max())
    close(logits_of(found, common), 10 * (evidence.filled - evidence.filled_background.max(0)) / most)


def test_measures_of_presence(attention: Attention) -> None:
    found, (_, e) = found_in(attention, PROMPT, CONFIG, SPECS, (SIDE, SIDE)).evidence, expected(attention)
    wanted = {
        "peak": e.filled.max(1),
        "margin": (e.filled - e.filled_background.max(0)).max(1),
        "ratio": np.log(e.attention / e.attention_background.sum(0)).max(1),
        "attention_peak": np.log(e.attention.max(1)),
        "attention_mean": np.log(e.attention.mean(1)),
        "contrast": np.log(e.filled.max(1) / e.filled.mean(1)),
    }
    assert set(wanted) == set(MEASURES)
    for name, measure in MEASURES.items():
        close(measure(found), wanted[name])


def test_each_timestep_has_a_noise_of_its_own(host: TinyHost) -> None:
    """Errors of the predicted noise under two texts, at two timesteps, channel means of squares."""
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    errors, rows = text_errors(host, latents, "a photo of", ["grass"], (300, 500), 7, opening_alone)
    assert (errors.shape, rows) == ((1, 2, 2, 8, 8), [(0, [1])])
    for i, t in enumerate((300, 500)):
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7 + i))
        noisy = host.add_noise(latents, noise, torch.tensor([t]))
        for n, text in enumerate(("a photo of grass", "a photo of")):
            with torch.no_grad():
                predicted = host.models.unet(noisy, torch.tensor([t]), host.encode_text([text]))
            wanted = ((predicted - noise) ** 2).mean(dim=1)[0]
            torch.testing.assert_close(errors[0, i, n], wanted, atol=1e-4, rtol=1e-4)
