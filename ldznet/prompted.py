"""What a prompt asks to be seen, phrase by phrase: "mask everything I prompted". Imports the grammar of phrases alone.

Rules over words, no parser: a prompt is cut at commas, prepositions, conjunctions and verbs, and what names a medium,
a style, a camera, a light or praise is left away. benchmarks/prompt_phrases.py measures precision and recall.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from .phrases import ARTICLES, DASHES, ENDS, MARKUP, REST


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


EMBEDDING = re.compile(r"embedding:\S+|<[^<>]*>", re.IGNORECASE)
CUTS = re.compile(rf"[,;:|!?\n]|\.(?=\s|$)|\b(?:BREAK|AND)\b|(?<!\S)[{DASHES}]+(?=\s)")
MEDIA = """
art cartoon close-up closeup depiction drawing graphic illustration image mosaic painting photo photograph photography
picture portrait poster print render rendering scene screenshot shot sketch sticker view wallpaper
"""
MEDIUM = re.compile(rf"^.*?\b(?:{'|'.join(MEDIA.split())})\s+(?:of|showing|depicting)\s+", re.IGNORECASE)
STILL = re.compile(r"^.*?\bstill life\s+(?:with|of)\s+", re.IGNORECASE)
STYLES = _words(
    f"""{MEDIA} 3d abstract aesthetic aesthetics anime artstation baroque beautiful blur blurry bokeh brushstrokes cgi
    cinematic clipart color colors colour colours composition contrast deco depth details detailed deviantart dof
    dramatic engine engraving exposure focus fullbody grain hd hdr hyperrealistic illustrated impasto intricate
    isometric kodak lighting lineart lowres macro masterpiece matte minimal minimalist moody nouveau octane
    photorealistic pixel pixiv polaroid pov quality raw realistic resolution rococo score shadows sharp simple style
    styled stylized symmetrical symmetry trending trends uhd ukiyo-e unreal vibrant viewer vray watercolor
    watercolour woodcut"""
)
NUMBERED = re.compile(r"\d+(?:k|mm|fps)|f/?\d[\d.]*|score_\d\S*|.+ism|.+-style", re.IGNORECASE)
PHRASES_OF_STYLE = re.compile(
    r"(?:golden hour|low angle|high angle|wide angle|close up|full body|upper body|from above|award winning|"
    r"studio ghibli|ray tracing|safe|nsfw|solo)$",
    re.IGNORECASE,
)
NOWHERE = _words("background distance foreground front frame middle center centre camera viewer style shape")
TIMES = _words(
    """autumn dawn day daytime dusk evening fall midnight morning night noon spring summer sunrise sunset twilight
    winter"""
)
TIMED = _words("at by during in")  # before a time of the day or year
PREPOSITIONS = _words(
    """about above across after against along alongside amid among around at atop before behind below beneath beside
    besides between beyond by down during for from in inside into near off on onto opposite out outside over past
    through throughout to toward towards under underneath up upon via while with within"""
)
CONJUNCTIONS = _words(
    """and or but as like that which who whose where when then while plus is are was were has have having made worn lit
    seen"""
)
WITHOUT = _words("without no not")
OWNERS = _words(f"{' '.join(ARTICLES)} his her its their my your our this that these those some each every all both")
COMPOUND = re.compile(
    r"\b(?:in the (?:shape|style|form|middle|center|centre) of|in front of|on top of|on the (?:edge|side|left|right) of"
    r"|next to|close to|full of|made of|made out of|instead of|because of|out of|inside of|outside of)\b",
    re.IGNORECASE,
)
NOUNS_IN_ING = _words(
    """awning being building ceiling clothing dressing duckling dumpling earring evening icing king lightning morning
    nothing offspring painting railing ring seedling sibling sling something spring string swing thing viking wedding
    wing"""
)
PLAIN = _words(  # words after which one in -ing is an adjective: "a big glowing orb"
    """two three four five six seven eight nine ten several many big black blue bright brown dark giant golden green
    grey gray huge large little long old orange pink purple red short silver small tall tiny white yellow young"""
)


def phrases_of(prompt: str) -> list[str]:
    """The phrases of `prompt` in their order, each once, as they stand there but for a leading article.

    Weights, brackets, embeddings and LoRAs are no part of one; nothing is left of a prompt that names nothing.
    """
    found: dict[str, str] = {}
    for part in CUTS.split(_bare(prompt)):
        for phrase in _phrases_in(part):
            found.setdefault(phrase.lower(), phrase)
    return list(found.values())


def _bare(prompt: str) -> str:
    """Without markup, brackets and embeddings; lines stay apart."""
    text = EMBEDDING.sub(" ", prompt)
    for pattern, _ in MARKUP:
        text = pattern.sub(" ", text)
    return re.sub(r"\\?[()\[\]{}]", " ", text)


def _phrases_in(part: str) -> Iterator[str]:
    """Of what stands between two commas."""
    part = STILL.sub("", MEDIUM.sub("", " ".join(part.split())))
    if re.match(r"by (?!(?:a|an|the|his|her|its|their)\b)", part, re.IGNORECASE):
        return  # an artist
    words = COMPOUND.sub(" with ", part).split()
    piece: list[str] = []
    before = ""
    for i, word in enumerate([*words, "and"]):
        bare = word.strip(ENDS).lower()
        if _parts(bare, words, i):
            yield from _seen(piece, before)
            piece, before = [], bare
        elif bare:
            piece.append(word)


def _parts(bare: str, words: Sequence[str], at: int) -> bool:
    """Whether the word `bare`, which is words[at], stands between two phrases and belongs to neither."""
    if bare in PREPOSITIONS or bare in CONJUNCTIONS or bare in WITHOUT:
        return True
    after = words[at + 1].strip(ENDS).lower() if at + 1 < len(words) else ""
    if bare.endswith("ed") and after in PREPOSITIONS:
        return True
    if not bare.endswith("ing") or len(bare) < 5:
        return False
    if at and after in OWNERS:  # "building a sandcastle"
        return True
    if bare in NOUNS_IN_ING:
        return False
    if not after or after in OWNERS or after in PREPOSITIONS or after in CONJUNCTIONS:
        return True
    earlier = words[at - 1].strip(ENDS).lower() if at else ""
    adjective = not earlier or earlier in OWNERS or earlier in PLAIN or earlier.isdecimal() or earlier in PREPOSITIONS
    return not (adjective or earlier in CONJUNCTIONS)


def _seen(piece: Sequence[str], before: str) -> Iterator[str]:
    """The phrase that the words of `piece` are, which stands after the word `before`; nothing where it names nothing to
    be seen."""
    words = [word for word in piece if word.strip(ENDS)]
    while words and words[0].strip(ENDS).lower() in OWNERS:
        words = words[1:]
    phrase = " ".join(words).strip(ENDS)
    lowered = phrase.lower()
    bare = [word.strip(ENDS) for word in lowered.split()]
    if not bare or before in WITHOUT or lowered in NOWHERE or lowered in REST or PHRASES_OF_STYLE.match(lowered):
        return
    if any(word in STYLES or NUMBERED.fullmatch(word) for word in bare) or (before in TIMED and lowered in TIMES):
        return
    if bare[-1] == "light" and bare[-2:-1] not in (["street"], ["traffic"]):
        return
    yield phrase
