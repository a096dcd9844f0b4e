"""Prompts that hold several phrases, and where each phrase's tokens are. Imports errors and this folder's constants.

Positions come from the host's own tokenizer: CLIP's splits at spaces, so that the tokens of a prompt are those of its
words one after the other. That is checked for every prompt.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ..clip_bpe import CONTEXT_LENGTH
from ..errors import HostError, InputError
from ..phrases import STOP_WORDS as NAMELESS
from .config import AttentionConfig

Tokenize = Callable[[str], list[int]]
MOST_TOKENS = CONTEXT_LENGTH - 2  # without start and end
STOP_WORDS = NAMELESS | {"photo", "photograph", "picture"}  # their attention says little of a place


class Prompt(NamedTuple):
    """A text and the positions of its content tokens in the 77 (0 is the start token), for each phrase in order, and
    for each background word."""

    text: str
    phrases: tuple[str, ...]
    phrase_tokens: tuple[tuple[int, ...], ...]
    background_tokens: tuple[tuple[int, ...], ...]


class _Word(NamedTuple):
    text: str
    phrase: int | None = None  # which phrase it belongs to
    in_background: bool = False


def prompts_of(phrases: Sequence[str], config: AttentionConfig, tokenize: Tokenize) -> list[Prompt]:
    """The fewest prompts that hold all `phrases` in their order; none is ever cut off.

    Raises InputError for a phrase that fits into no prompt, with the count of its tokens.
    """
    groups: list[list[str]] = []
    for phrase in phrases:
        if groups and _length([*groups[-1], phrase], config, tokenize) <= MOST_TOKENS:
            groups[-1].append(phrase)
            continue
        taken = _length([phrase], config, tokenize)
        if taken > MOST_TOKENS:
            alone = len(tokenize(phrase))
            raise InputError(
                f'Expected at most {MOST_TOKENS - taken + alone} tokens, got {alone}: shorten "{phrase[:40]}…".'
            )
        groups.append([phrase])
    return [_prompt(group, config, tokenize) for group in groups]


def spoken(ids: Sequence[int], phrases: Sequence[str], tokenize: Tokenize) -> Prompt:
    """Those of `phrases` that stand, but for a leading article, in a prompt that somebody else made, of which only the
    token `ids` by position are known (-1 for none); its other words are the background."""
    nameless = {token for word in (*STOP_WORDS, *string.punctuation) for token in tokenize(word)[:1]}
    found: dict[str, tuple[int, ...]] = {}
    for phrase in phrases:
        wanted = list(itertools.dropwhile(nameless.__contains__, tokenize(phrase)))
        starts = [i for i in range(len(ids)) if wanted and list(ids[i : i + len(wanted)]) == wanted]
        tokens = [i for start in starts for i in range(start, start + len(wanted)) if ids[i] not in nameless]
        if tokens:
            found[phrase] = tuple(dict.fromkeys(tokens))
    taken = {token for tokens in found.values() for token in tokens}
    others = (i for i, token in enumerate(ids) if token >= 0 and token not in nameless and i not in taken)
    return Prompt("", tuple(found), tuple(found.values()), tuple((i,) for i in others))


def _length(phrases: Sequence[str], config: AttentionConfig, tokenize: Tokenize) -> int:
    return sum(len(tokenize(word.text)) for word in _words(phrases, config))


def _prompt(phrases: Sequence[str], config: AttentionConfig, tokenize: Tokenize) -> Prompt:
    words = list(_words(phrases, config))
    text = " ".join(word.text for word in words)
    of_phrases: list[list[int]] = [[] for _ in phrases]
    spare: list[list[int]] = [[] for _ in phrases]  # all tokens of a phrase, for one that is made of stop words alone
    background, at, ids = [], 1, []
    for word in words:
        tokens = tokenize(word.text)
        ids += tokens
        content = [at + i for i in _content(word.text, tokens, tokenize)]
        if word.phrase is not None:
            of_phrases[word.phrase] += content
            spare[word.phrase] += range(at, at + len(tokens))
        elif word.in_background and content:
            background.append(tuple(content))
        at += len(tokens)
    if ids != tokenize(text):
        raise HostError(f'Expected a tokenizer that splits at spaces, as CLIP\'s does, got another for "{text[:40]}…".')
    kept = tuple(tuple(content or every) for content, every in zip(of_phrases, spare, strict=True))
    return Prompt(text, tuple(phrases), kept, tuple(background))


def _words(phrases: Sequence[str], config: AttentionConfig) -> Iterator[_Word]:
    """The words of a prompt: opening, phrases, closing, background without the words that were asked for."""
    asked = {bare(word) for phrase in phrases for word in phrase.split()}
    background = [word for word in config.background if word not in asked]
    yield from map(_Word, config.opening.split())
    for i, phrase in enumerate(phrases):
        if i:
            yield from map(_Word, config.joiner.split())
        yield from (_Word(word, phrase=i) for word in phrase.split())
    if background:
        yield from (_Word(word, in_background=True) for word in config.closing.split())
    for i, word in enumerate(background):
        yield _Word(word if i == len(background) - 1 else f"{word},", in_background=True)


def bare(word: str) -> str:
    """A word in lower case, without the punctuation around it."""
    return word.strip(string.punctuation).lower()


def _content(word: str, tokens: Sequence[int], tokenize: Tokenize) -> range:
    """Which of a word's tokens name something: none of a stop word's, and no punctuation around it."""
    core = word.strip(string.punctuation)
    if not core or core.lower() in STOP_WORDS:
        return range(0)
    lead, _, trail = word.partition(core)
    before, inside, after = (tokenize(part) if part else [] for part in (lead, core, trail))
    if [*before, *inside, *after] != list(tokens):
        return range(len(tokens))
    return range(len(before), len(before) + len(inside))
