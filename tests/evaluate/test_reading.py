"""Whether a head reads its taps: what each mistake does to them, and what it costs the heads that come with us."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ldznet import load_head
from ldznet.data import TinyWorldDataset
from ldznet.data.cache import images_to_pixels
from ldznet.evaluate.reading import MISTAKES, NULL, OWN, Reading, _iou, _logits, reading
from ldznet.hosts.tiny import TinyHost
from ldznet.models import build_head
from ldznet.models.trained import conditioned
from ldznet.tinyworld import world
from ldznet.train.recipe import seeded
from ldznet.train.tiers import tier_config

TAPS = {"a": torch.arange(4.0).view(2, 2, 1, 1), "b": torch.full((2, 2, 1, 1), 7.0), "c": torch.ones(2, 3, 1, 1)}
OTHER = {block: -tap for block, tap in TAPS.items()}


def test_what_each_mistake_does() -> None:
    done = {name: mistake(TAPS, OTHER) for name, mistake in MISTAKES.items()}
    assert torch.equal(done["taps of another scene"]["a"], -TAPS["a"])
    swapped = done["blocks swapped"]
    assert torch.equal(swapped["a"], TAPS["b"])
    assert torch.equal(swapped["b"], TAPS["a"])
    assert torch.equal(swapped["c"], TAPS["c"])  # no other of its shape
    assert torch.equal(done["taps of another phrase"]["a"], TAPS["a"].flip(0))


def test_iou_by_hand() -> None:
    masks, truths = torch.tensor([[[True, True, False]]]), torch.tensor([[[True, False, False]]])
    assert _iou(masks, truths).tolist() == [pytest.approx(1 / 3)]


def test_a_cost_is_paired() -> None:
    found = Reading({OWN: np.array([0.9, 0.5]), NULL: np.array([0.6, 0.4])}, np.array([0, 1]))
    mean, low, high = found.cost(NULL)
    assert mean == pytest.approx(0.2)
    assert (low, high) == (pytest.approx(0.1), pytest.approx(0.3))


@pytest.fixture(scope="module")
def scenes() -> list:
    dataset = TinyWorldDataset(6, start=0, domain="photo")
    return [dataset[i] for i in range(6)]


def test_the_light_head_reads_its_taps(scenes: list) -> None:
    found = reading(
        load_head("tiny-light"), TinyHost.load(), scenes, mistakes=["taps of another scene", "blocks swapped"]
    )
    assert found.ious[OWN].mean() > 0.35
    assert found.cost("taps of another scene")[0] > 0.15
    assert found.cost("blocks swapped")[0] > 0.05


def test_two_passes_are_asked_by_the_host_s_unet(scenes: list) -> None:
    host = TinyHost.load(dtype=torch.float32)
    with seeded(0):
        head = build_head(tier_config("two", "tiny", world.UNET, world.PIXELS, 4)).begin()
        for addition in head.additions.values():
            torch.nn.init.normal_(addition.attn3.to_out[0].weight, std=0.5)
    latents = host.encode_image(images_to_pixels(scenes[0].image[None]))
    text = conditioned(host, ["a star"])
    taps = head.extracted(host, latents, text, 200, seed=0)
    other = head.extracted(host, host.encode_image(images_to_pixels(scenes[1].image[None])), text, 200, seed=0)
    own, left_out = (_logits(head, host, latents, text, taps, there) for there in (True, False))
    none = {block: torch.zeros_like(tap) for block, tap in taps.items()}
    assert torch.equal(own, head.masks_over(host, latents, text, taps)[0])
    assert torch.equal(left_out, head.masks_over(host, latents, text, none)[0])
    wrong = _logits(head, host, latents, text, other, True)
    assert min((own - left_out).abs().max(), (own - wrong).abs().max()) > 1e-3
