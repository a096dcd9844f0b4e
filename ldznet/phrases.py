"""What a user types, made ready for the text encoder: "a - b", articles, templates. Imports errors alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .errors import InputError

ARTICLES = ("a", "an", "the")
MINUS = " - "


class Phrase(NamedTuple):
    """What to find, and what to leave out of it."""

    wanted: str
    unwanted: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Phrase:
        """ "the dog - the collar - the tongue": the first part is wanted. Raises InputError where a part is empty."""
        if not isinstance(text, str):
            raise InputError(f"Expected a phrase as a string, got {type(text).__name__}. Write what you want to find.")
        wanted, *unwanted = (part.strip() for part in text.split(MINUS))
        if not wanted or not all(unwanted):
            raise InputError(f'Expected a phrase such as "the dog" or "the dog - the collar", got "{text.strip()}".')
        return cls(wanted, tuple(unwanted))


def terms_of(phrases: Sequence[Phrase]) -> list[str]:
    """All that has to be found to make the masks of `phrases`, each once, in order."""
    return list(dict.fromkeys(term for phrase in phrases for term in (phrase.wanted, *phrase.unwanted)))


def fill(template: str, phrase: str) -> str:
    """`phrase` in `template`; its leading article is dropped where the template brings one ("a photo of the {}.")."""
    before = template.partition("{}")[0].split()
    first, _, rest = phrase.partition(" ")
    if before and before[-1] in (*ARTICLES, "one") and first.lower() in ARTICLES and rest:
        phrase = rest
    return template.replace("{}", phrase)
