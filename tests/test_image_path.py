"""What happens to a picture's pixels on their way to masks: none is shifted, scaled, turned or mixed with another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ldznet import Predictor, load_head
from ldznet.hosts.tiny import TinyHost

SCALE = 0.18215


class Watched(TinyHost):
    """Keeps what it was given."""

    def encode_image(self, pixels: Tensor) -> Tensor:
        self.pixels = pixels.clone()
        return super().encode_image(pixels)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        self.latents = latents.clone()
        return super().add_noise(latents, noise, timesteps)


@pytest.fixture
def host() -> Watched:
    return Watched.load()


@pytest.fixture
def array() -> np.ndarray:
    """Every byte in every channel, each channel another way round, at the size that the head was trained at."""
    ramp = np.arange(128 * 128).reshape(128, 128) % 256
    return np.stack([ramp, 255 - ramp, ramp.T], axis=2).astype(np.uint8)


def with_alpha(array: np.ndarray) -> Image.Image:
    """Opaque at the top, transparent below."""
    alpha = np.full((128, 128, 1), 255, np.uint8)
    alpha[64:] = 0
    return Image.fromarray(np.concatenate([array, alpha], axis=2))


def expected_of(array: np.ndarray) -> Tensor:
    return (torch.from_numpy(array.astype(np.float64)) / 255 * 2 - 1).permute(2, 0, 1)[None].float()


@pytest.mark.parametrize("kind", ["array", "picture", "alpha", "[-1, 1]", "[0, 1]"])
def test_pixels_reach_the_vae_as_they_are(host: Watched, array: np.ndarray, kind: str) -> None:
    expected = expected_of(array)
    settings: dict[str, Any] = {"value_range": (0, 1)} if kind == "[0, 1]" else {}
    given: Any = {
        "array": array,
        "picture": Image.fromarray(array),
        "alpha": with_alpha(array),
        "[-1, 1]": expected,
        "[0, 1]": (expected + 1) / 2,
    }[kind]
    Predictor(host, load_head("tiny")).set_image(given, **settings)
    if kind == "alpha":
        expected[:, :, 64:] = 1  # transparency over white
    assert (host.pixels - expected).abs().max() < 1e-6


def test_latents_are_the_encoder_s_mean_times_the_scale(host: Watched, array: np.ndarray) -> None:
    """And they reach the noise as they are, of each picture of a batch."""
    pixels = torch.cat([expected_of(array), expected_of(array).flip(3)])
    predictor = Predictor(host, load_head("tiny"))
    predictor.set_image(pixels)
    predictor.predict(["grass"])
    with torch.no_grad():
        mean = host.models.vae.encoder(pixels)[:, :4]
    torch.testing.assert_close(host.latents, mean * SCALE, atol=1e-5, rtol=1e-5)
    assert mean.std() > 1


@pytest.mark.parametrize(("size", "resolution", "expected"), [
    ((256, 256), "head", (128, 128)),
    ((100, 300), "head", (64, 224)),
    ((100, 300), "native", (104, 304)),
    ((64, 64), "head", (128, 128)),
])  # fmt: skip
def test_the_size_that_the_network_sees(
    host: Watched, size: tuple[int, int], resolution: str, expected: tuple[int, int]
) -> None:
    """About the area of 128 x 128, sides in multiples of 32; or the picture's own in multiples of 8."""
    ramp = torch.linspace(-1, 1, size[1]).expand(1, 3, *size)
    Predictor(host, load_head("tiny"), resolution=resolution).set_image(ramp)
    assert host.pixels.shape[2:] == expected
    centres = (torch.arange(expected[1]) + 0.5) / expected[1] * size[1] - 0.5
    wanted = centres / (size[1] - 1) * 2 - 1
    inside = slice(8, -8)
    assert (host.pixels[0, 0, 0, inside] - wanted[inside]).abs().max() < 0.01
