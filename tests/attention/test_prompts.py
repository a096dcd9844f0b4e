"""Where a phrase's tokens are, what competes with it, and that no phrase is ever cut."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hosts import small
from hypothesis import given, settings
from hypothesis import strategies as st

from ldznet.attention.config import SD, TINY
from ldznet.attention.prompts import MOST_TOKENS, Prompt, Spelling, Texts, prompts_of
from ldznet.clip_bpe import Tokenizer
from ldznet.errors import HostError, InputError
from ldznet.tinyworld import world

CLIP = Tokenizer.from_merges(small.MERGES)
WORDS_BACK = {number: symbol for symbol, number in CLIP.vocabulary.items()}


def told(prompt: Prompt, tokens: tuple[int, ...]) -> list[str]:
    """The symbols at positions of a prompt; position 0 is the start token."""
    ids = CLIP.ids(prompt.text)
    return [WORDS_BACK[ids[i - 1]].removesuffix("</w>") for i in tokens]


def test_the_published_prompt() -> None:
    (prompt,) = prompts_of(["the dog", "a red, shiny Frisbee"], SD, CLIP.ids)
    assert prompt.text == (
        "a photograph of the dog and a red, shiny Frisbee and other object and background, ground, grass, tree, "
        "building, wall, sky, water, road"
    )
    assert [told(prompt, tokens) for tokens in prompt.phrase_tokens] == [["dog"], ["red", "shiny", "frisbee"]]
    background = [word for tokens in prompt.background_tokens for word in told(prompt, tokens)]
    assert background == ["object", *SD.background]


def test_a_word_of_several_tokens_counts_whole() -> None:
    (prompt,) = prompts_of(["a xylophonist's hat"], SD, CLIP.ids)
    assert len(prompt.phrase_tokens[0]) == len(CLIP.ids("xylophonist's hat"))


def test_what_is_asked_for_is_no_background() -> None:
    (prompt,) = prompts_of(["the green Grass."], SD, CLIP.ids)
    assert prompt.text.lower().count("grass") == 1
    (prompt,) = prompts_of(list(TINY.background), TINY, world.tokenizer().ids)
    assert prompt.background_tokens == ()


def test_a_phrase_of_stop_words_keeps_all_of_them() -> None:
    (prompt,) = prompts_of(["the other"], SD, CLIP.ids)
    assert told(prompt, prompt.phrase_tokens[0]) == ["the", "other"]


def test_the_tiny_world_has_words_of_its_own() -> None:
    words = world.tokenizer()
    (prompt,) = prompts_of(["a red star"], TINY, words.ids)
    assert len(words.ids(prompt.text)) == len(prompt.text.replace(",", " ,").split())  # each word is one token


def test_as_few_prompts_as_hold_all_phrases() -> None:
    phrases = [f"{colour} {thing}" for colour in ("red", "green", "blue") for thing in ("cat", "dog", "car", "tree")]
    parts = prompts_of(phrases, SD, CLIP.ids)
    assert [p for part in parts for p in part.phrases] == phrases
    assert len(parts) == 1
    parts = prompts_of(phrases * 3, SD, CLIP.ids)
    assert [p for part in parts for p in part.phrases] == phrases * 3
    assert len(parts) == 2
    assert all(len(CLIP.ids(part.text)) <= MOST_TOKENS for part in parts)


def test_a_phrase_that_no_prompt_holds() -> None:
    fixed = len(CLIP.ids(prompts_of(["dog"], SD, CLIP.ids)[0].text)) - 1
    prompts_of(["red " * (MOST_TOKENS - fixed)], SD, CLIP.ids)
    with pytest.raises(
        InputError, match=f"at most {MOST_TOKENS - fixed} tokens, got {MOST_TOKENS - fixed + 1}: shorten"
    ):
        prompts_of(["dog", "red " * (MOST_TOKENS - fixed + 1)], SD, CLIP.ids)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=12).filter(lambda text: text.strip()), min_size=1, max_size=4))
def test_any_text_finds_its_place(phrases: list[str]) -> None:
    """Positions lie in order, inside the prompt, and none belongs to two; 12 characters are 48 tokens at most."""
    for prompt in prompts_of(phrases, SD, CLIP.ids):
        ids = CLIP.ids(prompt.text)
        tokens = [t for group in (*prompt.phrase_tokens, *prompt.background_tokens) for t in group]
        assert tokens == sorted(set(tokens))
        assert all(1 <= t <= len(ids) for t in tokens)


def test_a_tokenizer_that_joins_words_is_refused() -> None:
    with pytest.raises(HostError, match="split at spaces"):
        prompts_of(["dog"], SD, lambda text: [len(text)])


def test_a_template_may_end_with_a_space_before_the_text() -> None:
    """Byte-level: a letter is a token, and so is a space with the letter after it."""

    def ids(text: str) -> list[int]:
        return [
            ord(letter) + 1000 * (before == " ") for before, letter in itertools.pairwise(f"x{text}") if letter != " "
        ]

    def rows(text: str) -> list[list[int]]:
        return [[-1, *ids(f" {text}")]]

    (prompt,) = prompts_of(["dog"], SD, Texts((Spelling(ids, after_space=True),), rows, most=200))
    assert [rows(prompt.text)[0][i] for i in prompt.phrase_tokens[0]] == [1000 + ord("d"), ord("o"), ord("g")]
    with pytest.raises(HostError, match="split at spaces"):
        prompts_of(["dog"], SD, Texts((Spelling(ids),), rows, most=200))


def test_other_words() -> None:
    config = dataclasses.replace(SD, opening="a drawing of", joiner=",", closing="with", background=("paper",))
    (prompt,) = prompts_of(["a cat", "a dog"], config, CLIP.ids)
    assert prompt.text == "a drawing of a cat , a dog with paper"
    assert told(prompt, prompt.background_tokens[0]) == ["paper"]
