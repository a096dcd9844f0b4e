"""The gates' parts: what a name is, what a grown mask is, whose attention is read, and when a gate is passed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ldznet.attention.reading import probabilities
from ldznet.data import TinyWorldDataset
from ldznet.errors import CheckpointError
from ldznet.evaluate import gates
from ldznet.evaluate.gates import Gate
from ldznet.hosts.tiny import TinyHost
from ldznet.tinyworld import CATEGORIES, COLOURS, world
from ldznet.tinyworld.namer import Namer, labels_of


@pytest.fixture(scope="module")
def host() -> TinyHost:
    torch.manual_seed(0)
    return TinyHost(world.Models(*(m.eval() for m in world.fresh()[:3]), world.tokenizer()))


def test_labels_by_hand() -> None:
    category, colour = labels_of("a striped orange cat")
    assert (list(CATEGORIES)[category], list(COLOURS)[colour]) == ("cat", "orange")


@pytest.mark.parametrize(("sort", "shape"), [("pixels", (2, 3, 128, 128)), ("latents", (2, 4, 16, 16))])
def test_a_namer_names_categories_and_colours(sort: str, shape: tuple[int, ...]) -> None:
    category, colour = Namer(sort)(torch.zeros(shape))
    assert category.shape == (2, len(CATEGORIES))
    assert colour.shape == (2, len(COLOURS))


def test_a_mask_grows_by_one_cell() -> None:
    mask = torch.zeros(128, 128, dtype=torch.bool)
    mask[40, 40] = True  # cell 2, 2
    grown = gates._grown(mask)
    assert grown.shape == (8, 8)
    assert grown.sum() == 9
    assert grown[1:4, 1:4].all()


def test_noun_attention_reads_the_noun_and_leaves_no_hook(host: TinyHost) -> None:
    scenes = TinyWorldDataset(3, things=1)
    maps = gates.noun_attention(host, [scenes[i] for i in range(3)])
    assert maps.shape == (3, 8, 8)
    assert ((maps > 0) & (maps < 1)).all()
    assert not any(module._forward_hooks for module in host.models.unet.modules())


def test_attention_weights_sum_to_one(host: TinyHost) -> None:
    layer = host.models.unet.input_blocks[4][1].transformer_blocks[0].attn2
    query, key = layer.to_q(torch.randn(2, 64, 64)), layer.to_k(torch.randn(2, 77, 64))
    weights = probabilities(query, key, layer.heads)
    assert torch.allclose(weights.sum(dim=2), torch.ones(2, 64))


def test_a_gate_is_passed_from_its_figure_on() -> None:
    assert Gate("", 0.70, 0.70).passed
    assert not Gate("", 0.69, 0.70).passed


def test_the_interval_of_a_share_by_hand() -> None:
    """Wilson's of 81 in 263, as Newcombe (1998, table I) has it."""
    assert gates.share_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)


def test_without_judges_it_says_what_to_train(host: TinyHost, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Run `ldznet train classifier`"):
        gates.gates(host, tmp_path, 2, lambda done, total: None)
