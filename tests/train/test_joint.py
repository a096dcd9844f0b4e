"""Training the tiny world's transformer: what its loss is made of, what a batch holds, and that its sampler samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ldznet.data import TinyWorldDataset
from ldznet.data.cache import Cache, add_latents, draw
from ldznet.errors import InputError
from ldznet.tinyworld import joint, world
from ldznet.tinyworld.namer import Namer
from ldznet.train.joint import DECISIVE, Flowing, JointTask
from ldznet.train.ldm import NAMING_WEIGHT, PERCEPTUAL_WEIGHT, UNNAMED, perceptual_distance

pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def caches(models: world.Models, tmp_path_factory: pytest.TempPathFactory) -> list[Cache]:
    with torch.no_grad():
        return [
            add_latents(draw(TinyWorldDataset(3, things=things), tmp_path_factory.mktemp("c")), models.vae.encode)
            for things in (1, None)
        ]


class Fixed(nn.Module):
    """A transformer with an answer of its own, which remembers what it was given."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer = answer
        self.given: list[tuple[Any, ...]] = []

    def forward(self, *given: Any, return_dict: bool) -> tuple[torch.Tensor]:
        self.given.append(given)
        return (self.answer,)


def parts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents, noise, shares of noise and an answer."""
    generator = torch.Generator().manual_seed(1)
    latents, noise, answer = torch.randn(3, 2, 4, 16, 16, generator=generator)
    return latents, noise, torch.tensor([0.6, 0.3]), answer


def test_the_loss_is_that_of_noise_minus_latents(models: world.Models) -> None:
    latents, noise, sigmas, answer = parts()
    fixed, ids = Fixed(answer), torch.tensor([joint.token_ids(models.tokenizer, "a red star")] * 2)
    loss, figures = Flowing(fixed, models.text, None)(latents, noise, sigmas, ids, torch.tensor([UNNAMED, 2]))
    torch.testing.assert_close(loss, F.mse_loss(answer, noise - latents))
    noisy, _, _, times = fixed.given[0]
    torch.testing.assert_close(noisy[0], 0.4 * latents[0] + 0.6 * noise[0])
    assert times.tolist() == pytest.approx([600, 300])
    assert list(figures) == ["mse"]


def test_the_judge_sees_what_the_prediction_implies_in_every_second_row(models: world.Models) -> None:
    latents, noise, sigmas, answer = parts()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        judge = Namer("latents").eval()
    ids = torch.tensor([joint.token_ids(models.tokenizer, "a red star")] * 2)
    flowing = Flowing(Fixed(answer), models.text, judge)
    loss, figures = flowing(latents, noise, sigmas, ids, torch.tensor([3, 5]))
    implied = (0.4 * latents + 0.6 * noise - 0.6 * answer)[:1]
    visible = 0.4**2 / (0.4**2 + 0.6**2)
    maps = judge.maps(implied)
    named = visible**0.5 * F.cross_entropy(judge.read(maps)[0], torch.tensor([3]))
    seen = visible * perceptual_distance(maps, judge.maps(latents[:1]))[0]
    torch.testing.assert_close(figures["named"], named.detach())
    torch.testing.assert_close(figures["seen"], seen.detach())
    expected = F.mse_loss(answer, noise - latents) + PERCEPTUAL_WEIGHT / 2 * seen + NAMING_WEIGHT * named
    torch.testing.assert_close(loss, expected)


def test_what_the_transformer_reads_of_a_text(models: world.Models) -> None:
    ids = torch.tensor([models.tokenizer.encode("a red star")])
    context, pooled = joint.read(models.text, ids[:, : joint.ROWS])
    assert context.shape == (1, joint.ROWS, 128)
    states = models.text(ids)  # after the final norm
    normed = models.text.text_model["final_layer_norm"](context[..., :64])
    torch.testing.assert_close(normed, states[:, : joint.ROWS])
    torch.testing.assert_close(pooled, states[:, 4].repeat(1, 2))  # start, three words, end
    assert torch.equal(context[..., :64], context[..., 64:])
    with pytest.raises(InputError, match="Expected at most 30 tokens, got 31"):
        joint.token_ids(models.tokenizer, "red " * 31)


def test_every_second_row_of_a_batch_shows_one_large_thing(models: world.Models, caches: list[Cache]) -> None:
    task = JointTask(Fixed(torch.zeros(1)), models.text, models.tokenizer, caches)
    task.large = torch.tensor([1])
    batches = [task.batch(i, 8, torch.Generator().manual_seed(i)) for i in range(40)]
    assert all(torch.equal(latents[::2], task.latents[[1] * 4].float()) for latents, *_ in batches)
    sigmas = torch.stack([batch[2] for batch in batches])
    assert float(sigmas[:, ::2].min()) > DECISIVE[0]
    assert float(sigmas[:, ::2].max()) < DECISIVE[1]
    assert float(sigmas[:, 1::2].min()) < 0.05
    ids, categories = (torch.cat([batch[part] for batch in batches]) for part in (3, 4))
    empty = (ids == task.empty).all(dim=1)
    assert 0.04 < float(empty.float().mean()) < 0.17  # a tenth
    assert (categories[empty] == UNNAMED).all()
    again = task.batch(3, 8, torch.Generator().manual_seed(3))
    assert all(torch.equal(a, b) for a, b in zip(again, batches[3], strict=True))


def test_the_sampler_follows_the_flow(models: world.Models) -> None:
    """A flow towards fixed latents ends there; guidance goes beyond the captioned prediction."""
    latents, noise, *_ = parts()
    text = torch.zeros(2, 1, 1), torch.zeros(2, 1)

    class Towards(nn.Module):
        def forward(self, x: Any, context: Any, pooled: Any, t: Any, return_dict: bool) -> tuple[Any]:
            flow = (x[2:] - latents) / (t[2:, None, None, None] / 1000)
            return (torch.cat([flow - 1, flow]),)

    drawn = joint.sample(Towards(), noise, text, text, steps=7, guidance=1.0)
    torch.testing.assert_close(drawn, latents, atol=1e-4, rtol=0)
    beyond = joint.sample(Towards(), noise, text, text, steps=1, guidance=3.0)
    torch.testing.assert_close(beyond, latents - 2, atol=1e-4, rtol=0)


def test_an_untrained_transformer_says_nothing_and_fits_the_budget() -> None:
    fresh = joint.fresh()
    count = sum(parameter.numel() for parameter in fresh.parameters())
    assert count < 4_000_000
    given = torch.randn(1, 4, 16, 16), torch.randn(1, 32, 128), torch.randn(1, 128), torch.tensor([500.0])
    with torch.no_grad():
        assert not fresh(*given, return_dict=False)[0].any()
