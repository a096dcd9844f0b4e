"""Training the LDM: what its loss is made of, and what a batch holds."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ldznet.data import TinyWorldDataset
from ldznet.data.cache import Cache, add_latents, draw
from ldznet.schedule import add_noise, alphas_cumprod
from ldznet.tinyworld import world
from ldznet.tinyworld.namer import Namer
from ldznet.tinyworld.shapes import CATEGORIES
from ldznet.train.ldm import (
    CAPTION_DROP,
    DECISIVE,
    LARGE_SHARE,
    NAMING_WEIGHT,
    PERCEPTUAL_WEIGHT,
    UNNAMED,
    Denoising,
    LDMTask,
    only_category,
    perceptual_distance,
)

SIZE = 64


@pytest.fixture(scope="module")
def caches(models: world.Models, tmp_path_factory: pytest.TempPathFactory) -> list[Cache]:
    with torch.no_grad():
        return [
            add_latents(draw(TinyWorldDataset(3, size=SIZE, things=things), tmp_path_factory.mktemp("c")), encode)
            for things, encode in ((None, models.vae.encode), (1, models.vae.encode))
        ]


NONE = torch.tensor([UNNAMED, UNNAMED])


class Fixed(nn.Module):
    """A UNet with an answer of its own."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, *_: object) -> torch.Tensor:
        return self.answer


def test_the_loss_is_of_v_where_noise_dominates() -> None:
    noise, latents = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    t = torch.tensor([999, 600])
    off = noise + torch.tensor([0.1, 0.2])[:, None, None, None]
    loss, figures = Denoising(Fixed(off), nn.Identity(), None)(latents, noise, t, torch.zeros(2), NONE)
    alphas = alphas_cumprod()[t]
    assert loss.item() == pytest.approx(((torch.tensor([0.01, 0.04]) / alphas).mean()).item(), rel=1e-4)
    assert figures["mse"].item() == pytest.approx(0.025, rel=1e-4)


def test_a_right_prediction_looks_right_and_a_wrong_one_does_not() -> None:
    judge = Namer("latents")
    noise, latents = torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16)
    t, ids = torch.tensor([100, 700]), torch.zeros(2)
    right = Denoising(Fixed(noise), nn.Identity(), judge)(latents, noise, t, ids, NONE)
    assert right[0].item() == pytest.approx(0, abs=1e-6)
    loss, figures = Denoising(Fixed(noise * 0.9), nn.Identity(), judge)(latents, noise, t, ids, NONE)
    implied, a = _implied(latents, noise, t, noise * 0.9)
    seen = (a * perceptual_distance(judge.maps(implied), judge.maps(latents))).mean()
    assert figures["seen"].item() == pytest.approx(seen.item(), rel=1e-4)
    plain = Denoising(Fixed(noise * 0.9), nn.Identity(), None)(latents, noise, t, ids, NONE)[0]
    assert (loss - plain).item() == pytest.approx(PERCEPTUAL_WEIGHT * seen.item(), rel=1e-3)


def test_the_judge_must_name_the_captioned_category() -> None:
    judge = Namer("latents")
    noise, latents = torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16)
    t, ids = torch.tensor([100, 700]), torch.zeros(2)
    model = Denoising(Fixed(noise * 0.9), nn.Identity(), judge)
    implied, a = _implied(latents, noise, t, noise * 0.9)
    wrong = F.cross_entropy(judge(implied)[0][1:], torch.tensor([3])) * a[1].sqrt()
    loss, figures = model(latents, noise, t, ids, torch.tensor([UNNAMED, 3]))
    assert figures["named"].item() == pytest.approx(wrong.item() / 2, rel=1e-4)
    unnamed = model(latents, noise, t, ids, NONE)[0]
    assert (loss - unnamed).item() == pytest.approx(NAMING_WEIGHT * wrong.item() / 2, rel=1e-2)


def _implied(latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, eps: torch.Tensor) -> tuple:
    """The picture that a prediction implies, and the alphas."""
    a = alphas_cumprod()[t].float()
    wide = a[:, None, None, None]
    return (add_noise(latents, noise, t) - (1 - wide).sqrt() * eps) / wide.sqrt(), a


@pytest.mark.parametrize(
    ("captions", "category"),
    [
        (["a red star on grass", "a photo of a star"], "star"),
        (["a red star, a cat on grass", "a cat"], None),
        (["stripes on grass"], None),
        (["a cat, and sky"], "cat"),
    ],
)
def test_one_category_is_known_where_captions_name_one(captions: list[str], category: str | None) -> None:
    assert only_category(captions) == (list(CATEGORIES).index(category) if category else UNNAMED)


def test_judge_and_text_encoder_are_not_trained(models: world.Models, caches: list[Cache]) -> None:
    judge = Namer("latents")
    task = LDMTask(models.unet, models.text, models.tokenizer, caches, judge)
    loss, _ = task.loss(task.module, task.batch(0, 2, torch.Generator().manual_seed(0)))
    loss.backward()
    assert all(p.grad is None for model in (judge, models.text) for p in model.parameters())
    assert all(name.startswith("unet.") and p.grad is not None for name, p in task.module.named_parameters())


def test_batches_come_from_all_caches_with_their_captions(models: world.Models, caches: list[Cache]) -> None:
    task = LDMTask(models.unet, models.text, models.tokenizer, caches)
    latents, noise, timesteps, ids, categories = task.batch(0, 200, torch.Generator().manual_seed(0))
    every = torch.cat([cache.latents.float() for cache in caches])
    said = [[models.tokenizer.encode(c) for c in record["captions"]] for cache in caches for record in cache.records]
    counts = [0] * len(every)
    dropped = 0
    for row in range(200):
        (item,) = (i for i in range(len(every)) if torch.equal(every[i], latents[row]))
        counts[item] += 1
        empty = torch.equal(ids[row], task.empty)
        dropped += empty
        assert empty or ids[row].tolist() in said[item]
        assert categories[row] == (UNNAMED if empty else task.categories[item])
    assert min(counts) > 0
    assert dropped / 200 == pytest.approx(CAPTION_DROP, abs=0.06)
    assert noise.shape == latents.shape
    assert int(timesteps.max()) < 1000


def test_batches_lean_to_large_things_and_to_the_timesteps_that_decide(
    models: world.Models, caches: list[Cache]
) -> None:
    task = LDMTask(models.unet, models.text, models.tokenizer, caches)
    task.large = torch.tensor([4])
    latents, _, timesteps, _, _ = task.batch(0, 400, torch.Generator().manual_seed(0))
    same = torch.tensor([torch.equal(z, task.latents[4].float()) for z in latents]).float().mean()
    assert same.item() == pytest.approx(LARGE_SHARE + (1 - LARGE_SHARE) / len(task.latents), abs=0.06)
    low, high = DECISIVE
    assert ((timesteps >= low) & (timesteps < high)).float().mean().item() == pytest.approx(0.75, abs=0.06)


def test_only_images_of_one_large_thing_are_preferred(models: world.Models, caches: list[Cache]) -> None:
    task = LDMTask(models.unet, models.text, models.tokenizer, caches)
    records = [(cache, i) for cache in caches for i in range(len(cache))]
    for place, (cache, i) in enumerate(records):
        alone = only_category(cache.records[i]["captions"]) != UNNAMED
        assert (place in task.large.tolist()) == (alone and cache.mask(i, 0).mean() >= 0.06)
    assert len(task.large)


def test_latents_are_needed(models: world.Models, caches: list[Cache]) -> None:
    without = Cache(caches[0].folder)
    without.latents = None
    with pytest.raises(ValueError, match="add_latents"):
        LDMTask(models.unet, models.text, models.tokenizer, [caches[1], without])
