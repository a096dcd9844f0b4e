"""The steps of the recipe on maps small enough to check by hand, and the rules that they keep."""

from __future__ import annotations

import math

import pytest
import torch

from ldznet.attention.config import Presence
from ldznet.attention.maps import group_means, min_max, propagated, shares, sharpened, token_maps
from ldznet.attention.presence import MEASURES, Evidence, agreement, score


def random(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_levels_are_weighted_at_any_resolution() -> None:
    cross = {"a": torch.full((1, 2, 2, 2), 0.3), "b": torch.full((1, 2, 4, 4), 0.9), "c": random(1, 2, 4, 4)}
    maps = token_maps(cross, ((("a",), 0.7), (("b", "c"), 0.3)), (8, 8))
    assert maps.shape == (1, 2, 8, 8)
    torch.testing.assert_close(maps.sum(dim=(2, 3)), torch.ones(1, 2))
    flat = token_maps(cross, ((("a",), 0.7), (("b",), 0.3)), (8, 8))
    torch.testing.assert_close(flat, torch.full((1, 2, 8, 8), 1 / 64))
    bare = token_maps(cross, ((("a",), 0.5), (("b",), 0.5)), (8, 8), normalised=False)
    torch.testing.assert_close(bare, torch.full((1, 2, 8, 8), 0.6))


def test_shares_of_all_content_tokens_sum_to_one() -> None:
    tokens = random(2, 6, 3, 4)
    maps = group_means(tokens, [[1], [2, 4], [5]])
    torch.testing.assert_close(maps[:, 1], (tokens[:, 2] + tokens[:, 4]) / 2)
    part = shares(maps, tokens[:, [1, 2, 4, 5]])
    torch.testing.assert_close(part[:, 0] + 2 * part[:, 1] + part[:, 2], torch.ones(2, 3, 4))
    assert group_means(tokens, []).shape == (2, 0, 3, 4)


def test_min_max() -> None:
    maps = torch.stack([random(3, 4) * 7 - 2, torch.full((3, 4), 5.0)])[None]
    stretched = min_max(maps)
    assert (stretched[0, 0].min(), stretched[0, 0].max()) == (0, 1)
    assert not stretched[0, 1].any()


def test_sharpening_by_hand() -> None:
    a = torch.tensor([[[0.8, 0.2], [0.5, 0.5]]])
    divided = [[1.0, 0.4], [0.625, 1.0]]
    raised = [[x + 0.015 * math.log10(math.e * x) for x in row] for row in divided]
    expected = torch.tensor([[[x / sum(row) for x in row] for row in raised]])
    torch.testing.assert_close(sharpened(a, 0.015), expected)
    torch.testing.assert_close(a, torch.tensor([[[0.8, 0.2], [0.5, 0.5]]]))  # it was a copy


def test_sharpening_cuts_weak_links_and_lowers_entropy() -> None:
    a = (random(2, 30, 30) * 8).softmax(dim=2)
    plain, sharp = sharpened(a, 0), sharpened(a, 0.2)
    torch.testing.assert_close(sharp.sum(dim=2), torch.ones(2, 30))
    assert (sharp == 0).sum() > (plain == 0).sum()

    def entropy(p: torch.Tensor) -> torch.Tensor:
        return -(p * p.clamp(min=1e-12).log()).sum(dim=2)

    assert (entropy(sharp) <= entropy(plain) + 1e-5).all()


def test_a_pixel_without_links_keeps_to_itself() -> None:
    a = torch.tensor([[[1e-9, 1e-9], [0.1, 0.9]]])
    assert sharpened(a, 0.015)[0, 0].tolist() == [1, 0]


def test_a_map_fills_what_it_lies_in() -> None:
    """Two islands of pixels that attend only to each other: a spot on one spreads over that one alone."""
    links = torch.zeros(1, 6, 6)
    links[0, :3, :3] = links[0, 3:, 3:] = 1 / 3
    spot = torch.tensor([1.0, 0, 0, 0, 0, 0]).reshape(1, 1, 2, 3)
    filled = propagated(spot, links, 3)
    torch.testing.assert_close(filled.flatten(), torch.tensor([1, 1, 1, 0, 0, 0]) / 3)
    torch.testing.assert_close(propagated(spot, links, 3, stretch=False), filled)
    assert torch.equal(propagated(spot, links, 0), spot)


def test_shares_stay_shares_without_stretching() -> None:
    links = sharpened(random(1, 12, 12), 0.015)
    part = random(1, 5, 3, 4).softmax(dim=1)
    torch.testing.assert_close(propagated(part, links, 8, stretch=False).sum(dim=1), torch.ones(1, 3, 4))


def evidence(strength: float) -> Evidence:
    """A spot of the first of two phrases, and a second that is nowhere."""
    spot = torch.zeros(1, 2, 4, 4)
    spot[0, 0, 1, 1] = strength
    rest = torch.full((1, 3, 4, 4), 0.1)
    return Evidence(spot + 0.01, spot + 0.05, spot + 0.05, rest, rest)


@pytest.mark.parametrize("measure", MEASURES)
def test_measures_rise_with_what_is_there(measure: str) -> None:
    weak, strong = (MEASURES[measure](evidence(s)) for s in (0.2, 0.8))
    assert weak.shape == (1, 2)
    assert strong[0, 0] > weak[0, 0] > weak[0, 1]
    bare = evidence(0.5)._replace(attention_background=random(1, 0, 4, 4), filled_background=random(1, 0, 4, 4))
    assert torch.isfinite(MEASURES[measure](bare)).all()  # no background word is left


def test_scores_are_probabilities() -> None:
    high = score(MEASURES["peak"](evidence(0.8)), Presence("peak", middle=0.5, slope=10))
    assert high[0, 0] > 0.5 > high[0, 1]
    bare = score(MEASURES["peak"](evidence(0.8)), Presence("peak"))
    assert ((bare > 0) & (bare < 1)).all()


def test_agreement() -> None:
    first, second = random(1, 2, 5, 5), random(2, 2, 5, 5)[1:]
    torch.testing.assert_close(agreement([first, first, first]), torch.ones(1, 2))
    by_hand = torch.corrcoef(torch.stack([first[0, 0].flatten(), second[0, 0].flatten()]))[0, 1]
    assert agreement([first, second])[0, 0] == pytest.approx(float(by_hand), abs=1e-5)
