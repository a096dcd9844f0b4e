"""Either, without, everything and background: probabilities against the formulas, by hand."""

from __future__ import annotations

import pytest
import torch

from ldznet.combining import Maps, combined
from ldznet.phrases import read, terms_of

P = {"cat": (0.9, 0.2), "dog": (0.3, 0.6), "sky": (0.05, 0.99)}  # a term's probability in the two halves of a picture
SIDE = 32


def maps(scores: dict[str, float] | None = None, deviation: float | None = None) -> Maps:
    left, right = (torch.tensor([p[half] for p in P.values()])[:, None, None] for half in (0, 1))
    logits = torch.cat([left.expand(3, SIDE, SIDE // 2), right.expand(3, SIDE, SIDE // 2)], dim=2).logit()[None]
    known = {"cat": 0.95, "dog": 0.8, "sky": 0.99, **(scores or {})}
    spread = None if deviation is None else torch.full_like(logits, deviation)
    return Maps(logits, torch.tensor([[known[term] for term in P]]), spread)


def halves(text: str, beside: tuple[str, ...] = (), **given: object) -> tuple[float, float, float]:
    """Probability of `text` in the left and the right half, and its score."""
    phrases = read([text, *beside])
    found = combined(phrases, list(P), maps(**given), 0.5)
    p = found.logits[0, 0].sigmoid()
    assert torch.equal(p[:, : SIDE // 2], p[:1, :1].expand(SIDE, SIDE // 2))
    return float(p[0, 0]), float(p[-1, -1]), float(found.scores[0, 0])


EXPECTED = {
    "cat": (0.9, 0.2, 0.95),
    "cat - dog": (0.9 * 0.7, 0.2 * 0.4, 0.7),  # the peak was 0.9 and is 0.63
    "cat - dog - sky": (0.9 * 0.7 * 0.95, 0.2 * 0.4 * 0.01, 0.7 * 0.95),
    "cat | dog": (1 - 0.1 * 0.7, 1 - 0.8 * 0.4, 0.95),
    "cat | dog - sky": (0.93 * 0.95, 0.68 * 0.01, 0.95),
    "everything - cat": (0.1, 0.8, 0.8),
    "everything - cat - sky": (0.1 * 0.95, 0.8 * 0.01, 0.095),
}


@pytest.mark.parametrize("text", EXPECTED)
def test_probabilities_and_scores(text: str) -> None:
    assert halves(text) == pytest.approx(EXPECTED[text], abs=1e-5)


def test_a_phrase_alone_is_its_term_s_map_to_the_bit() -> None:
    given = maps(deviation=0.1)
    found = combined(read(["dog", "cat"]), list(P), given, 0.5)
    assert torch.equal(found.logits, given.logits[:, [1, 0]])
    assert torch.equal(found.scores, given.scores[:, [1, 0]])
    assert torch.equal(found.deviation, given.deviation[:, [1, 0]])


def test_background_is_what_no_other_phrase_covers() -> None:
    assert halves("background", ("cat",)) == pytest.approx((0.1, 0.8, 0.8), abs=1e-5)
    assert halves("background", ("cat", "dog")) == pytest.approx((0.1 * 0.7, 0.8 * 0.4, 0.32), abs=1e-5)
    assert halves("background", ("cat - dog",)) == pytest.approx((1 - 0.63, 1 - 0.08, 0.92), abs=1e-5)
    assert halves("background - sky", ("cat",)) == pytest.approx((0.1 * 0.95, 0.8 * 0.01, 0.095), abs=1e-5)
    assert halves("background", ("cat", "the rest")) == halves("background", ("cat",))


def test_what_is_not_found_takes_nothing_away_and_adds_nothing() -> None:
    absent = {"scores": {"dog": 0.49}}
    assert halves("cat - dog", **absent) == pytest.approx((0.9, 0.2, 0.95), abs=1e-5)
    assert halves("cat | dog", **absent) == pytest.approx((0.9, 0.2, 0.95), abs=1e-5)
    assert halves("background", ("cat", "dog"), **absent) == pytest.approx((0.1, 0.8, 0.8), abs=1e-5)
    assert halves("everything - dog", **absent) == pytest.approx((1, 1, 1), abs=1e-5)
    neither = {"scores": {"dog": 0.2, "cat": 0.1}}
    assert halves("cat | dog", **neither) == pytest.approx((0.93, 0.68, 0.2), abs=1e-5)


def test_images_are_found_one_by_one() -> None:
    one, other = maps(), maps({"dog": 0.1})
    both = Maps(torch.cat([one.logits, other.logits]), torch.cat([one.scores, other.scores]))
    found = combined(read(["cat - dog", "cat | dog", "background"]), list(P), both, 0.5)
    for i, part in enumerate((one, other)):
        alone = combined(read(["cat - dog", "cat | dog", "background"]), list(P), part, 0.5)
        assert torch.equal(found.logits[i], alone.logits[0])
        assert torch.equal(found.scores[i], alone.scores[0])


def test_a_thing_that_another_hides_is_not_found() -> None:
    """As "a star - a red star" where the only star is red: a little is left at its edge, a quarter at most."""
    sure = torch.linspace(-6, 6, SIDE).expand(1, 2, SIDE, SIDE)
    found = combined(read(["star - red star"]), ["star", "red star"], Maps(sure, torch.ones(1, 2)), 0.5)
    assert found.scores[0, 0] == pytest.approx(0.25, abs=0.02)


def test_what_is_nearly_sure_keeps_its_digits() -> None:
    logits = torch.tensor([30.0, -30.0])[None, :, None, None].expand(1, 2, 4, 4)
    sure = Maps(logits, torch.ones(1, 2))
    phrases = read(["x1 - x2", "x1 | x2", "everything - x1", "everything - x2"])
    found = combined(phrases, terms_of(phrases)[:2], sure, 0.5).logits[0, :, 0, 0]
    torch.testing.assert_close(found[[0, 2, 3]], torch.tensor([29.307, -30.0, 30.0]), atol=1e-3, rtol=0)
    assert torch.isfinite(found).all()


def test_the_spread_of_a_product() -> None:
    """sigma² = Σ (sigma_i · product of the other factors)², against a small difference of each."""
    sigma = 0.01
    found = combined(read(["cat - dog", "cat | dog", "everything - cat"]), list(P), maps(deviation=sigma), 0.5)
    left = found.deviation[0, :, 0, 0]
    by_hand = [(0.7**2 + 0.9**2) ** 0.5, (0.7**2 + 0.1**2) ** 0.5, 1.0]
    torch.testing.assert_close(left, sigma * torch.tensor(by_hand), rtol=1e-4, atol=1e-6)
