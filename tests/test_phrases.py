"""What is part of a phrase, what is not, and what is said of it; and the tokens that reach the text encoder."""

from __future__ import annotations

import re
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldznet.errors import InputError
from ldznet.hosts.tiny import TinyHost
from ldznet.phrases import Phrase, fill, hints_of, read, terms_of
from ldznet.predictor import Predictor
from ldznet.tinyworld import world

CAT = "a purple cat"
AS_TYPED = {  # what is typed: what it means; nothing to say of either
    CAT: CAT,
    "  a\tpurple\u00a0 cat\n": CAT,
    "a \u200bpurple cat\ufeff": CAT,
    "a t-shirt": "a t-shirt",
    "a small-big dog": "a small-big dog",
    r"a cat \(toy\)": "a cat (toy)",
    r"a \[cat\]": "a [cat]",
    "the dog’s “good” collar": 'the dog\'s "good" collar',
    "a clock that shows 12:30": "a clock that shows 12:30",
    "雪": "雪",
    "🦓🏽\u200d🦓": "🦓🏽\u200d🦓",
    "the letter A": "the letter A",
    **{
        f"grass{minus}a star": "grass - a star" for minus in (" - ", " – ", " — ", " − ", "−", "\t-\t", "\u00a0-\u00a0")
    },
    **{f"grass{minus}a star": "grass - a star" for minus in (" -", " -- ", "   -   ")},
    "cat|dog": "cat | dog",
    "cat | dog - a collar": "cat | dog - a collar",
    "everything - a red star": "everything - a red star",
    "Everything but the star": "everything - the star",
    "all except for a star": "everything - a star",
    "background": "background",
    "The background.": "background",
    "everything else": "background",
    "the rest - a star": "background - a star",
}
READ_AS = {  # what is typed: what it means, and why
    "a purple cat.": (CAT, None),
    '"a purple cat"': (CAT, None),
    "“a purple cat”,": (CAT, None),
    "... a purple cat!?": (CAT, None),
    "*a purple cat*": (CAT, None),
    "a purple cat。": (CAT, None),
    "(a purple cat:1.3)": (CAT, "weights"),
    "(a purple cat: 1.3)": (CAT, "weights"),
    "((a purple cat:.5):1.2)": (CAT, "weights"),
    "(a purple cat:-1)": (CAT, "weights"),
    "a (purple:1.2) cat": (CAT, "weights"),
    "(a purple cat)1.3": (CAT, "weights"),
    "(a purple cat)++": (CAT, "weights"),
    "a purple cat++": (CAT, "weights"),
    "a purple cat:3": (CAT, "counts"),
    "(a purple cat)": (CAT, "brackets"),
    "((a purple cat))": (CAT, "brackets"),
    "[a purple cat]": (CAT, "brackets"),
    "{a purple cat}": (CAT, "brackets"),
    "[(a purple) cat]": (CAT, "brackets"),
    "(a purple cat": (CAT, "brackets"),
    "a purple cat)": (CAT, "brackets"),
    r"(a cat \(toy\):1.1)": ("a cat (toy)", "weights"),
    "<lora:cats:0.8> a purple cat": (CAT, "LoRA"),
    "(grass - a star)": ("grass - a star", "brackets"),
    "(grass - a star:1.2)": ("grass - a star", "weights"),
    "(grass:1.1) - [a star].": ("grass - a star", "weights"),
    "everything - (a star:1.2)": ("everything - a star", "weights"),
    "(cat:1.2) | [dog]": ("cat | dog", "weights"),
}


@pytest.mark.parametrize("text", AS_TYPED, ids=ascii)
def test_what_is_no_part_of_a_phrase_is_left_away_without_a_word(text: str) -> None:
    phrase = Phrase.parse(text)
    assert (phrase.text, phrase.meaning, phrase.hints) == (text, AS_TYPED[text], ())
    assert Phrase.parse(re.sub(r"([()\[\]])", r"\\\1", phrase.meaning)).meaning == phrase.meaning


@pytest.mark.parametrize("text", READ_AS, ids=ascii)
def test_what_is_read_in_another_way_is_said(text: str) -> None:
    meaning, reason = READ_AS[text]
    (hint,) = Phrase.parse(text).hints
    assert Phrase.parse(text).meaning == meaning
    assert f'is read as "{meaning}"' in hint
    assert hint.endswith(f"{reason} do nothing here)" if reason in ("weights", "counts", "brackets") else hint[-1])
    assert (reason == "LoRA") == ("a LoRA acts where the model loads it" in hint)


def test_the_parts_of_a_phrase() -> None:
    phrase = Phrase.parse("the dog | a cat - the collar - a tag | a bell")
    assert (phrase.wanted, phrase.unwanted) == (("the dog", "a cat"), ("the collar", "a tag", "a bell"))
    assert (Phrase.parse("everything - grass").wanted, Phrase.parse("everything - grass").rest) == ((), False)
    assert (Phrase.parse("background").wanted, Phrase.parse("background").rest) == ((), True)
    assert terms_of(read(["grass - a star", "a star", "background"])) == ["grass", "a star"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a red star, grass", "is one phrase"),
        ("a small, red star", "is one phrase"),
        ("cat. dog", "is one phrase"),
        ("cat; dog", "is one phrase"),
        ("not a cat", "is read as words"),
        ("no cats", "is read as words"),
        ("grass–star", "a minus has a space before it"),
    ],
)
def test_what_other_tools_read_in_another_way_gets_a_hint(text: str, says: str) -> None:
    (hint,) = hints_of([text])
    assert says in hint
    assert Phrase.parse(text).wanted == (text,)


NO_PHRASES = [
    *("", "  ", "\u200b", "\x00", "-", "{}", ":)", '""', "...", "- a star", "a star -", " - a star", "a star - "),
    *("grass - - star", "cat |", "| cat", "cat || dog", "grass - a star |", "<|endoftext|>"),
]


@pytest.mark.parametrize("text", NO_PHRASES, ids=ascii)
def test_nothing_to_find_says_what_a_phrase_is(text: str) -> None:
    with pytest.raises(InputError, match=r'Expected a phrase such as "the dog", .*, got '):
        Phrase.parse(text)


@pytest.mark.parametrize(
    "text", ["the", "a", "The.", "(the:1.2)", "an", "of the", "this one", "a star - the", "a | cat"]
)
def test_stop_words_alone_name_nothing(text: str) -> None:
    with pytest.raises(InputError, match="alone names nothing"):
        Phrase.parse(text)


@pytest.mark.parametrize(
    "text", ["grass - grass", "The grass - grass", "grass - GRASS.", "(grass:1.2) - grass", "cat | dog - dog - cat"]
)
def test_a_phrase_that_leaves_nothing_says_so(text: str) -> None:
    with pytest.raises(InputError, match="leaves out all that it names"):
        Phrase.parse(text)


@pytest.mark.parametrize("text", ["a star - everything", "grass - background", "a cat | everything", "cat | the rest"])
def test_everything_and_background_stand_before_a_minus(text: str) -> None:
    with pytest.raises(InputError, match="alone before a minus"):
        Phrase.parse(text)


@pytest.mark.parametrize("text", ["grass - (a star - a tip)", "(grass - a star) - sky", "a (small - big) dog"])
def test_a_minus_within_brackets_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="no minus inside of brackets"):
        Phrase.parse(text)


def test_everything_and_background_need_something_else() -> None:
    with pytest.raises(InputError, match=r'what to leave out.*got "everything"'):
        Phrase.parse("everything")
    with pytest.raises(InputError, match=r'other phrases beside "background".*everything - the dog'):
        read(["background"])
    assert [phrase.meaning for phrase in read(["background", "a dog"])] == ["background", "a dog"]
    assert read(["background - a dog"])[0].unwanted == ("a dog",)


def test_what_cannot_be_shown_is_not_shown() -> None:
    with pytest.raises(InputError) as error:
        Phrase.parse("the\x1b[31m - \x07" + "word " * 100)
    assert "\x1b" not in str(error.value)
    assert "\x07" not in str(error.value)
    assert len(str(error.value)) < 300


LONG = ["(" * 10**5, "(" * 10**5 + "cat" + ")" * 10**5, ":" + "1" * 10**5, "(cat:" + "1" * 10**5, "<lora:" * 10**5]


@pytest.mark.parametrize("text", [*LONG, "cat -" * 10**5, "cat|" * 10**5, "+" * 10**5, "cat++ " * 10**4], ids=len)
def test_long_texts_are_read_in_no_time(text: str) -> None:
    start = time.process_time()
    assert len(complaint_about(text)) < 400
    assert time.process_time() - start < 2


@settings(deadline=None)
@given(st.text(max_size=30))
def test_any_text_is_a_phrase_or_an_error_of_ours(text: str) -> None:
    complaint = complaint_about(text)
    if complaint:
        assert complaint.startswith("Expected")
        assert len(complaint.splitlines()) == 1
        return
    phrase = Phrase.parse(text)
    assert phrase.text == text
    assert phrase.unwanted or phrase.wanted or phrase.rest
    assert all(len(hint.splitlines()) == 1 for hint in phrase.hints)


def complaint_about(text: str) -> str:
    try:
        Phrase.parse(text)
    except InputError as error:
        return str(error)
    return ""


def test_templates() -> None:
    assert fill("a photo of a {}.", "the red dog") == "a photo of a red dog."
    assert fill("a photo of the {}.", "A red dog") == "a photo of the red dog."
    assert fill("a photo of one {}.", "an owl") == "a photo of one owl."
    assert fill("a photo of a {}.", "a") == "a photo of a a."
    assert fill("{}", "a red dog") == "a red dog"


class Listening(TinyHost):
    """Keeps what its text encoder was given."""

    def encode_text(self, phrases: list[str]) -> torch.Tensor:
        self.heard = [self.models.tokenizer.ids(phrase) for phrase in phrases]
        return super().encode_text(phrases)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    from ldznet import load_head

    predictor = Predictor(Listening.load(), load_head("tiny"))
    predictor.set_latents(torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3)))
    return predictor


@pytest.mark.parametrize("text", [t for t, (meaning, _) in READ_AS.items() if meaning == CAT], ids=ascii)
def test_the_tokens_of_the_phrase_alone_reach_the_encoder(text: str, predictor: Predictor) -> None:
    plain = predictor.predict([CAT])
    vocabulary = world.tokenizer().vocabulary
    result = predictor.predict([text])
    assert predictor.host.heard == [[vocabulary[f"{word}</w>"] for word in ("a", "purple", "cat")]]
    assert torch.equal(result.logits, plain.logits)
    assert result.phrases == (text,)
    assert "is read as" in result.hints[0]


def test_words_that_a_small_world_has_never_seen_are_named(predictor: Predictor) -> None:
    hints = predictor.predict(["the flag", "grass - a zebra, small", "a cat"]).hints
    assert hints[-1].startswith('"flag", "zebra", "small": no word of this model')
    assert predictor.predict(["the red star", "grass - a cat"]).hints == ()
