"""The head behind the predictor, on random tiny weights: passes, splitting, determinism, thresholds, refusals."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from attention import unets

from ldznet import Predictor, load_head
from ldznet.attention import CONFIGS, AttentionConfig, AttentionHead, Presence
from ldznet.attention.config import blocks_at
from ldznet.attention.head import rescaled
from ldznet.attention.prompts import prompts_of
from ldznet.contracts import AttentionHost, Conditioning, JointSegmenter
from ldznet.errors import HostError, InputError
from ldznet.hosts.tiny import TinyHost

TINY = CONFIGS["tiny"]
PHRASES = ["a red star", "grass", "a blue cat"]


@pytest.fixture(scope="module")
def host() -> TinyHost:
    return unets.tiny_host()


@pytest.fixture
def passes(host: TinyHost) -> Iterator[list[int]]:
    """One entry for each pass of the host's UNet."""
    runs: list[int] = []
    handle = host.models.unet.input_blocks[0][0].register_forward_hook(lambda m, args, out: runs.append(len(args)))
    yield runs
    handle.remove()


def predictor(host: TinyHost, config: AttentionConfig | None = None, **kwargs: object) -> Predictor:
    found = Predictor(host, AttentionHead(config), **kwargs)
    found.set_latents(torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(3)))
    return found


def test_it_is_found_by_name_and_fits_its_host(host: TinyHost) -> None:
    head = load_head("attention")
    assert isinstance(head, JointSegmenter)
    assert isinstance(host, AttentionHost)
    assert head.fitted_to(host).head_config == TINY
    assert AttentionHead(dataclasses.replace(TINY, steps=2)).fitted_to(host).head_config.steps == 2


def test_all_phrases_of_an_image_share_a_pass(host: TinyHost, passes: list[int]) -> None:
    result = predictor(host).predict(PHRASES)
    assert len(passes) == 2  # one an image
    assert result.logits.shape == (2, 3, 16, 16)
    assert result.probabilities.shape == (2, 3, 128, 128)
    assert result.scores.shape == (2, 3)
    assert unets.hooks_of(host.models.unet) == 1  # the fixture's own


def test_phrases_that_one_prompt_does_not_hold_take_further_passes(host: TinyHost, passes: list[int]) -> None:
    """Each part's masks are those of its phrases asked for alone."""
    colours = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
    phrases = [f"a {pattern} {colour} star" for pattern in ("striped", "dotted") for colour in colours]
    parts = prompts_of(phrases, TINY, host.tokenize)
    assert len(parts) == 2
    whole = predictor(host).predict(phrases)
    assert len(passes) == 4
    alone = [predictor(host).predict(part.phrases) for part in parts]
    assert torch.equal(whole.logits, torch.cat([part.logits for part in alone], dim=1))
    assert torch.equal(whole.scores, torch.cat([part.scores for part in alone], dim=1))


def test_together_and_alone_are_alike(host: TinyHost) -> None:
    """They compete in one prompt, so they may differ; on one scale they must still rank pixels alike."""
    config = dataclasses.replace(TINY, per_pixel=False)
    together = predictor(host, config).predict(PHRASES).logits
    for i, phrase in enumerate(PHRASES):
        alone = predictor(host, config).predict([phrase]).logits[:, 0]
        pair = torch.stack([together[:, i].flatten(), alone.flatten()])
        assert torch.corrcoef(pair)[0, 1] > 0.5


def test_the_same_call_gives_the_same_bits(host: TinyHost) -> None:
    first = predictor(host, seed=5).predict(PHRASES)
    again = predictor(host, seed=5).predict(PHRASES)
    assert torch.equal(first.logits, again.logits)
    assert torch.equal(first.scores, again.scores)
    assert not torch.equal(first.logits, predictor(host, seed=6).predict(PHRASES).logits)


def test_an_image_s_masks_do_not_depend_on_the_batch(host: TinyHost) -> None:
    both = predictor(host)
    whole = both.predict(PHRASES).logits
    both.set_latents(torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(3))[1:])
    assert torch.equal(both.predict(PHRASES).logits, whole[1:])


def test_a_batch_in_one_pass_is_the_same(host: TinyHost) -> None:
    head = AttentionHead().fitted_to(host)
    noisy, steps = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([100, 100])
    logits, scores = head.segment_together(host, noisy, steps, PHRASES)
    for i in range(2):
        alone = head.segment_together(host, noisy[i : i + 1], steps[:1], PHRASES)
        torch.testing.assert_close(alone[0], logits[i : i + 1], atol=1e-3, rtol=0)
        torch.testing.assert_close(alone[1], scores[i : i + 1], atol=1e-4, rtol=0)


def test_the_published_threshold_is_probability_one_half(host: TinyHost) -> None:
    result = predictor(host).predict(PHRASES)
    maps = result.logits / TINY.steepness + TINY.threshold
    assert maps.amin() == pytest.approx(0, abs=1e-6)
    assert maps.amax() == pytest.approx(1, abs=1e-6)
    assert torch.equal(maps > TINY.threshold, result.logits.sigmoid() > 0.5)


def test_a_common_scale_gives_each_pixel_to_one_phrase_or_to_none(host: TinyHost) -> None:
    result = predictor(host, dataclasses.replace(TINY, scale="common")).predict(PHRASES)
    assert result.logits.abs().amax() <= TINY.steepness
    head = AttentionHead(dataclasses.replace(TINY, scale="common", background=())).fitted_to(host)
    noisy = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    logits, _ = head.segment_together(host, noisy, torch.tensor([100]), PHRASES)
    assert torch.isfinite(logits).all()


def test_minus_ensembles_and_progress_work_as_with_other_heads(host: TinyHost, passes: list[int]) -> None:
    seen: list[tuple[int, int]] = []
    found = predictor(host, ensemble=3, progress=lambda done, total: seen.append((done, total)))
    result = found.predict(["a red star - grass", "grass"])
    assert len(passes) == 2 * 3
    assert seen == [(2, 4), (4, 4)]
    assert result.spread is not None
    assert result.spread.shape == (2, 2, 128, 128)
    assert (
        result.logits[:, 0] <= predictor(host, ensemble=3).predict(["a red star", "grass"]).logits[:, 0] + 1e-4
    ).all()


def test_a_picture_of_any_shape(host: TinyHost) -> None:
    wide = Predictor(host, load_head("attention"))
    wide.set_image(torch.zeros(1, 3, 100, 333))
    assert wide.predict(["grass"]).probabilities.shape == (1, 1, 100, 333)


def test_presence_is_marked_where_it_was_calibrated(host: TinyHost) -> None:
    bare = predictor(host, dataclasses.replace(TINY, presence=Presence())).predict(PHRASES)
    assert not bare.calibrated
    assert bare.found.all()
    strict = dataclasses.replace(TINY, presence=Presence("peak", middle=1e6, slope=1.0))
    result = predictor(host, strict).predict(PHRASES)
    assert result.calibrated
    assert not result.found.any()
    assert not result.masks().any()


def test_rescaling_touches_only_the_phrases_tokens(host: TinyHost) -> None:
    (prompt,) = prompts_of(PHRASES, TINY, host.tokenize)
    given = Conditioning(torch.ones(1, 77, 8), {"pooled": torch.arange(3.0)[None]})
    longer = rescaled(given, prompt, 1.6, batch=2)
    tokens = sorted(t for group in prompt.phrase_tokens for t in group)
    assert longer.context[1, tokens].unique().tolist() == pytest.approx([1.6])
    assert longer.context.sum() == pytest.approx(2 * 8 * (77 + 0.6 * len(tokens)), rel=1e-5)
    assert longer.extras["pooled"].tolist() == [[0, 1, 2]] * 2
    assert (given.context == 1).all()


def test_places_that_a_host_lacks(host: TinyHost) -> None:
    with pytest.raises(HostError, match=r"attention at 8/middle\.1"):
        AttentionHead(dataclasses.replace(TINY, coarse=("8/middle.1",))).fitted_to(host)
    assert blocks_at(("8/middle", "1/input.1"), host.specs) == ("input.2", "middle.0")


def test_wrong_input(host: TinyHost) -> None:
    found = predictor(host)
    with pytest.raises(InputError, match="a list of phrases"):
        found.predict("a red star")
    with pytest.raises(InputError, match="at least one phrase"):
        found.predict([])
    with pytest.raises(InputError, match="shorten"):
        found.predict(["star " * 80])
    with pytest.raises(InputError, match="b 4 h w"):
        found.set_latents(torch.zeros(1, 3, 16, 16))
    with pytest.raises(InputError, match="positions of self-attention, got 256"):
        predictor(host, dataclasses.replace(TINY, most_positions=100)).predict(PHRASES)
    host.family, unknown = "other", host.family
    try:
        with pytest.raises(HostError, match='got "other"'):
            Predictor(host, load_head("attention"))
    finally:
        host.family = unknown
