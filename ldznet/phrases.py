"""What a user types, made ready for the text encoder: what is part of a phrase and what is not. Imports errors alone.

The grammar, one phrase a line (docs/phrases.md): `a - b` leaves b out of a, `a | b` is either, `everything - a` the
inverse, `background` what no other phrase of the same request covers. Weights, brackets, quotes and closing
punctuation are no part of a phrase; `hints` say what was left away.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .errors import InputError, shown

ARTICLES = ("a", "an", "the")
NAMELESS = """
a an and another any are as at by each every for from his her in into is it its my near next no not of on one onto or
other our over some that the their them there these this those to under upon with without your
"""
STOP_WORDS = frozenset(NAMELESS.split())  # they name nothing to be seen
EVERYTHING = "everything"
BACKGROUND = "background"
REST = (BACKGROUND, "everything else", "rest")  # all of them mean `BACKGROUND`, with or without an article

DASHES = "\\-\u2010\u2011\u2012\u2013\u2014\u2015\u2212"
MINUS = re.compile(rf"(?<!\S)[{DASHES}]+|\u2212")  # with a space before it; the mathematical sign anywhere
EXCEPT = re.compile(r"^(?:everything|all)(?: else)? (?:but|except for|except|without|apart from) ", re.IGNORECASE)
OPENING, CLOSING = "([{", ")]}"
ESCAPED = {f"\\{bracket}": chr(0xE000 + i) for i, bracket in enumerate("()[]{}")}  # private characters, for a while
LITERAL = {ord(private): bracket[1] for bracket, private in ESCAPED.items()}
NO_WEIGHTS = "weights do nothing here"
NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)"
MARKUP = (  # what other tools read, and why it is left away
    (re.compile(r"<(?:lora|lyco|lycoris|hypernet):[^<>]*>", re.IGNORECASE), "a LoRA acts where the model loads it"),
    (re.compile(rf":\s*[-+]?{NUMBER}\s*(?=[)\]}}])"), NO_WEIGHTS),  # (cat:1.3), A1111 and ComfyUI
    (re.compile(rf"(?<=[)\]}}])(?:\++|-+|{NUMBER})(?=$|[\s)\]}}])"), NO_WEIGHTS),  # (cat)++, (cat)1.3, compel
    (re.compile(r"(?<=\w)\++(?=$|\s)"), NO_WEIGHTS),  # cat++, compel
    (re.compile(rf"(?<![\d:]):\s*{NUMBER}(?=$|\s*\|)"), "counts do nothing here"),  # cat:3, ComfyUI's SAM3
)
NO_BRACKETS = "brackets do nothing here"
UNSEEN = dict.fromkeys(map(ord, "\u00ad\u200b\u200e\u200f\u2060\ufeff"))  # soft hyphen, widthless space, direction
STRAIGHT = str.maketrans("‘’‛“”„‟", '\'\'\'""""')  # as CLIP's own cleaning writes quotes
ENDS = " .,;:!?…·*_~+`´'\"«»‹›‘’“”¿¡。、，．！？：；،؛؟।「」『』〈〉《》" + DASHES.replace("\\", "")


@dataclass(frozen=True)
class Phrase:
    """What to find, and what to leave out of it.

    `text` is what was typed. `wanted` holds one term, or alternatives; none for "everything" and "background", which
    `rest` tells apart. `hints` are sentences on what was read in another way than a user may think.
    """

    text: str
    wanted: tuple[str, ...]
    unwanted: tuple[str, ...] = ()
    rest: bool = False
    hints: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Phrase:
        """ "the dog - the collar - the tongue": the first part is wanted. Raises InputError where a part is empty or
        names nothing, and where nothing can be left."""
        if not isinstance(text, str):
            raise InputError(f"Expected a phrase as a string, got {type(text).__name__}. Write what you want to find.")
        plain, got = _spaced(text), f"got {_quoted(text)}"
        bare, reasons = _without_markup(plain, got)
        first, *others = MINUS.split(EXCEPT.sub(f"{EVERYTHING} - ", bare))
        wanted, rest = _wanted(first, got)
        unwanted = tuple(term for part in others for term in _terms(part, got))
        phrase = cls(text, wanted, unwanted, rest)
        _require_something(phrase, got)
        return cls(text, wanted, unwanted, rest, tuple(_hints(phrase, plain, reasons)))

    @property
    def meaning(self) -> str:
        """The phrase as it is read, without what is no part of it."""
        head = " | ".join(self.wanted) or (BACKGROUND if self.rest else EVERYTHING)
        return " - ".join([head, *self.unwanted])


def read(texts: Iterable[str]) -> list[Phrase]:
    """The phrases of one request. Raises InputError as `Phrase.parse` does, and for "background" beside no other."""
    phrases = [Phrase.parse(text) for text in texts]
    for phrase in phrases:
        if phrase.rest and not phrase.unwanted and all(other.rest for other in phrases):
            raise InputError(
                f"Expected other phrases beside {_quoted(phrase.text)}, which is what they leave, got none. Write what "
                f'stands before the background, one phrase a line, or "{EVERYTHING} - the dog".'
            )
    return phrases


def hints_of(texts: Iterable[str]) -> tuple[str, ...]:
    """What to tell the user of how the phrases of a request were read; nothing where they were read as typed."""
    return tuple(hint for phrase in read(texts) for hint in phrase.hints)


def same(one: str, other: str) -> bool:
    """Whether two texts are read as the same phrase, whatever brackets and points they are typed with."""
    return one == other or _meaning_of(one) == _meaning_of(other)


def terms_of(phrases: Sequence[Phrase]) -> list[str]:
    """All that has to be found to make the masks of `phrases`, each once, in order."""
    return list(dict.fromkeys(term for phrase in phrases for term in (*phrase.wanted, *phrase.unwanted)))


def fill(template: str, phrase: str) -> str:
    """`phrase` in `template`; its leading article is dropped where the template brings one ("a photo of the {}.")."""
    before = template.partition("{}")[0].split()
    first, _, rest = phrase.partition(" ")
    if before and before[-1] in (*ARTICLES, "one") and first.lower() in ARTICLES and rest:
        phrase = rest
    return template.replace("{}", phrase)


def _meaning_of(text: str) -> str:
    """In lower case; of a text that is no phrase, the text itself."""
    try:
        return Phrase.parse(text).meaning.lower()
    except InputError:
        return text


def _spaced(text: str) -> str:
    """With single plain spaces, straight quotes, and nothing that cannot be seen; escaped brackets as private signs."""
    text = " ".join(text.translate(UNSEEN).translate(STRAIGHT).split())
    for bracket, private in ESCAPED.items():
        text = text.replace(bracket, private)
    return text


def _without_markup(text: str, got: str) -> tuple[str, list[str]]:
    """`text` without weights, brackets and LoRAs, and why each kind was left away."""
    reasons = []
    for pattern, reason in MARKUP:
        text, count = pattern.subn("", text)
        if count and reason not in reasons:
            reasons.append(reason)
    _require_no_inner_minus(text, got)
    if not reasons and any(bracket in text for bracket in OPENING + CLOSING):
        reasons.append(NO_BRACKETS)
    bare = " ".join(re.sub(rf"[{re.escape(OPENING + CLOSING)}]", " ", text).split())
    return bare, reasons


def _require_no_inner_minus(text: str, got: str) -> None:
    """Raises InputError for a minus in brackets that are not around all of `text`."""
    depths, depth = [], 0
    for character in text:
        depth += (character in OPENING) - (character in CLOSING)
        depths.append(depth)
    outermost = min((d for d, c in zip(depths, text, strict=True) if c not in f"{OPENING}{CLOSING} "), default=0)
    if any(depths[match.start()] > outermost for match in MINUS.finditer(text)):
        raise InputError(f'Expected no minus inside of brackets, {got}. Write it without: "a - b - c" leaves out both.')


def _wanted(part: str, got: str) -> tuple[tuple[str, ...], bool]:
    """The alternatives of the first part; none, and whether the background is meant, where that or everything is."""
    core = _core(_clean(part))
    if core == EVERYTHING or core in REST:
        return (), core != EVERYTHING
    return _terms(part, got), False


def _terms(part: str, got: str) -> tuple[str, ...]:
    """The terms of a part, "|" between them. Raises InputError that says what was `got`."""
    terms = tuple(_clean(term) for term in part.split("|"))
    for term in terms:
        _require_name(term, got)
    return tuple(dict.fromkeys(terms))


def _clean(term: str) -> str:
    """Without quotes and punctuation at the ends; what was escaped is a bracket again."""
    return term.strip(ENDS).translate(LITERAL)


def _core(term: str) -> str:
    """In lower case and without its leading article, to compare."""
    first, _, rest = term.lower().partition(" ")
    return rest if first in ARTICLES and rest else term.lower()


def _require_name(term: str, got: str) -> None:
    """Raises InputError for a term that names nothing to be seen, or what can only stand before a minus."""
    if not any(unicodedata.category(c)[0] in "LN" or unicodedata.category(c) == "So" for c in term):
        raise InputError(
            f'Expected a phrase such as "the dog", or "the dog - the collar" with words on both sides, {got}. '
            f'For all but something write "{EVERYTHING} - the dog".'
        )
    if all(word.strip(ENDS) in STOP_WORDS for word in term.lower().split()):
        raise InputError(
            f"Expected a phrase that names something, {got}: {_quoted(term)} alone names nothing. Write the thing "
            'too, as in "the dog".'
        )
    if _core(term) == EVERYTHING or _core(term) in REST:
        raise InputError(f'Expected "{_core(term)}" alone before a minus, as in "{EVERYTHING} - the dog", {got}.')


def _require_something(phrase: Phrase, got: str) -> None:
    """Raises InputError where nothing can be left, or where "everything" has nothing left out of it."""
    if not (phrase.wanted or phrase.unwanted or phrase.rest):
        raise InputError(
            f'Expected what to leave out, as in "{EVERYTHING} - the dog", {got}. For several things, write '
            "one phrase a line."
        )
    unwanted = {_core(term) for term in phrase.unwanted}
    if phrase.wanted and unwanted.issuperset(map(_core, phrase.wanted)):
        raise InputError(f"Expected a phrase that leaves something, {got}, which leaves out all that it names.")


def _hints(phrase: Phrase, plain: str, reasons: Sequence[str]) -> Iterable[str]:
    """Sentences on what was left away, and on what other tools read in another way."""
    spaced = re.sub(r"\s*\|\s*", " | ", " - ".join(part.strip() for part in MINUS.split(plain))).translate(LITERAL)
    if reasons or (phrase.wanted and phrase.meaning != spaced):
        because = f" ({', '.join(reasons)})" if reasons else ""
        yield f"{_quoted(phrase.text)} is read as {_quoted(phrase.meaning)}{because}"
    for term in (*phrase.wanted, *phrase.unwanted):
        if re.search(r"[,;、，]|\.\s", term):
            yield f'{_quoted(term)} is one phrase: for several write one a line, or "a dog | a cat" for either'
        if re.match(r"(?:not|no|without)\s", term, re.IGNORECASE):
            yield f'{_quoted(term)} is read as words: to leave something out, write "{EVERYTHING} - the dog"'
        if re.search(r"\w[\u2013\u2014]\w", term):
            yield f'{_quoted(term)} is one phrase: a minus has a space before it, as in "the dog - the collar"'


def _quoted(text: str) -> str:
    """In quotes that it does not hold itself, fit for a message."""
    line = shown(" ".join(text.split()))
    return f"'{line}'" if '"' in line else f'"{line}"'
