"""The tiny world's words: phrases, captions, absent phrases and distractors.

A small lowercase vocabulary with commas as its only punctuation; whatever is said of a scene is said here. Imports
the names of categories and surfaces, and the scene's type for annotations only; meant for `scenes`, training and
evaluation.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .shapes import CATEGORIES
from .surfaces import COLOURS, PATTERNS, STUFF

if TYPE_CHECKING:
    from .scenes import Scene, Thing

PREFIXES = {
    "photo": "a photo of",
    "cartoon": "a cartoon of",
    "lines": "a line drawing of",
    "painting": "a painting of",
    "mosaic": "a mosaic of",
}
OVERHEAD = ("sky", "night")
VOCABULARY: frozenset[str] = frozenset(
    [
        *CATEGORIES,
        *COLOURS,
        *PATTERNS[1:],
        *STUFF,
        *" ".join(PREFIXES.values()).split(),
        "a",
        "an",
        "and",
        "on",
        "under",
        "by",
        "with",
        ",",
    ]
)


def with_article(words: str) -> str:
    """`"orange cat"` to `"an orange cat"`."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def phrases_of(thing: "Thing") -> tuple[str, ...]:
    """What one thing answers to, from the broadest to the narrowest: a star, a red star, a striped red star."""
    names = [thing.category, f"{thing.colour} {thing.category}"]
    if thing.pattern != "plain":
        names.append(f"{thing.pattern} {names[-1]}")
    return tuple(with_article(name) for name in names)


def thing_phrases(things: Iterable["Thing"]) -> tuple[str, ...]:
    """All phrases of all things, each once, in order."""
    return tuple(dict.fromkeys(phrase for thing in things for phrase in phrases_of(thing)))


def matching(things: Iterable["Thing"], phrase: str) -> list["Thing"]:
    """The things that answer to a phrase."""
    return [thing for thing in things if phrase in phrases_of(thing)]


def distractor(scene: "Scene", phrase: str) -> bool:
    """True if a thing that the phrase does not mean shares the category or the colour of one that it means.

    False for stuff and for absent phrases."""
    meant = matching(scene.things, phrase)
    others = [thing for thing in scene.things if phrase not in phrases_of(thing)]
    return any(a.category == b.category or a.colour == b.colour for a in meant for b in others)


def _hard_absences(scene: "Scene") -> list[str]:
    """Colour and category pairs that are absent though one half of each is present."""
    pairs = {(thing.colour, thing.category) for thing in scene.things}
    colours, categories = {colour for colour, _ in pairs}, {category for _, category in pairs}
    return [
        with_article(f"{colour} {category}")
        for colour in COLOURS
        for category in CATEGORIES
        if (colour, category) not in pairs and (colour in colours or category in categories)
    ]


def _plain_absences(scene: "Scene") -> list[str]:
    """Categories and stuff that are nowhere in the scene."""
    names = [*map(with_article, CATEGORIES), *STUFF]
    return [name for name in names if name not in scene.masks]


def absent_phrases(scene: "Scene", rng: np.random.Generator, count: int) -> list[str]:
    """`count` phrases whose mask would be empty: half near misses (right colour or right category), half of things
    or stuff that the scene lacks altogether. An odd one falls to either half; at most 24 phrases."""
    if not 0 <= count <= 24:
        raise ValueError(f"Expected a count of absent phrases between 0 and 24, got {count}. Ask for fewer.")
    plain = _plain_absences(scene)
    easy = min((count + int(rng.integers(2))) // 2, len(plain))
    hard = _hard_absences(scene)
    chosen = [*rng.choice(hard, count - easy, replace=False), *rng.choice(plain, easy, replace=False)]
    return [str(chosen[i]) for i in rng.permutation(count)]


def _join(parts: Sequence[str]) -> str:
    """`[a, b, c]` to `"a, b and c"`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]


def _mention(thing: "Thing", rng: np.random.Generator) -> str:
    """A thing with its colour (dropped in 15 %) and pattern (dropped in half)."""
    words = [thing.category]
    if rng.random() > 0.15:
        words.insert(0, thing.colour)
    if thing.pattern != "plain" and rng.random() < 0.5:
        words.insert(0, thing.pattern)
    return with_article(" ".join(words))


def _setting(stuff: Sequence[str], rng: np.random.Generator) -> str:
    """Stuff, upper layer first, as a tail: "on grass under sky", "with sky and grass"."""
    if rng.random() < 0.2:
        return "with " + _join(list(stuff))
    parts = [("under " if name in OVERHEAD else "by " if name == "brick" else "on ") + name for name in stuff[::-1]]
    if len(parts) > 1 and rng.random() < 0.2:
        parts = [parts[int(rng.integers(len(parts)))]]
    return " ".join(parts)


def captions(scene: "Scene", rng: np.random.Generator) -> str:
    """A fresh caption of a scene from the grammar: [a photo of] things [setting]."""
    things = list(scene.things)
    if len(things) > 1 and rng.random() < 0.15:
        things = things[: int(rng.integers(1, len(things)))]
    parts = [PREFIXES[scene.domain]] if rng.random() < 2 / 3 else []
    order = rng.permutation(len(things))
    parts.append(_join([_mention(things[i], rng) for i in order]))
    stuff = [phrase for phrase, kind in scene.kinds.items() if kind == "stuff"]
    if stuff and rng.random() < 0.8:
        parts.append(_setting(stuff, rng))
    return " ".join(parts)
