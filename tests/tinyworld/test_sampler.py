"""The tiny world's sampler, on a model whose answer is known: every image is `target`, exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ldznet.schedule import alphas_cumprod
from ldznet.tinyworld.sampler import sample


class Knows(nn.Module):
    """Predicts the noise of latents that are its `context`'s number times `target`; the first half is unconditional."""

    def __init__(self, target: Tensor) -> None:
        super().__init__()
        self.target = target

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        a = alphas_cumprod()[timesteps].float()[:, None, None, None]
        return (x - a.sqrt() * self.target * context[:, :1, :1, None]) / (1 - a).sqrt()


@pytest.fixture
def drawn() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 4, 8, 8, generator=generator), torch.randn(2, 4, 8, 8, generator=generator)


def test_without_guidance_it_arrives_at_what_the_model_says(drawn: tuple[Tensor, Tensor]) -> None:
    target, noise = drawn
    one = torch.ones(2, 3, 5)
    for rescale in (0.0, 0.7):
        found = sample(Knows(target), noise, one, 0 * one, steps=10, guidance=1.0, rescale=rescale)
        torch.testing.assert_close(found, target.expand_as(found), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("rescale", "expected"), [(0.0, 5.0), (0.7, 2.2), (1.0, 1.0)])
def test_guidance_overdoes_it_and_rescaling_takes_it_back(
    drawn: tuple[Tensor, Tensor], rescale: float, expected: float
) -> None:
    target, noise = drawn
    one = torch.ones(2, 3, 5)
    found = sample(Knows(target), noise, one, 0 * one, steps=10, guidance=5.0, rescale=rescale)
    torch.testing.assert_close(found, expected * target.expand_as(found), atol=1e-3, rtol=1e-3)
