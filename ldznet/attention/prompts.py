"""Prompts that hold several phrases, and where each phrase's tokens are. Imports errors and this folder's constants.

Positions come from the host's own tokenizers, which split at spaces, so that the tokens of a prompt are those of its
words one after the other. That is checked for every prompt.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from ..clip_bpe import CONTEXT_LENGTH
from ..errors import HostError, InputError
from ..phrases import STOP_WORDS as NAMELESS
from .config import AttentionConfig

Tokenize = Callable[[str], list[int]]
MOST_TOKENS = CONTEXT_LENGTH - 2  # without start and end
STOP_WORDS = NAMELESS | {"photo", "photograph", "picture"}  # their attention says little of a place


Rows = Sequence[Sequence[int]]
"""For each tokenizer, the token ids by row of the text that a network is given; -1 for rows that are not of its words:
start, end, padding, a template, other encoders' rows."""


class Spelling(NamedTuple):
    """One tokenizer: the ids of a piece of text without start, end and padding. `after_space`: a template ends with a
    space before the text."""

    ids: Tokenize
    after_space: bool = False

    def word(self, text: str, first: bool) -> list[int]:
        """The ids of a word, as the first of a text or behind another: byte-level tokenizers take the space before it
        for a part of it."""
        return (
            list(self.ids(text))
            if first and not self.after_space
            else list(self.ids(f"a {text}"))[len(self.ids("a")) :]
        )


class Texts(NamedTuple):
    """How a host's network is given a text: the tokenizers of the rows that it reads, and which rows those are.

    `rows` of a text that it encodes, `placed` of one that was encoded before, by what its host keeps of the tokens and
    the count of rows; None where a host does not keep any. `most` tokens of the first tokenizer fit into one pass.
    """

    spellings: tuple[Spelling, ...]
    rows: Callable[[str], Rows]
    placed: Callable[[Any, int], Rows] | None = None
    most: int = MOST_TOKENS

    @classmethod
    def of_clip(cls, tokenize: Tokenize) -> Texts:
        """CLIP's alone: a start token, then the words."""
        return cls((Spelling(tokenize),), lambda text: [[-1, *tokenize(text)]])


def texts_of(host: Any) -> Texts:
    """A host's own, or those of a host that has a CLIP tokenizer."""
    return getattr(host, "texts", None) or Texts.of_clip(host.tokenize)


class Prompt(NamedTuple):
    """A text and the rows of its content tokens in what the network is given (CLIP's 0 is the start token), for each
    phrase in order, and for each background word."""

    text: str
    phrases: tuple[str, ...]
    phrase_tokens: tuple[tuple[int, ...], ...]
    background_tokens: tuple[tuple[int, ...], ...]


class _Word(NamedTuple):
    text: str
    phrase: int | None = None  # which phrase it belongs to
    in_background: bool = False


def prompts_of(phrases: Sequence[str], config: AttentionConfig, tokenize: Texts | Tokenize) -> list[Prompt]:
    """The fewest prompts that hold all `phrases` in their order; none is ever cut off.

    Raises InputError for a phrase that fits into no prompt, with the count of its tokens.
    """
    texts = tokenize if isinstance(tokenize, Texts) else Texts.of_clip(tokenize)
    groups: list[list[str]] = []
    for phrase in phrases:
        if groups and _length([*groups[-1], phrase], config, texts) <= texts.most:
            groups[-1].append(phrase)
            continue
        taken = _length([phrase], config, texts)
        if taken > texts.most:
            alone = len(texts.spellings[0].ids(phrase))
            raise InputError(
                f'Expected at most {texts.most - taken + alone} tokens, got {alone}: shorten "{phrase[:40]}…".'
            )
        groups.append([phrase])
    return [_prompt(group, config, texts) for group in groups]


def spoken(ids: Sequence[int], phrases: Sequence[str], tokenize: Tokenize) -> Prompt:
    """Those of `phrases` that stand, but for a leading article, in a prompt that somebody else made, of which only the
    token `ids` by position are known (-1 for none); its other words are the background."""
    return spoken_in([ids], phrases, [Spelling(tokenize)])


def spoken_in(rows: Rows, phrases: Sequence[str], spellings: Sequence[Spelling]) -> Prompt:
    """As `spoken`, of a text with the `rows` of several tokenizers: a phrase's rows are those of all of them."""
    found: dict[str, list[int]] = {}
    rest: list[int] = []
    for ids, spelling in zip(rows, spellings, strict=True):
        nameless = _nameless(spelling)
        taken: set[int] = set()
        for phrase in phrases:
            tokens = [i for start in _starts(ids, phrase, spelling) for i in start if ids[i] not in nameless]
            if tokens:
                found.setdefault(phrase, []).extend(dict.fromkeys(tokens))
                taken.update(tokens)
        rest += [i for i, token in enumerate(ids) if token >= 0 and token not in nameless and i not in taken]
    placed = {phrase: tuple(dict.fromkeys(found[phrase])) for phrase in phrases if phrase in found}
    return Prompt("", tuple(placed), tuple(placed.values()), tuple((i,) for i in sorted(rest)))


def _starts(ids: Sequence[int], phrase: str, spelling: Spelling) -> Iterator[range]:
    """Where a phrase without its leading article stands in `ids`."""
    words = list(itertools.dropwhile(lambda word: bare(word) in STOP_WORDS, phrase.split()))
    text = " ".join(words)
    spelled = {tuple(spelling.word(text, first)) for first in (True, False)} if words else set()
    for wanted in spelled:
        for start in range(len(ids) - len(wanted) + 1):
            if tuple(ids[start : start + len(wanted)]) == wanted:
                yield range(start, start + len(wanted))


def _nameless(spelling: Spelling) -> set[int]:
    """The tokens of words and marks that name nothing, where they are a token each."""
    spelled = (spelling.word(word, first) for word in (*STOP_WORDS, *string.punctuation) for first in (True, False))
    return {tokens[0] for tokens in spelled if len(tokens) == 1}


def _length(phrases: Sequence[str], config: AttentionConfig, texts: Texts) -> int:
    return sum(len(texts.spellings[0].word(word.text, i == 0)) for i, word in enumerate(_words(phrases, config)))


def _prompt(phrases: Sequence[str], config: AttentionConfig, texts: Texts) -> Prompt:
    words = list(_words(phrases, config))
    text = " ".join(word.text for word in words)
    of_phrases: list[list[int]] = [[] for _ in phrases]
    spare: list[list[int]] = [[] for _ in phrases]  # all tokens of a phrase, for one that is made of stop words alone
    background: dict[int, list[int]] = {}  # by the number of the word
    for spelling, row in zip(texts.spellings, texts.rows(text), strict=True):
        places = [i for i, token in enumerate(row) if token >= 0]
        spelled = [spelling.word(word.text, i == 0) for i, word in enumerate(words)]
        if [row[i] for i in places] != [token for tokens in spelled for token in tokens]:
            raise HostError(
                f'Expected tokenizers that split at spaces, got one that does not for "{text[:40]}…".'
                " Leave out quotation marks and apostrophes."
            )
        at = 0
        for i, (word, tokens) in enumerate(zip(words, spelled, strict=True)):
            content = [places[at + k] for k in _content(word.text, tokens, spelling, i == 0)]
            if word.phrase is not None:
                of_phrases[word.phrase] += content
                spare[word.phrase] += places[at : at + len(tokens)]
            elif word.in_background and content:
                background.setdefault(i, []).extend(content)
            at += len(tokens)
    kept = tuple(tuple(content or every) for content, every in zip(of_phrases, spare, strict=True))
    return Prompt(text, tuple(phrases), kept, tuple(tuple(tokens) for tokens in background.values()))


def _words(phrases: Sequence[str], config: AttentionConfig) -> Iterator[_Word]:
    """The words of a prompt: opening, phrases, closing, background without the words that were asked for."""
    background = background_of(phrases, config)
    yield from map(_Word, config.opening.split())
    for i, phrase in enumerate(phrases):
        if i:
            yield from map(_Word, config.joiner.split())
        yield from (_Word(word, phrase=i) for word in phrase.split())
    if background:
        yield from (_Word(word, in_background=True) for word in config.closing.split())
    for i, word in enumerate(background):
        yield _Word(word if i == len(background) - 1 else f"{word},", in_background=True)


def background_of(phrases: Sequence[str], config: AttentionConfig) -> list[str]:
    """The background words that no phrase asks for."""
    asked = {bare(word) for phrase in phrases for word in phrase.split()}
    return [word for word in config.background if word not in asked]


def bare(word: str) -> str:
    """A word in lower case, without the punctuation around it."""
    return word.strip(string.punctuation).lower()


def _content(word: str, tokens: Sequence[int], spelling: Spelling, first: bool) -> range:
    """Which of a word's tokens name something: none of a stop word's, and no punctuation around it."""
    core = word.strip(string.punctuation)
    if not core or core.lower() in STOP_WORDS:
        return range(0)
    lead, _, trail = word.partition(core)
    inside = spelling.word(core, first and not lead)
    if not lead and list(tokens[: len(inside)]) == inside:
        return range(len(inside))
    before, after = (list(spelling.ids(part)) if part else [] for part in (lead, trail))
    inside = list(spelling.ids(core))
    if [*before, *inside, *after] != list(tokens):
        return range(len(tokens))
    return range(len(before), len(before) + len(inside))
