"""Phrases that a picture does not show, for data that names none: near misses and far ones in turn.

A near miss shares a word with what the picture's phrases say and has one that none of them says; a far one shares none.
Nothing checks that the picture does not show it all the same: data that names what it leaves out is better.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from ..phrases import STOP_WORDS

TRIES = 8  # to find one phrase


def with_absent(records: Sequence[Mapping[str, Any]], count: int = 8, seed: int = 0) -> list[dict[str, Any]]:
    """A cache's `records`; those with phrases and without absent ones have up to `count` of other records' phrases
    for that, the same for the same seed."""
    words = {phrase: _meaning(phrase) for record in records for phrase in record["phrases"]}
    phrases = sorted(words)
    holding: dict[str, list[str]] = {}
    for phrase in phrases:
        for word in words[phrase]:
            holding.setdefault(word, []).append(phrase)
    draw = random.Random(seed)
    found = []
    for record in records:
        shown = frozenset[str]().union(*(words[phrase] for phrase in record["phrases"]))
        absent = record["absent"] or _misses(words, phrases, holding, shown, count, draw)
        found.append({**record, "absent": list(absent)})
    return found


def _misses(
    words: Mapping[str, frozenset[str]],
    phrases: Sequence[str],
    holding: Mapping[str, Sequence[str]],
    shown: frozenset[str],
    count: int,
    draw: random.Random,
) -> Sequence[str]:
    chosen: dict[str, None] = {}
    own = sorted(shown)
    for number in range(count * TRIES if own else 0):
        near = number % 2 == 0
        phrase = draw.choice(holding[draw.choice(own)] if near else phrases)
        if words[phrase] - shown and near == bool(words[phrase] & shown):
            chosen[phrase] = None
        if len(chosen) == count:
            break
    return list(chosen)


def _meaning(phrase: str) -> frozenset[str]:
    """The words that name something."""
    return frozenset(phrase.lower().split()) - STOP_WORDS
