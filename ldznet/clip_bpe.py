"""CLIP's tokenizer: lower-case byte-level BPE, start and end token, padding with the end token to 77. Plain Python.

After openai/CLIP's simple_tokenizer (MIT), written anew on `re`. Serves the tiny vocabulary and CLIP's own.
"""

from __future__ import annotations

import functools
import html
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .errors import CheckpointError, InputError

START, END = "<|startoftext|>", "<|endoftext|>"
CONTEXT_LENGTH = 77
WORD_END = "</w>"
WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+", re.IGNORECASE)

Pair = tuple[str, str]


@functools.cache
def byte_symbols() -> tuple[str, ...]:
    """A printable character for each of the 256 bytes, GPT-2's and CLIP's."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = (chr(256 + i) for i in range(256))
    return tuple(chr(b) if b in printable else next(others) for b in range(256))


def vocabulary_order() -> list[str]:
    """The 512 symbols at the head of a CLIP vocabulary: printable bytes, the others, then all again as word ends."""
    symbols = sorted(byte_symbols())
    return symbols + [s + WORD_END for s in symbols]


class Tokenizer:
    """Text to the 77 token ids that CLIP's text encoder reads. `vocabulary` maps a symbol to its id."""

    def __init__(self, vocabulary: Mapping[str, int], merges: Sequence[Pair]) -> None:
        self.vocabulary = vocabulary
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.start, self.end = vocabulary[START], vocabulary[END]

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """From `vocab.json` and `merges.txt`, the files that every CLIP tokenizer folder holds."""
        vocab, merges = folder / "vocab.json", folder / "merges.txt"
        for path in (vocab, merges):
            if not path.is_file():
                raise CheckpointError(f"Expected a CLIP tokenizer with {path.name} in {folder}, found none.")
        lines = merges.read_text(encoding="utf-8").splitlines()
        pairs = [line.split() for line in lines if line.strip() and not line.startswith("#version")]
        return cls(json.loads(vocab.read_text(encoding="utf-8")), [(a, b) for a, b in pairs])

    def ids(self, text: str) -> list[int]:
        """Token ids of `text`, without start, end and padding."""
        text = " ".join(html.unescape(text).lower().split())
        symbols = byte_symbols()
        found = []
        for word in WORDS.findall(text):
            mapped = "".join(symbols[b] for b in word.encode("utf-8"))
            found += [self.vocabulary[symbol] for symbol in self._merge(mapped)]
        return found

    def encode(self, text: str) -> list[int]:
        """The 77 ids of `text`; raises InputError with the count when it has more than 75 tokens."""
        ids = self.ids(text)
        if len(ids) > CONTEXT_LENGTH - 2:
            raise InputError(
                f"Expected at most {CONTEXT_LENGTH - 2} tokens, got {len(ids)}: shorten \"{text[:40]}…\"."
            )
        ids = [self.start, *ids, self.end]
        return ids + [self.end] * (CONTEXT_LENGTH - len(ids))

    def _merge(self, word: str) -> list[str]:
        symbols = [*word[:-1], word[-1] + WORD_END]
        while len(symbols) > 1:
            pairs = list(zip(symbols, symbols[1:], strict=False))
            best = min(pairs, key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            symbols = merge_pair(symbols, best)
        return symbols


def merge_pair(symbols: Sequence[str], pair: Pair) -> list[str]:
    """`symbols` with every occurrence of `pair`, from the left, joined into one symbol."""
    merged, i = [], 0
    while i < len(symbols):
        joined = tuple(symbols[i : i + 2]) == pair
        merged.append("".join(pair) if joined else symbols[i])
        i += 2 if joined else 1
    return merged


def learn(words: Iterable[str]) -> tuple[dict[str, int], list[Pair]]:
    """Vocabulary and merges under which each of `words` is one token (Sennrich et al. 2016, run to the end)."""
    symbols = byte_symbols()
    mapped = ("".join(symbols[b] for b in w.encode("utf-8")) for w in sorted(set(words)))
    corpus = [[*w[:-1], w[-1] + WORD_END] for w in mapped]
    merges: list[Pair] = []
    while any(len(word) > 1 for word in corpus):
        counts = Counter(pair for word in corpus for pair in zip(word, word[1:], strict=False))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        corpus = [merge_pair(word, best) for word in corpus]
    entries = [*vocabulary_order(), *("".join(pair) for pair in merges), START, END]
    return {symbol: i for i, symbol in enumerate(dict.fromkeys(entries))}, merges
