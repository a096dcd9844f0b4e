"""Words of a prompt read from the steps of A1111's and the Forges' samplers: right rows, whatever a call is made of,
and nothing left in sampler and UNet."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hosts import webuis
from torch import Tensor

from ldznet.attention import AttentionHead
from ldznet.attention.reading import reading_attention
from ldznet.capture import AttentionCapture
from ldznet.hosts.webui import open_webui
from ldznet.hosts.webui_capture import LATEST, around_next_run, calls_read
from ldznet.predictor import Predictor
from ldznet.webui import sampling
from ldznet.webui.sampling import Words, keep_next_latents, seen
from ldznet.webui.settings import ATTENTION, Settings

SIZE, STEPS = (8, 16), (500.0, 60.0)
NEGATIVE = "a blue boat"
LONG = "a green house with red stripes on yellow sand " * 9  # of 81 tokens


@pytest.fixture
def model() -> Any:
    return webuis.a1111()


def encoder_of(model: Any) -> Any:
    return open_webui(model)._encoders()[0]


def conditionings(model: Any, prompts: Sequence[str]) -> Any:
    """The host's positive conditionings: "|" parts what stands in a prompt at the first step and at the second."""

    def part(text: str) -> Any:
        texts = text.split("|")
        schedules = [SimpleNamespace(end_at_step=i, cond=encoder_of(model).prompt(t)) for i, t in enumerate(texts)]
        return SimpleNamespace(schedules=schedules)

    return SimpleNamespace(batch=[[part(text) for text in prompt.split(" AND ")] for prompt in prompts])


def texts(p: Any, prompt: str) -> list[list[str]]:
    return [part.split("|") for part in prompt.split(" AND ")]


class Sampler:
    """Calls the UNet at each step as `calls` makes it of the step's `rows`: latents and context of each."""

    def __init__(self, unet: Any, x: Tensor, rows: Callable[[int], list[tuple[Tensor, Tensor]]], calls: Any) -> None:
        self.unet, self.x, self.rows, self.calls = unet, x, rows, calls
        self.model_wrap_cfg = SimpleNamespace(step=0)

    def launch_sampling(self, steps: int, func: Callable[[], Any]) -> Tensor:
        return func()

    def run(self) -> Tensor:
        return self.launch_sampling(len(STEPS), self.steps)

    def steps(self) -> Tensor:
        for number, t in enumerate(STEPS):
            self.model_wrap_cfg.step = number
            for x, context in self.calls(self.rows(number)):
                self.unet(x, torch.full((len(x),), t), context=context)
        return self.x


Rows = list[tuple[Tensor, Tensor]]


def stacked(rows: Rows) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, _ in rows]), torch.stack([context for _, context in rows])


def longest(rows: Rows) -> int:
    return max(len(context) for _, context in rows)


def repeated(rows: Rows) -> Rows:
    """As a Forge makes prompts of one length."""
    return [(x, context.repeat(longest(rows) // len(context), 1)) for x, context in rows]


def last_repeated(rows: Rows) -> Rows:
    """As A1111 does."""
    return [(x, torch.cat([c, c[-1:].repeat(longest(rows) - len(c), 1)])) for x, c in rows]


def together(rows: Rows) -> Any:
    return [stacked(last_repeated(rows))]


def split(rows: Rows) -> Any:
    return [stacked([row]) for row in rows]


def negatives_first(rows: Rows) -> Any:
    half = len(rows) // 2
    return [stacked(repeated([*rows[half:], *rows[:half]]))]


def twice(rows: Rows) -> Any:
    """Guidance that disturbs the picture and calls again."""
    return [*together(rows), *together([(x + 1, context) for x, context in rows])]


CALLS = {"together": together, "split": split, "negatives first": negatives_first, "twice": twice}


def ran(model: Any, prompts: Sequence[str], phrases: Sequence[str], calls: Any = together) -> tuple[Words, Sampler]:
    """A run with `prompts`, a picture each, in a batch with as many negative prompts, read for `phrases`."""
    host = open_webui(model)
    x = torch.randn(len(prompts), 4, *SIZE, generator=torch.Generator().manual_seed(5))
    given, negative = conditionings(model, prompts), encoder_of(model).prompt(NEGATIVE)

    def rows(step: int) -> Rows:
        now = [[part.schedules[min(step, len(part.schedules) - 1)].cond for part in parts] for parts in given.batch]
        positive = [(x[i], context) for i, parts in enumerate(now) for context in parts]
        return [*positive, *[(x[i], negative) for i, parts in enumerate(now) for _ in parts]]

    looker: Any = SimpleNamespace(host=lambda loaded: open_webui(loaded))
    asked: Any = SimpleNamespace(sd_model=lambda: model, texts=texts)
    p = SimpleNamespace(prompts=prompts)
    words = sampling.words_of(p, Settings(head=ATTENTION), phrases, given, SIZE, looker, asked)
    sampler, latents = Sampler(host._unet, x, rows, calls), list[Any]()
    keep_next_latents(sampler, words, latents.append)
    with torch.no_grad():
        sampler.run()
    assert latents[0] is x
    return words, sampler


def clean(unet: Any) -> bool:
    """Whether nothing of ours hangs in it."""
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in unet.modules()]
    return "forward" not in vars(unet) and not any(hooks)


@torch.no_grad()
def expected(words: Words, x: Tensor, contexts: Sequence[Tensor], steps: Sequence[float]) -> dict[str, Tensor]:
    """The mean of the cross-attention of passes of one row each."""
    blocks, found = words.capture.cross_blocks, list[dict[str, Tensor]]()
    for t, context in zip(steps, contexts, strict=True):
        with reading_attention(words.unet, blocks, (), words.capture.specs, SIZE) as attention:
            words.unet(x[None], torch.tensor([t]), context=context[None])
        found.append(attention.cross)
    return {block: torch.stack([cross[block] for cross in found]).mean(0) for block in blocks}


@pytest.mark.parametrize(("name", "calls"), [*(("A1111", calls) for calls in CALLS), ("Forge", "negatives first")])
def test_each_picture_s_own_rows_are_read(name: str, calls: str) -> None:
    model = webuis.HOSTS[name]()
    prompts = ["a red star on grass", "a (purple cat:1.3) BREAK grass", "a red star on grass"]
    words, sampler = ran(model, prompts, ["red star", "the purple cat", "water"], CALLS[calls])
    run, encoder = words.capture.done[LATEST], encoder_of(model)
    assert clean(words.unet)
    assert "launch_sampling" not in vars(sampler)
    assert set(words.prompts) == set(run.means) == {(0, 0, 0), (1, 0, 0), (2, 0, 0)}
    for place, prompt in enumerate(prompts):
        context = encoder.prompt(prompt)
        if calls in ("together", "twice"):
            ((_, context),) = last_repeated([(sampler.x, context), (sampler.x, encoder.prompt(prompts[1]))])[:1]
        maps = words.capture.attention(run, (place, 0, 0))
        for block, want in expected(words, sampler.x[place], [context] * 2, STEPS).items():
            torch.testing.assert_close(maps.cross[block], want, atol=1e-5, rtol=1e-4)
        assert set(maps.self_attention) == set(words.capture.self_blocks)


def test_the_picture_is_what_it_is_without(model: Any) -> None:
    """Reading changes no call: the UNet gives the same bits."""
    outputs: list[Tensor] = []
    unet = open_webui(model)._unet
    handle = unet.register_forward_hook(lambda *given: outputs.append(given[2].clone()))
    ran(model, ["a red star"], ["red star"])
    ran(model, ["a red star"], ["nothing of it"])
    handle.remove()
    half = len(outputs) // 2
    assert half == len(STEPS)
    assert all(torch.equal(*pair) for pair in zip(outputs[:half], outputs[half:], strict=True))


def test_of_an_edited_prompt_what_stands_at_the_end_counts(model: Any) -> None:
    words, sampler = ran(model, ["a red star|a purple cat on grass"], ["red star", "purple cat"])
    captured, line = words.seen(0, open_webui(model).tokenize)
    assert line.startswith('read from the sampling: "purple cat"')
    last = encoder_of(model).prompt("a purple cat on grass")
    maps = words.capture.attention(words.capture.done[LATEST], (0, 0, 1))
    for block, want in expected(words, sampler.x[0], [last], STEPS[1:]).items():
        torch.testing.assert_close(maps.cross[block], want, atol=1e-5, rtol=1e-4)
    assert captured is not None


def test_pictures_are_told_apart_where_one_s_prompt_comes_to_be_another_s(model: Any) -> None:
    words, sampler = ran(model, ["a red star|a purple cat", "a purple cat"], ["purple cat"])
    context = encoder_of(model).prompt("a purple cat")
    for key, steps in (((0, 0, 1), STEPS[1:]), ((1, 0, 0), STEPS)):
        maps = words.capture.attention(words.capture.done[LATEST], key)
        for block, want in expected(words, sampler.x[key[0]], [context] * len(steps), steps).items():
            torch.testing.assert_close(maps.cross[block], want, atol=1e-5, rtol=1e-4)


def test_a_phrase_that_was_edited_out_takes_its_pass(model: Any) -> None:
    words, _ = ran(model, ["a purple cat|a red star"], ["purple cat"])
    assert words.seen(0, open_webui(model).tokenize) == (None, sampling.ABSENT)


def test_alternation_comes_back_to_a_text() -> None:
    ends = [(0, 0), (1, 1), (2, 0), (3, 1)]
    assert [sampling._at(step, ends) for step in range(6)] == [0, 1, 0, 1, 0, 0]


def test_of_parts_between_and_the_one_that_says_most_counts(model: Any) -> None:
    words, _ = ran(model, ["a blue sky AND a red star on grass"], ["the blue sky", "grass", "red star"], split)
    _, line = words.seen(0, open_webui(model).tokenize)
    assert line == 'read from the sampling: "grass", "red star"'


def test_positions_are_those_of_chunks_beyond_75_tokens_and_of_inversions(model: Any) -> None:
    host = open_webui(model)
    ids = host.positions(f"{LONG}, (a star:1.2)")
    star = host.tokenize("star")[0]
    assert len(ids) == 154
    assert ids.index(star) == 1 + 77 + (len(host.tokenize(f"{LONG}, a star")) - 75) - 1
    assert {ids[0], ids[76], ids[77], ids[153]} == {-1}
    cat = host.tokenize("cat")[0]
    assert host.positions("a <x3> cat")[:6] == [-1, *host.tokenize("a"), -1, -1, -1, cat]
    assert host.positions("a BREAK cat")[78] == cat
    assert len(encoder_of(model).prompt("a BREAK cat")) == 154


def test_a_prompt_of_the_phrase_alone_tells_it_from_nothing(model: Any) -> None:
    words, _ = ran(model, ["a purple cat"], ["purple cat"])
    assert words.seen(0, open_webui(model).tokenize) == (None, sampling.ALONE)


@pytest.mark.parametrize("prompts", [["a red star"], ["a red star", "a purple cat on grass"]])
def test_what_does_not_stand_in_the_prompt_takes_its_pass(model: Any, prompts: list[str]) -> None:
    words, _ = ran(model, prompts, ["purple cat"])
    captured, lines = seen(words, len(prompts), open_webui(model))
    assert captured[0] is None
    assert lines[0] == sampling.ABSENT
    assert [part is not None for part in captured[1:]] == [True] * (len(prompts) - 1)


def test_phrases_of_the_prompt_ask_no_further_call(model: Any) -> None:
    host = open_webui(model)
    words, sampler = ran(model, ["a red star on grass"], ["red star", "grass"])
    captured, _ = seen(words, 1, host)
    head = AttentionHead(dataclasses.replace(words.capture.config, size_multiple=8))
    predictor = Predictor(host, head, resolution="native")
    predictor.set_latents(sampler.x, captured=captured[0])
    calls = list[int]()
    handle = host._unet.register_forward_pre_hook(lambda *_: calls.append(1))
    found = predictor.predict(["red star", "grass"])
    assert (calls, found.logits.isfinite().all().item()) == ([], True)
    predictor.predict(["red star", "water"])
    handle.remove()
    assert len(calls) == 1


class Interrupted(BaseException):
    """As the hosts' own, of a kind that no `except Exception` holds."""


@pytest.mark.parametrize("where", ["the first call", "inside of a call", "between calls"])
def test_nothing_is_left_where_a_run_is_interrupted(model: Any, where: str) -> None:
    unet = open_webui(model)._unet
    stops = itertools.count()

    def calls(rows: Rows) -> Any:
        if where == "between calls" and next(stops):
            raise Interrupted
        return together(rows)

    if where != "between calls":
        module = unet.input_blocks[0][0] if where == "the first call" else unet.output_blocks[5][1]
        forward = module.forward

        def failing(*given: Any, **named: Any) -> Any:
            if next(stops) or where == "the first call":
                raise Interrupted
            return forward(*given, **named)

        module.forward = failing
    with pytest.raises(Interrupted):
        ran(model, ["a red star"], ["red star"], calls)
    assert clean(unet)


def test_a_forward_that_another_extension_has_set_stays(model: Any) -> None:
    unet = open_webui(model)._unet
    theirs = unet.forward
    unet.forward = other = lambda *given, **named: theirs(*given, **named)
    words, _ = ran(model, ["a red star"], ["red star"])
    assert vars(unet)["forward"] is other
    assert words.capture.done[LATEST].means


def test_of_two_requests_before_a_run_the_later_counts() -> None:
    """A Forge asks twice before the second pass of hires fix."""
    sampler, kept = Sampler(None, torch.zeros(1), lambda step: [], lambda rows: []), list[str]()
    for name in ("first", "second"):
        around_next_run(sampler, contextlib.nullcontext, lambda _, name=name: kept.append(name))
    sampler.run()
    assert kept == ["second"]
    assert "launch_sampling" not in vars(sampler)


def test_calls_of_another_form_are_passed_on(model: Any) -> None:
    host = open_webui(model)
    config = AttentionHead().fitted_to(host).head_config
    capture = AttentionCapture(model, config, host.specs)
    with torch.no_grad(), calls_read(capture, host._unet, {}, SIZE, tuple):
        x, context = torch.zeros(2, 4, *SIZE), torch.zeros(2, 77, 64)
        named = host._unet(x, timesteps=torch.tensor([5.0, 5.0]), context=context)
        placed = host._unet(x, torch.tensor([5.0, 5.0]), context)
    assert torch.equal(named, placed)
    assert clean(host._unet)
