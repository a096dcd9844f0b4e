"""Words of a prompt by the attention of the sampling itself: what is kept of a run, and that it costs no pass."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hosts import small

from ldznet import Predictor
from ldznet.attention import CONFIGS, AttentionHead, CapturedAttention, Presence
from ldznet.attention.config import blocks_at
from ldznet.attention.finding import found_in, logits_of
from ldznet.attention.head import attend
from ldznet.attention.prompts import Prompt, prompts_of, spoken
from ldznet.attention.reading import Attention, reading_attention
from ldznet.capture import AttentionCapture, Run, Typed
from ldznet.clip_bpe import Tokenizer
from ldznet.errors import InputError, TapError
from ldznet.hosts.tiny import TinyHost
from ldznet.schedule import seeded_noise
from ldznet.taps import transformers_of

CLIP = Tokenizer.from_merges(small.MERGES)
CONFIG = dataclasses.replace(CONFIGS["tiny"], presence=Presence(), steps=2)
TEXT = "a photo of a red star on grass"


def capture_of(host: TinyHost) -> AttentionCapture:
    return AttentionCapture(None, CONFIG, host.specs)


def latents(batch: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 4, 16, 16, generator=torch.Generator().manual_seed(seed))


def sampled(host: TinyHost, capture: AttentionCapture, steps: tuple[int, ...] = (900, 300, 40)) -> Run:
    """A run of two pictures: rows of the negative prompt first, as ComfyUI batches them."""
    contexts = {"n": host.encode_text([""]), "p": host.encode_text([TEXT])}
    run = Run({"p": 1.0}, (16, 16), {"p": contexts["p"]}, nearest=10)
    rows = torch.cat([contexts["n"].expand(2, -1, -1), contexts["p"].expand(2, -1, -1)])
    with capture.running("sampler", run):
        for number, t in enumerate(steps):
            x, when = latents(2, number).repeat(2, 1, 1, 1), torch.full((4,), t)
            bare = host.models.unet(x, when, rows)
            seen = capture.call(
                host.models.unet, (16, 16), t, ["n", "p"], lambda x=x, w=when: host.models.unet(x, w, rows)
            )
            assert torch.equal(seen, bare)
        run.samples = [latents(2, 99)]
    return run


@torch.no_grad()
def test_cross_attention_is_the_mean_and_self_attention_the_nearest_step_s(host: TinyHost) -> None:
    capture = capture_of(host)
    run = sampled(host, capture)
    for image in range(2):
        each = []
        for number, t in enumerate((900, 300, 40)):
            one = latents(2, number)[image : image + 1]
            with reading_attention(
                host.models.unet, capture.cross_blocks, capture.self_blocks, host.specs, (16, 16)
            ) as attention:
                host.models.unet(one, torch.tensor([t]), host.encode_text([TEXT]))
            each.append(attention)
        kept = capture.attention(run, "p")
        for block in capture.cross_blocks:
            mean = torch.stack([attention.cross[block] for attention in each]).mean(0)
            torch.testing.assert_close(kept.cross[block][image : image + 1], mean, atol=1e-5, rtol=0)
        for block in capture.self_blocks:
            torch.testing.assert_close(
                kept.self_attention[block][image : image + 1], each[2].self_attention[block], atol=1e-5, rtol=0
            )
    assert run.step == 40


@torch.no_grad()
def test_a_disturbed_call_at_the_same_step_does_not_count(host: TinyHost) -> None:
    """What PAG does: the positive rows again, with another attention."""
    capture, x, when = capture_of(host), latents(1), torch.tensor([300])
    runs = []
    for texts in ([TEXT], [TEXT, "a blue cat"]):
        run = Run({"p": 1.0}, (16, 16), {"p": host.encode_text([TEXT])}, nearest=0)
        with capture.running("sampler", run):
            for context in map(host.encode_text, ([text] for text in texts)):
                capture.call(host.models.unet, (16, 16), 300, ["p"], lambda c=context: host.models.unet(x, when, c))
        runs.append(capture.attention(run, "p").cross)
    for block, maps in runs[0].items():
        assert torch.equal(runs[1][block], maps)


def test_the_prompt_is_known_by_its_context(host: TinyHost) -> None:
    capture = capture_of(host)
    run = sampled(host, capture, (40,))
    right, wrong = (Typed(host.encode_text([text]), []) for text in (TEXT, "a cat"))
    assert run.texts_of([wrong, right]) == {"p": {0: right}}
    assert run.texts_of([wrong]) == {}
    assert capture.of_prompts(run, [wrong], ["a cat"], host.tokenize) is None


def test_prompts_in_one_context_and_in_several(host: TinyHost) -> None:
    """What ConditioningConcat and ConditioningCombine make: phrases are read where their words are."""
    capture, texts = capture_of(host), [TEXT, "a blue cat on snow"]
    typed = [Typed(host.encode_text([text]), [-1, *host.tokenize(text), -1], text) for text in texts]
    joined = torch.cat([part.context for part in typed], dim=1)
    run = Run({"p": 1.0, "q": 0.5}, (16, 16), {"p": joined, "q": typed[1].context}, nearest=0)
    assert run.texts_of(typed) == {"p": {0: typed[0], 77: typed[1]}, "q": {0: typed[1]}}
    x, when = latents(2), torch.tensor([40, 40])
    with capture.running("sampler", run), torch.no_grad():
        for key, context in run.contexts.items():
            capture.call(
                host.models.unet, (16, 16), 40, [key], lambda c=context: host.models.unet(x, when, c.expand(2, -1, -1))
            )
    seen = capture.of_prompts(run, typed, ["a blue cat", "grass", "a fish"], host.tokenize)
    assert seen is not None
    assert [part.prompt.phrases for part in seen.parts] == [("a blue cat", "grass"), ()]
    cat = seen.parts[0].prompt.phrase_tokens[0]
    assert [i - 77 for i in cat] == list(range(2, 4))  # behind the start token and "a"
    run.contexts["p"] = typed[0].context[:, :40]  # a text that is none of these
    apart = capture.of_prompts(run, typed, ["a blue cat", "grass"], host.tokenize)
    assert apart is not None
    assert apart.phrases == ("a blue cat",)
    rows = apart.rows(slice(0, 1)).fitted_to(CONFIG, latents(1)).by_phrase(CONFIG, host.specs, latents(1))
    assert list(rows) == ["a blue cat"]


def test_a_text_that_was_repeated_to_fit_counts_once(host: TinyHost) -> None:
    capture = capture_of(host)
    run = sampled(host, capture, (40,))
    once = capture.attention(run, "p").cross
    run.means["p"] = {name: torch.cat([maps / 2, maps / 2], dim=1) for name, maps in run.means["p"].items()}
    for name, maps in capture.attention(run, "p").cross.items():
        torch.testing.assert_close(maps, once[name])


def test_merged_tokens_leave_the_picture_and_nothing_else(host: TinyHost) -> None:
    """What ToMe does: fewer tokens than pixels. The call runs once, undisturbed."""
    capture = capture_of(host)
    run = Run({"p": 1.0}, (32, 32), {"p": host.encode_text([TEXT])}, nearest=0)
    x, when, runs = latents(1), torch.tensor([40]), []

    def call() -> torch.Tensor:
        runs.append(1)
        return host.models.unet(x, when, host.encode_text([TEXT]))

    with capture.running("sampler", run), torch.no_grad():
        assert torch.equal(capture.call(host.models.unet, (32, 32), 40, ["p"], call), call())
    assert len(runs) == 2
    assert (run.means, run.rows) == ({}, {})
    with pytest.raises(TapError), reading_attention(host.models.unet, capture.cross_blocks, (), host.specs, (32, 32)):
        call()


def unlinked(host: TinyHost) -> CapturedAttention:
    """As `seen`, where another pack merges the tokens of the self-attention that is read."""
    capture = capture_of(host)
    capture.self_blocks = ("output.7",)
    capture.specs = {**host.specs, "output.7": host.specs["output.7"]._replace(stride=4)}
    run = sampled(host, capture)
    assert set(run.means["p"]) == set(capture.cross_blocks)
    assert run.rows == {}
    captured = of_prompt(host, capture, run)
    assert captured.lacks_links(CONFIG)
    return captured


def test_self_attention_that_was_not_read_takes_a_pass(host: TinyHost, passes: list[int]) -> None:
    captured, head = unlinked(host), AttentionHead(CONFIG)
    predictor = Predictor(host, head)
    predictor.set_latents(latents(2, 99), captured=captured)
    passes.clear()
    result = predictor.predict(["grass", "a red star"])
    assert len(passes) == 2  # one a picture
    noise, steps = seeded_noise((1, 4, 16, 16), 0), torch.tensor([CONFIG.timestep])
    (prompt,) = prompts_of(captured.prompt.phrases, CONFIG, host.tokenize)
    for image in range(2):
        noisy = host.add_noise(latents(2, 99)[image : image + 1], noise, steps)
        links = attend(host, noisy, steps, prompt, CONFIG).self_attention
        cross = captured.rows(slice(image, image + 1)).attention.cross
        found = found_in(Attention(cross, links), captured.prompt, CONFIG, host.specs, (16, 16))
        expected = logits_of(found, CONFIG)[:, [1, 0]]
        torch.testing.assert_close(result.logits[image : image + 1], expected)


def test_that_pass_is_shared_with_other_phrases(host: TinyHost, passes: list[int]) -> None:
    predictor, plain = Predictor(host, AttentionHead(CONFIG)), Predictor(host, AttentionHead(CONFIG))
    predictor.set_latents(latents(2, 99), captured=unlinked(host))
    plain.set_latents(latents(2, 99))
    passes.clear()
    mixed = predictor.predict(["a blue cat", "grass"])
    assert len(passes) == 2
    torch.testing.assert_close(mixed.logits[:, 0], plain.predict(["a blue cat"]).logits[:, 0])


def test_self_attention_of_too_many_positions_is_left(host: TinyHost) -> None:
    capture = AttentionCapture(None, dataclasses.replace(CONFIG, most_positions=16 * 16 - 1), host.specs)
    run = sampled(host, capture)
    assert (set(run.means["p"]), run.rows) == (set(capture.cross_blocks), {})


def test_a_step_that_lacks_a_block_does_not_count(host: TinyHost) -> None:
    """What caches do: the deep blocks of some steps do not run."""
    capture = capture_of(host)
    run = Run({"p": 1.0}, (16, 16), {"p": host.encode_text([TEXT])}, nearest=0)
    x, when = latents(1), torch.tensor([40])
    block, context = capture.cross_blocks[0], run.contexts["p"]
    first, tap = transformers_of(host.models.unet, [block])[block], torch.randn(1, host.specs[block].channels, 16, 16)
    with capture.running("sampler", run), torch.no_grad():
        capture.call(host.models.unet, (16, 16), 900, ["p"], lambda: first(tap, context))
        assert run.means == {}
        capture.call(host.models.unet, (16, 16), 40, ["p"], lambda: host.models.unet(x, when, context))
    assert (run.counts["p"], run.step) == (1, 40)


def ids_of(text: str) -> list[int]:
    return [-1, *CLIP.ids(text), -1]


def test_phrases_are_found_where_their_words_stand_side_by_side() -> None:
    text = "a photo of the red, xylophonist dog under a red star and a red dog"
    ids = ids_of(text)
    phrases = ["a red star", "the dog", "a blue cat", "the red dog", "star of red", "a"]
    said = spoken(ids, phrases, CLIP.ids)
    named = {phrase: [CLIP.ids(text)[i - 1] for i in tokens] for phrase, tokens in zip(*said[1:3], strict=True)}
    assert named["a red star"] == CLIP.ids("red star")
    assert named["the dog"] == CLIP.ids("dog dog")  # both
    assert named["the red dog"] == CLIP.ids("red dog")
    assert set(named) == {"a red star", "the dog", "the red dog"}
    rest = [CLIP.ids(text)[i - 1] for (i,) in said.background_tokens]
    assert rest == [*CLIP.ids("red"), *CLIP.ids("xylophonist")]


def seen(host: TinyHost) -> CapturedAttention:
    """Of the two pictures that `sampled` made."""
    capture = capture_of(host)
    return of_prompt(host, capture, sampled(host, capture))


def of_prompt(host: TinyHost, capture: AttentionCapture, run: Run) -> CapturedAttention:
    """What a run shows of two of three phrases."""
    prompt = Typed(host.encode_text([TEXT]), [-1, *host.tokenize(TEXT), -1])
    captured = capture.of_prompts(run, [prompt], ["a red star", "a cat", "grass"], host.tokenize)
    assert captured is not None
    assert captured.phrases == ("a red star", "grass")
    return captured.parts[0]


def test_words_of_the_prompt_take_no_pass_and_others_one(host: TinyHost, passes: list[int]) -> None:
    captured = seen(host)
    predictor = Predictor(host, AttentionHead(CONFIG))
    predictor.set_latents(latents(2, 99), captured=captured)
    passes.clear()
    result = predictor.predict(["grass", "a red star - grass"])
    assert passes == []
    for image in range(2):
        own = captured.rows(slice(image, image + 1))
        found = found_in(own.attention, own.prompt, CONFIG, host.specs, (16, 16))
        torch.testing.assert_close(result.logits[image : image + 1, 0], logits_of(found, CONFIG)[:, 1])
    assert not torch.equal(result.logits[0], result.logits[1])
    mixed = predictor.predict(["a blue cat", "grass", "snow"])
    assert len(passes) == 2  # one a picture
    torch.testing.assert_close(mixed.logits[:, 1], result.logits[:, 0])
    alone = Predictor(host, AttentionHead(CONFIG))
    alone.set_latents(latents(2, 99))
    torch.testing.assert_close(mixed.logits[:, [0, 2]], alone.predict(["a blue cat", "snow"]).logits)


def test_maps_follow_the_predictor_s_size(host: TinyHost) -> None:
    predictor = Predictor(host, AttentionHead(CONFIG), resolution="native")
    predictor.set_latents(torch.randn(2, 4, 20, 24), captured=seen(host))
    assert predictor.predict(["grass", "a blue cat"]).logits.shape == (2, 2, 20, 24)


def test_attention_of_other_pictures_is_refused(host: TinyHost) -> None:
    predictor = Predictor(host, AttentionHead(CONFIG))
    with pytest.raises(InputError, match=r"as many pictures as latents \(3\), got 2"):
        predictor.set_latents(latents(3), captured=seen(host))


def test_a_measure_that_needs_passes_is_not_asked(host: TinyHost, passes: list[int]) -> None:
    config = dataclasses.replace(CONFIG, presence=Presence("gain", middle=0.0))
    prompt = Prompt("", ("grass",), ((1,),), ((2,),))
    cross = {block: torch.rand(1, 77, 16, 16) for block in blocks_at(CONFIG.coarse, host.specs)}
    links = {block: torch.rand(1, 256, 256).softmax(2) for block in blocks_at(CONFIG.self_attention, host.specs)}
    captured = CapturedAttention(Attention(cross, links), prompt, (16, 16))
    head = AttentionHead(config).fitted_to(host)
    scores = head.segment(host, latents(1), ["grass"], timestep=50, seed=0, captured=captured)[1]
    assert scores.tolist() == [[1.0]]
    assert passes == []
