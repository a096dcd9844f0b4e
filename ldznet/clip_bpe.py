"""CLIP's tokenizer: lower-case byte-level BPE, start and end token, padding to 77. Plain Python.

After openai/CLIP's simple_tokenizer (MIT), written anew on `re`. Serves the tiny vocabulary and CLIP's own. It splits
as transformers' CLIPTokenizer does, with three known differences: characters that this Python's Unicode tables do not
know yet, the separators U+001C to U+001F (spaces here), and "<|endoftext|>" in a text (plain characters here).
"""

from __future__ import annotations

import functools
import gzip
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from .errors import CheckpointError, InputError, cause

START, END = "<|startoftext|>", "<|endoftext|>"
CONTEXT_LENGTH = 77
WORD_END = "</w>"
WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+")

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


def vocabulary_of(merges: Iterable[Pair]) -> dict[str, int]:
    """The ids that CLIP's training gave: the 512 symbols, what each merge makes, start, end."""
    entries = [*vocabulary_order(), *("".join(pair) for pair in merges), START, END]
    return {symbol: i for i, symbol in enumerate(dict.fromkeys(entries))}


def split_words(text: str) -> list[str]:
    """`text` as CLIP's pattern cuts it: contractions, runs of letters, single numerals, runs of anything else.

    `re` has no classes of Unicode categories: its letters take in numerals such as "²", "½" and "Ⅷ", cut out here.
    """
    text = unicodedata.normalize("NFC", text).replace("Σ", "σ").lower()  # or Python makes a final sigma of it
    words: list[str] = []
    for word in WORDS.findall(text):
        words += [word] if word.isascii() else _cut_at_numerals(word)
    return words


def _cut_at_numerals(word: str) -> list[str]:
    spaced = (f" {c} " if unicodedata.category(c) in ("Nl", "No") else c for c in word)
    return "".join(spaced).split()


class Tokenizer:
    """Text to the 77 token ids that CLIP's text encoder reads. `vocabulary` maps a symbol to its id.

    `pad` fills up the 77: CLIP's end token, or "!" (id 0), as OpenCLIP's models have it.
    """

    def __init__(self, vocabulary: Mapping[str, int], merges: Sequence[Pair], pad: str = END) -> None:
        self.vocabulary = vocabulary
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.start, self.end, self.pad = vocabulary[START], vocabulary[END], vocabulary[pad]

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """From a CLIP tokenizer's folder: `vocab.json` and `merges.txt`, or the `tokenizer.json` that holds both.

        Raises CheckpointError for one that lacks them, or whose files hold something else.
        """
        try:
            return cls._load(folder)
        except (LookupError, TypeError, ValueError, AttributeError, OSError, RecursionError) as error:
            raise CheckpointError(
                f"Expected a CLIP tokenizer in {folder}, got damaged files ({type(error).__name__}: {cause(error)}). "
                "Download the folder again."
            ) from error

    @classmethod
    def _load(cls, folder: Path) -> Tokenizer:
        pad = _pad_of(folder)
        vocab, merges, both = (folder / name for name in ("vocab.json", "merges.txt", "tokenizer.json"))
        if vocab.is_file() and merges.is_file():
            return cls(json.loads(vocab.read_text(encoding="utf-8")), read_merges(merges), pad)
        if not both.is_file():
            raise CheckpointError(f"Expected vocab.json and merges.txt, or tokenizer.json, in {folder}, found neither.")
        model = json.loads(both.read_text(encoding="utf-8"))["model"]
        return cls(model["vocab"], [_pair(merge) for merge in model["merges"]], pad)

    @classmethod
    def from_merges(cls, path: Path, pad: str = END) -> Tokenizer:
        """From a list of merges alone, one a line, plain or gzip-compressed: the vocabulary follows from it."""
        merges = read_merges(path)
        return cls(vocabulary_of(merges), merges, pad)

    def ids(self, text: str) -> list[int]:
        """Token ids of `text`, without start, end and padding."""
        symbols = byte_symbols()
        found = []
        for word in split_words(text):
            mapped = "".join(symbols[b] for b in word.encode("utf-8", "replace"))
            found += [self.vocabulary[symbol] for symbol in self._merge(mapped)]
        return found

    def encode(self, text: str) -> list[int]:
        """The 77 ids of `text`; raises InputError with the count when it has more than 75 tokens."""
        ids = self.ids(text)
        require_length(text, len(ids))
        ids = [self.start, *ids, self.end]
        return ids + [self.pad] * (CONTEXT_LENGTH - len(ids))

    def _merge(self, word: str) -> list[str]:
        symbols = [*word[:-1], word[-1] + WORD_END]
        while len(symbols) > 1:
            pairs = list(pairwise(symbols))
            best = min(pairs, key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            symbols = merge_pair(symbols, best)
        return symbols


def _pad_of(folder: Path) -> str:
    """The padding that a tokenizer's folder names, bare or as an object; the end token where none does."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        file = folder / name
        token = json.loads(file.read_text(encoding="utf-8")).get("pad_token") if file.is_file() else None
        if token is not None:
            return token["content"] if isinstance(token, dict) else token
    return END


def require_length(text: str, tokens: int) -> None:
    """Raises InputError for a `text` of more tokens than fit between the start and the end token."""
    if tokens > CONTEXT_LENGTH - 2:
        raise InputError(f'Expected at most {CONTEXT_LENGTH - 2} tokens, got {tokens}: shorten "{text[:40]}…".')


def read_merges(path: Path) -> list[Pair]:
    """Pairs of a file of merges, in their order; a "#version" line at its head is left out."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    return [_pair(line) for line in text.splitlines() if line.strip() and not line.startswith("#version")]


def _pair(merge: str | Sequence[str]) -> Pair:
    first, second = merge.split() if isinstance(merge, str) else merge
    return first, second


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
        counts = Counter(pair for word in corpus for pair in pairwise(word))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        corpus = [merge_pair(word, best) for word in corpus]
    return vocabulary_of(merges), merges
