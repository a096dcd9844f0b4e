"""The head behind the predictor, on random tiny weights: passes, splitting, determinism, thresholds, refusals."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from attention import unets

from ldznet import Predictor, load_head
from ldznet.attention import CONFIGS, AttentionConfig, AttentionHead, Presence
from ldznet.attention.config import blocks_at
from ldznet.attention.denoising import RIVALS, gains, least_gain, reading_output, without_each_word
from ldznet.attention.head import rescaled
from ldznet.attention.prompts import prompts_of
from ldznet.contracts import AttentionHost, Conditioning, Head
from ldznet.errors import HostError, InputError, TapError
from ldznet.hosts.tiny import TinyHost
from ldznet.schedule import seeded_noise

TINY = dataclasses.replace(CONFIGS["tiny"], presence=Presence())  # a calibrated one may take further passes
PHRASES = ["a red star", "grass", "a blue cat"]


def predictor(host: TinyHost, config: AttentionConfig | None = None, **kwargs: object) -> Predictor:
    found = Predictor(host, AttentionHead(config or TINY), **kwargs)
    found.set_latents(torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(3)))
    return found


def test_it_is_found_by_name_and_fits_its_host(host: TinyHost) -> None:
    head = load_head("attention")
    assert isinstance(head, Head)
    assert isinstance(host, AttentionHost)
    assert head.fitted_to(host).head_config == CONFIGS["tiny"]
    assert AttentionHead(dataclasses.replace(TINY, steps=2)).fitted_to(host).head_config.steps == 2


def test_without_propagation_no_self_attention_is_read(host: TinyHost) -> None:
    """The pass then ends before the last level's, and maps are those of the cross-attention alone."""
    runs: list[str] = []
    unet = host.models.unet
    blocks = {name: unet.get_submodule(f"{name}.1.transformer_blocks.0.attn1") for name in ("output_blocks.11",)}
    handles = [m.register_forward_hook(lambda m, args, out, name=n: runs.append(name)) for n, m in blocks.items()]
    try:
        config = dataclasses.replace(TINY, coarse=("2/input",), fine=("2/output",), steps=0)
        without = predictor(host, config).predict(PHRASES)
        assert not runs
        filled = predictor(host, dataclasses.replace(config, steps=3, self_attention=("1/output.2",))).predict(PHRASES)
    finally:
        for handle in handles:
            handle.remove()
    assert without.logits.shape == filled.logits.shape
    assert not torch.equal(without.logits, filled.logits)


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
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    logits, scores = head.segment(host, latents, PHRASES, timestep=100, seed=0)
    for i in range(2):
        alone = head.segment(host, latents[i : i + 1], PHRASES, timestep=100, seed=0)
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
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    logits, _ = head.segment(host, latents, PHRASES, timestep=100, seed=0)
    assert torch.isfinite(logits).all()


def test_minus_ensembles_and_progress_work_as_with_other_heads(host: TinyHost, passes: list[int]) -> None:
    seen: list[tuple[int, int]] = []
    found = predictor(host, ensemble=3, progress=lambda done, total: seen.append((done, total)))
    result = found.predict(["a red star - grass", "grass"])
    assert len(passes) == 2 * 3
    assert seen == [(2 * i, 4 * 3) for i in range(1, 7)]  # after every member
    assert result.spread is not None
    assert result.spread.shape == (2, 2, 128, 128)
    assert (
        result.logits[:, 0] <= predictor(host, ensemble=3).predict(["a red star", "grass"]).logits[:, 0] + 1e-4
    ).all()


def test_a_picture_of_any_shape(host: TinyHost) -> None:
    wide = Predictor(host, load_head("attention"))
    wide.set_image(np.zeros((100, 333, 3), np.uint8))
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
    lenient = dataclasses.replace(TINY, presence=Presence("peak", middle=0.0, slope=1e-6, found_from=0.4))
    assert predictor(host, lenient).predict(PHRASES).found.all()


def test_what_a_phrase_takes_from_the_error_of_the_noise(host: TinyHost) -> None:
    """By hand for one timestep; nothing for a phrase that the text encoder does not see, and no hook stays."""
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    both = gains(host, latents, "a photo of", PHRASES, (400,), seed=7)
    noise = seeded_noise((1, 4, 16, 16), 7)
    with torch.no_grad():
        noisy = host.add_noise(latents[1:], noise, torch.tensor([400]))
        texts = host.encode_text(["a photo of", "a photo of grass"])
        errors = [(host.models.unet(noisy, torch.tensor([400]), c[None]) - noise).square().mean() for c in texts]
    assert both.shape == (2, 3)
    assert both[1, 1] == pytest.approx(float(1 - errors[1] / errors[0]), abs=1e-4)
    many = gains(host, latents[:1], "a photo of", PHRASES * 8, (400, 600), seed=7)
    torch.testing.assert_close(many[:, :3], many[:, -3:], atol=1e-4, rtol=0)  # in passes of 16 texts
    assert unets.hooks_of(host.models.unet) == 0
    with pytest.raises(TapError, match="ends in conv_out or out, got a Linear"), reading_output(torch.nn.Linear(1, 1)):
        pass


def test_a_phrase_without_each_of_its_words() -> None:
    assert without_each_word("a photo of", "a striped, red star") == [
        "a photo of a red star",
        "a photo of a striped, star",
        "a photo of a striped, red",
    ]
    assert without_each_word("a photo of", "a star") == without_each_word("a photo of", "of the") == ["a photo of"]


def test_the_least_gain_is_over_the_hardest_rival() -> None:
    errors = torch.ones(1, 2, 3, 2, 2)  # two timesteps, three texts
    errors[:, :, 0] = 0.5
    errors[:, :, 1, 0, 0] = 0.0  # mean 0.75
    assert least_gain(errors, 0, [1, 2]).item() == pytest.approx(1 - 0.5 / 0.75)
    assert least_gain(errors, 0, [2]).item() == pytest.approx(0.5)
    corner = torch.zeros(1, 2, 2)
    corner[0, 1, 1] = 3.0
    assert least_gain(errors, 0, [1, 2], corner).item() == pytest.approx(0.5)


@pytest.mark.parametrize("measure", RIVALS)
def test_presence_by_gain(host: TinyHost, measure: str) -> None:
    config = dataclasses.replace(TINY, presence=Presence(measure, middle=0.0, slope=100.0, timesteps=(400,)))
    result = predictor(host, config, seed=7).predict(PHRASES)
    latents = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    found = gains(host, latents, config.opening, PHRASES, (400,), seed=7, rivals=RIVALS[measure])
    expected = torch.sigmoid(100 * found)
    torch.testing.assert_close(result.scores, expected, atol=1e-4, rtol=0)
    assert result.calibrated


def test_rescaling_touches_only_the_phrases_tokens(host: TinyHost) -> None:
    (prompt,) = prompts_of(PHRASES, TINY, host.tokenize)
    given = Conditioning(torch.ones(1, 77, 8), {"pooled": torch.arange(3.0)[None]})
    longer = rescaled(given, prompt, 1.6, batch=2)
    tokens = sorted(t for group in prompt.phrase_tokens for t in group)
    assert longer.context[1, tokens].unique().tolist() == pytest.approx([1.6])
    assert longer.context.sum() == pytest.approx(2 * 8 * (77 + 0.6 * len(tokens)), rel=1e-5)
    assert longer.extras["pooled"].tolist() == [[0, 1, 2]] * 2
    assert longer.extras["pooled"].is_contiguous()  # HunyuanDiT flattens it
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
        predictor(host, dataclasses.replace(TINY, steps=1, most_positions=100)).predict(PHRASES)
    host.family, unknown = "other", host.family
    try:
        with pytest.raises(HostError, match='got "other"'):
            Predictor(host, load_head("attention"))
    finally:
        host.family = unknown
