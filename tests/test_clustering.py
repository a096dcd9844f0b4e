"""Regions without words, and maps that are smoothed over frames."""

from __future__ import annotations

import pytest
import torch

from ldznet import Predictor
from ldznet.clustering import KINDS, ClusterHead, early_blocks, regions_of
from ldznet.errors import InputError
from ldznet.frames import steadied
from ldznet.hosts.tiny import TinyHost
from ldznet.segmentation import Segmentation
from ldznet.tinyworld import scene

SEED = 40  # a star on brick over grass, and another


@pytest.fixture(scope="module")
def host() -> TinyHost:
    """The tiny world's."""
    return TinyHost.load()


def test_regions_are_the_clusters_of_points_largest_first() -> None:
    """Three colours of 6, 3 and 1 columns, under a little noise; logits over 0 in one region alone."""
    noise = torch.randn(2, 5, 10, generator=torch.Generator().manual_seed(0)) * 0.05
    place = torch.tensor([0] * 3 + [1] * 6 + [2])
    colours = torch.tensor([[4.0, 0.0, -3.0], [0.0, 2.0, -3.0]])
    logits = regions_of(colours[:, place][:, None] + noise, 3)
    assert logits.shape == (3, 5, 10)
    assert ((logits > 0).sum(dim=0) == 1).all()
    order = torch.tensor([1, 0, 2])[place]  # of six columns, of three, of one
    assert torch.equal(logits.argmax(dim=0), order.expand(5, 10))
    assert torch.equal(regions_of(colours[:, place][:, None] + noise, 3), logits)
    for count in (1, 17):
        with pytest.raises(InputError, match=f"Expected 2 to 16 regions, got {count}"):
            regions_of(colours[:, place][:, None] + noise, count)


@pytest.mark.parametrize("kind", KINDS)
def test_a_scene_s_stuff_is_found_without_words(host: TinyHost, kind: str) -> None:
    drawn = scene(SEED, "photo")
    predictor = Predictor(host, ClusterHead(kind))
    predictor.set_image(drawn.image)
    result = predictor.predict(["region 1", "region 2", "region 3"])
    masks = result.masks()[0]
    assert masks.sum(dim=0).max() == 1
    shares = masks.float().mean(dim=(1, 2))
    assert shares[0] >= shares[1] >= shares[2] - 0.01
    torch.testing.assert_close(shares, result.scores[0], atol=0.05, rtol=0)
    for phrase in ("brick", "grass"):
        truth = torch.from_numpy(drawn.masks[phrase])
        overlaps = (masks & truth).sum((1, 2)) / (masks | truth).sum((1, 2))
        assert overlaps.max() > 0.7, phrase


def test_features_come_from_the_early_blocks(host: TinyHost) -> None:
    assert early_blocks(host.specs) == ["input.2", "input.4", "input.5"]
    with pytest.raises(InputError, match='Expected features or self-attention, got "words"'):
        ClusterHead("words")


def test_frames_are_smoothed_both_ways() -> None:
    logits = torch.zeros(5, 1, 2, 2)
    logits[2] = 8.0
    result = Segmentation(logits, ("a star",), (16, 16), torch.tensor([[1.0], [1], [0], [1], [1]]))
    assert steadied(result, 0) is result
    smoothed = steadied(result, 0.5)
    wanted = [8 * part for part in (1 / 4 / (1 + 1 / 2 + 1 / 4 + 1 / 8 + 1 / 16) / 2, 1 / 2 / (15 / 8) / 2, 4 / 7)]
    torch.testing.assert_close(smoothed.logits[:, 0, 0, 0], torch.tensor([*wanted, *wanted[1::-1]]))
    assert steadied(result, 0.7).found.all()  # but for the one frame, it was there
    for strength in (-0.1, 1.0):
        with pytest.raises(InputError, match=f"Expected a strength from 0 to 0.99, got {strength}"):
            steadied(result, strength)
