"""What holds for every segmentation: ranges, what is not found, thresholds, selection."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldznet import Segmentation
from ldznet.errors import InputError

THRESHOLDS = st.floats(0, 1)


@st.composite
def segmentations(draw: st.DrawFn) -> Segmentation:
    """Random logits, some of them huge, at a random network size; any dtype, with and without an ensemble."""
    images, phrases, height, width = (draw(st.integers(1, most)) for most in (2, 4, 6, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([1e-3, 1.0, 30.0, 1e4]))
    logits = scale * torch.randn(images, phrases, height, width, generator=generator)
    deviation = 0.5 * torch.rand(logits.shape, generator=generator) if draw(st.booleans()) else None
    return Segmentation(
        logits=logits.to(draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))),
        phrases=tuple(f"phrase {i}" for i in range(phrases)),
        size=(draw(st.integers(1, 20)), draw(st.integers(1, 20))),
        scores=torch.rand(images, phrases, generator=generator),
        found_threshold=draw(st.floats(0, 1)),
        deviation=deviation,
    )


@settings(deadline=None)
@given(result=segmentations())
def test_probabilities_are_probabilities_at_the_image_s_size(result: Segmentation) -> None:
    probabilities = result.probabilities
    assert probabilities.shape == (*result.logits.shape[:2], *result.size)
    assert probabilities.dtype == torch.float32
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    if result.spread is not None:
        assert result.spread.shape == probabilities.shape
        assert (result.spread >= 0).all()


@settings(deadline=None)
@given(result=segmentations(), threshold=THRESHOLDS)
def test_masks_are_false_where_nothing_is_found(result: Segmentation, threshold: float) -> None:
    masks = result.masks(threshold)
    assert masks.dtype == torch.bool
    assert not masks[~result.found].any()
    assert torch.equal(masks[result.found], (result.probabilities > threshold)[result.found])


@settings(deadline=None)
@given(result=segmentations(), thresholds=st.tuples(THRESHOLDS, THRESHOLDS))
def test_a_higher_threshold_never_adds_a_pixel(result: Segmentation, thresholds: tuple[float, float]) -> None:
    low, high = sorted(thresholds)
    assert not (result.masks(high) & ~result.masks(low)).any()
    assert not result.masks(1.0).any()


@settings(deadline=None)
@given(result=segmentations(), data=st.data())
def test_selecting_is_indexing(result: Segmentation, data: st.DataObject) -> None:
    count = len(result.phrases)
    some = data.draw(st.lists(st.integers(-count, count - 1)) | st.slices(count))
    rows = list(range(count))[some] if isinstance(some, slice) else some
    chosen = result.select(some)
    assert chosen.phrases == tuple(result.phrases[i] for i in rows)
    torch.testing.assert_close(chosen.probabilities, result.probabilities[:, rows])
    assert torch.equal(chosen.found, result.found[:, rows])
    if result.spread is not None:
        torch.testing.assert_close(chosen.spread, result.spread[:, rows])


@pytest.mark.parametrize("size", [(8, 8), (5, 13), (64, 3)])
def test_an_even_map_stays_even_at_any_size(size: tuple[int, int]) -> None:
    result = Segmentation(torch.full((1, 1, 8, 8), 2.0), ("a",), size, torch.ones(1, 1))
    torch.testing.assert_close(result.probabilities, torch.tensor(2.0).sigmoid().expand(1, 1, *size))


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), "0.5", None, [0.5], torch.tensor([0.5, 0.6])])
def test_a_threshold_is_a_probability(threshold: Any) -> None:
    result = Segmentation(torch.zeros(1, 1, 2, 2), ("a",), (2, 2), torch.ones(1, 1))
    with pytest.raises(InputError, match="between 0 and 1"):
        result.masks(threshold)


def test_what_is_said_of_a_score_says_whether_it_means_something() -> None:
    scores = torch.tensor([[0.98, 0.02]])
    sure = Segmentation(torch.zeros(1, 2, 2, 2), ("a dog", "a cat"), (2, 2), scores)
    assert [sure.state(0, 0), sure.state(0, 1)] == ["found", "not found"]
    assert [sure.score_text(0, 0), sure.caveat] == ["score 0.98", ""]
    assert [sure.state(0, 0, share) for share in (0.123, 0.0004, 0)] == [
        *("found, 12.3 %", "found, under 0.1 %", "nothing over the threshold")
    ]
    assert sure.state(0, 1, 0.123) == "not found"
    unsure = dataclasses.replace(sure, found_threshold=0.0, calibrated=False)
    assert [unsure.state(0, 0), unsure.state(0, 1)] == ["found?", "found?"]
    assert unsure.state(0, 1, 0.123) == "found?, 12.3 %"
    assert unsure.score_text(0, 1) == "score 0.02 (not calibrated)"
    assert "cannot tell absent phrases" in unsure.caveat


def test_logits_are_resized_and_then_made_probabilities() -> None:
    """Bilinear, pixel centres kept: halfway between two pixels is a quarter and three quarters of each."""
    logits = torch.tensor([-4.0, 4.0]).view(1, 1, 1, 2)
    result = Segmentation(logits, ("a",), (1, 4), torch.ones(1, 1), deviation=logits.abs() / 8)
    expected = torch.tensor([-4.0, -2.0, 2.0, 4.0]).sigmoid().view(1, 1, 1, 4)
    torch.testing.assert_close(result.probabilities, expected)
    torch.testing.assert_close(result.spread, torch.full((1, 1, 1, 4), 0.5))


def test_made_smaller_no_pixel_is_left_out() -> None:
    """Half the width: the weights of four pixels are 1, 3, 3, 1; at the edge those of three are 3, 3, 1."""
    logits = torch.zeros(1, 1, 1, 8)
    logits[..., 2] = 5.6
    result = Segmentation(logits, ("a",), (1, 4), torch.ones(1, 1))
    expected = torch.tensor([5.6 / 7, 5.6 * 3 / 8, 0, 0]).sigmoid()
    torch.testing.assert_close(result.probabilities[0, 0, 0], expected)


def test_found_is_from_the_threshold_on_and_a_pixel_is_over_it() -> None:
    result = Segmentation(torch.zeros(1, 2, 1, 1), ("a", "b"), (1, 1), torch.tensor([[0.6, 0.59]]), 0.6)
    assert result.found.tolist() == [[True, False]]
    assert not result.masks(0.5).any()  # a probability of exactly 0.5
    assert result.masks(0.49).tolist() == [[[[True]], [[False]]]]


def test_masks_of_many_phrases_take_little_more_than_they_weigh() -> None:
    """64 of 1024 x 1024 are 64 MB; as floats all at once they took 520. Measured as a process of its own."""
    script = """
import resource, torch, ldznet
result = ldznet.Segmentation(torch.randn(1, 64, 128, 128), tuple("a" * 64), (1024, 1024), torch.ones(1, 64))
result.select([0]).masks()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert result.masks().any()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(answer.stdout) < 120
