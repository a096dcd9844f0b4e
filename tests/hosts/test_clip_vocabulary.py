"""The vocabulary that we ship and what reads it, against transformers' CLIPTokenizer on the same files."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hosts import small

from ldznet.clip_bpe import END, START, Tokenizer
from ldznet.errors import CheckpointError, InputError

TEXTS = (
    "a photo of a dog.",
    "A Photo Of A DOG",
    "the dog's ball, isn't it? I'd say they've won; we'll see, I'm sure you're right",
    "  tabs\tand\nnewlines   and\u00a0fixed\u3000spaces ",
    "3 red stars, 12 blue ones & 1234567890 more (50% off!)",
    "snake_case __init__ a_b _",
    "x² ½ cup Ⅷ ① ⑳ ٣ ५ 10⁻³",
    "café naïve Zürich Øresund São Paulo łódź İstanbul ǅ ß ẞ",
    "cafe\u0301 n\u0303 a\u0308 combining, u\u0328\u0301",
    "ΟΔΥΣΣΕΥΣ Σίσυφος ΟΔΟΣ.",
    "красная звезда, Ёлка",
    "赤い星と草原、青い空。",
    "红色的星星在草地上 三只狗",
    "빨간 별과 잔디",
    "نجمة حمراء على العشب",
    "כוכב אדום, דשא",
    "लाल तारा और घास",
    "ดาวสีแดง",
    "🌟 a 🐶🐕‍🦺 on the 🌱!! 👩‍👩‍👧🏽 ❤️",
    "“curly” ‘quotes’ — dashes – and … dots",
    "price: €5 £6 ¥7 ©®™ §¶",
    "<b>tags</b> &amp; &lt;entities&gt;",
    "https://example.org/a?b=c#d e-mail@example.org",
    "!!!???...,,,;;;:::---",
    "'s 't 're 've 'm 'll 'd 'x ''s",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "zero\u200bwidth\u200djoin\ufeffer",
    "",
    " ",
    "a" * 40,
)


def varied(count: int) -> list[str]:
    """`TEXTS`, and pieces of them in every mixture, the same on every run."""
    draw = random.Random(0)
    pieces = [text[i : i + 5] for text in TEXTS for i in range(0, len(text), 5)]
    return [*TEXTS, *("".join(draw.choices(pieces, k=draw.randint(1, 6))) for _ in range(count - len(TEXTS)))]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_merges(small.MERGES)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pytest.importorskip("transformers", minversion="5")  # version 4's slow tokenizer sets spaces between CJK characters
    return small.transformers_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_the_vocabulary_is_clip_s(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.ranks) == 48_894
    assert len(tokenizer.vocabulary) == 49_408
    assert (tokenizer.start, tokenizer.end) == (49_406, 49_407)
    assert tokenizer.ids("a photo of a cat") == [320, 1125, 539, 320, 2368]  # as printed all over the literature


@pytest.mark.parametrize("part", range(10))
def test_equals_transformers(part: int, tokenizer: Tokenizer, theirs: Any) -> None:
    for text in varied(300)[part::10]:
        expected = theirs(text).input_ids[1:-1]
        assert tokenizer.ids(text) == expected, text


def test_special_tokens_in_a_text_are_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.end not in tokenizer.ids(f"a {END} b {START}")


def test_padding_and_too_long_a_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a cat")
    assert ids == [tokenizer.start, 320, 2368] + [tokenizer.end] * 74
    assert len(tokenizer.encode("cat " * 75)) == 77
    with pytest.raises(InputError, match="at most 75 tokens, got 76"):
        tokenizer.encode("cat " * 76)


def test_folders_of_any_age(tmp_path: Path, tokenizer: Tokenizer, theirs: Any) -> None:
    """transformers 4 saves vocab.json and merges.txt, transformers 5 tokenizer.json alone, its merges as pairs."""
    theirs.save_pretrained(tmp_path / "new")
    (tmp_path / "new" / "vocab.json").unlink(missing_ok=True)
    read = Tokenizer.load(tmp_path / "new")
    assert (read.ranks, read.vocabulary) == (tokenizer.ranks, tokenizer.vocabulary)

    both = json.loads((tmp_path / "new" / "tokenizer.json").read_text(encoding="utf-8"))
    both["model"]["merges"] = [" ".join(pair) for pair in tokenizer.ranks]
    (tmp_path / "new" / "tokenizer.json").write_text(json.dumps(both), encoding="utf-8")
    assert Tokenizer.load(tmp_path / "new").ranks == tokenizer.ranks


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"vocab\.json and merges\.txt, or tokenizer\.json"):
        Tokenizer.load(tmp_path)
