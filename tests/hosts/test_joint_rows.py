"""Which rows of a transformer's text are whose tokens, by ComfyUI's tokens alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ldznet.errors import HostError
from ldznet.hosts.joint import (
    JOINT,
    Encoders,
    joint_of,
    numbered,
    require_encoders,
    rows_needed,
    rows_of,
    stretches,
    template_of,
)

WORDS = [11, 12, 13]


def row(*parts: tuple[list[int], int]) -> list[list[Any]]:
    """A row of tokens of parts with a number of the word each (0: none)."""
    return [[token, 1.0, word] for ids, word in parts for token in ids]


def test_start_end_and_padding_are_no_words() -> None:
    tokens = {"t5xxl": [row((WORDS, 1), ([1, 0, 0], 0))]}
    blank = {"t5xxl": [row(([1, 0, 0, 0, 0, 0], 0))]}
    assert rows_of(Encoders(("t5xxl",), (("t5xxl",),)), tokens, blank, 6) == [[*WORDS, -1, -1, -1]]


def test_a_template_is_what_an_empty_text_has_too() -> None:
    head, tail = [90, 91], [92, 93]
    tokens, blank = {"qwen": [row(([*head, *WORDS, *tail], 1))]}, {"qwen": [row(([*head, *tail], 1))]}
    assert rows_of(Encoders(("qwen",)), tokens, blank, 7) == [[-1, -1, *WORDS, -1, -1]]
    cut = Encoders(("qwen",), at_end=True)
    assert rows_of(cut, tokens, blank, 5) == [[*WORDS, -1, -1]]  # the head was cut off, as Qwen-Image's is
    assert rows_of(cut, tokens, blank, 9) == [[-1, -1, -1, -1, *WORDS, -1, -1]]  # padding in front, as Flux.2's


def test_a_template_without_an_empty_text_is_what_two_marks_have_in_common() -> None:
    head, tail = [90, 91], [92, 93]
    marks = [{"qwen": [row(([*head, mark, *tail], 1))]} for mark in (1, 2)]
    assert template_of(marks) == {"qwen": [row(([*head, *tail], 1))]}
    assert template_of(marks[:1]) == marks[0]
    tokens = {"qwen": [row(([*head, 1, *WORDS, *tail], 1))]}  # a text that begins with one of the marks
    cut = Encoders(("qwen",), at_end=True)
    assert rows_of(cut, tokens, template_of(marks), 6) == [[1, *WORDS, -1, -1]]


def test_rows_end_before_the_last_stop() -> None:
    stop = 93
    tokens = {"qwen": [row(([90, stop, 91, *WORDS], 1), ([0, 0], 0), ([stop, 92], 1))]}
    blank = {"qwen": [row(([90, stop, 91], 1), ([stop, 92], 1))]}
    cut = Encoders(("qwen",), at_end=True, stop=stop)
    assert rows_of(cut, tokens, blank, 5) == [[*WORDS, -1, -1]]  # as LongCat-Image's, padding included
    whole = {"qwen": [row((WORDS, 1))]}
    assert rows_of(cut, whole, {"qwen": [[]]}, 3) == [WORDS]


def test_tokens_without_numbers_are_of_one_word() -> None:
    tokens = {"qwen": [[(90, 1.0), (11, 0.5), (0, 1.0, 0)]], "l": [[]]}
    assert numbered(tokens) == {"qwen": [[(90, 1.0, 1), (11, 0.5, 1), (0, 1.0, 0)]], "l": [[]]}


def test_sd3_has_a_word_in_clip_s_rows_and_in_t5_s() -> None:
    encoders = JOINT["SD3"].encoders
    clip = row(([49406], 0), ([5, 6], 1), ([49407, 49407], 0))
    t5, empty = row((WORDS, 1), ([1], 0)), row(([0] * 5, 0))
    tokens = {"g": [clip], "l": [clip], "t5xxl": [t5]}
    blank = {name: [empty] for name in tokens}
    assert stretches(encoders, tokens) == ["l", "t5xxl"]
    assert rows_of(encoders, tokens, blank, 9) == [[-1, 5, 6, *[-1] * 6], [*[-1] * 5, *WORDS, -1]]
    del tokens["l"]
    assert stretches(encoders, tokens) == ["g", "t5xxl"]


def test_hidream_has_a_word_in_t5_s_rows_and_twice_in_llama_s() -> None:
    encoders = JOINT["HiDream"].encoders
    tokens = {"l": [], "g": [], "t5xxl": [row((WORDS, 1), ([1], 0))], "llama": [row(([90], 0), ([7, 8], 1))]}
    blank = {"t5xxl": [row(([1, 0], 0))], "llama": [row(([90, 91], 0))]}
    assert rows_needed(encoders, tokens) == 10
    none = [-1] * 10
    first, second = [*none[:5], 7, 8, *none[7:]], [*none[:8], 7, 8]
    assert rows_of(encoders, tokens, blank, 10) == [[*WORDS, *none[3:]], first, second]


def test_hunyuandit_has_a_word_in_bert_s_rows_and_in_mt5_s() -> None:
    encoders = JOINT["HunyuanDiT"].encoders
    tokens = {"hydit_clip": [row(([101], 0), ([5, 6], 1), ([102, 0], 0))], "mt5xl": [row((WORDS, 1), ([1, 0], 0))]}
    blank = {"hydit_clip": [row(([101, 102, 0, 0, 0], 0))], "mt5xl": [row(([1, 0, 0, 0, 0], 0))]}
    assert rows_needed(encoders, tokens) == 10
    assert rows_of(encoders, tokens, blank, 10) == [[-1, 5, 6, *[-1] * 7], [*[-1] * 5, *WORDS, -1, -1]]
    with pytest.raises(HostError, match=r"HunyuanDiT's text encoders \(hydit_clip mt5xl\) .* got l t5xxl"):
        require_encoders(encoders, ["l", "t5xxl"], "HunyuanDiT")


def test_relatives_of_a_family_are_none_of_it() -> None:
    wan = type("WAN21", (), {})()
    found = joint_of(wan, SimpleNamespace(img_emb=None))
    assert found is not None
    assert found.family == "wan"
    assert joint_of(wan, SimpleNamespace(img_emb=object())) is None  # it reads a picture beside the text
    flux = type("Flux", (), {})()
    families = [joint_of(flux, SimpleNamespace(txt_norm=norm)) for norm in (None, object())]
    assert [found and (found.family, found.encoders.all_of) for found in families] == [
        ("flux", ("l t5xxl",)),
        ("ovis", ("qwen3_2b",)),
    ]
    assert joint_of(type("WAN21_Vace", (type(wan),), {})(), SimpleNamespace()) is None


def test_embeddings_are_nobody_s_word() -> None:
    tokens: Any = {"t5xxl": [[[11, 1.0, 1], ["a vector", 1.0, 2], [13, 1.0, 3]]]}
    assert rows_of(Encoders(("t5xxl",), (("t5xxl",),)), tokens, {"t5xxl": [[]]}, 3) == [[11, -1, 13]]


def test_another_model_s_clip_is_refused() -> None:
    require_encoders(JOINT["SD3"].encoders, ["t5xxl", "g", "l"], "SD 3")
    with pytest.raises(HostError, match=r"Expected Flux.1's text encoders \(l t5xxl\) .* got g l t5xxl"):
        require_encoders(JOINT["Flux"].encoders, ["l", "g", "t5xxl"], "Flux.1")
    with pytest.raises(HostError, match="at most 2 rows of text, got 3 tokens"):
        rows_of(Encoders(("a",)), {"a": [row((WORDS, 1))]}, {"a": [[]]}, 2)
