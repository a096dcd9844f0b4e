"""Text fields of nodes, line by line."""

from __future__ import annotations

from ..ldznet.errors import InputError
from ..ldznet.phrases import read, same
from ._boundary import socket

ARROW = "=>"


def lines_of(text: str) -> list[str]:
    """The lines of `text` without blank ones and # comments, in order."""
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def read_lines(text: str, name: str = "text") -> list[str]:
    """As `lines_of`; raises InputError where there is none."""
    lines = lines_of(text)
    if not lines:
        raise InputError(f"Expected at least one line, got none. Write one phrase a line. (socket: {name})")
    return lines


def read_phrases(text: str) -> list[str]:
    """Phrases, one a line; raises InputError for one that names nothing, such as "a dog - "."""
    lines = read_lines(text)
    with socket("text"):
        read(lines)
    return lines


def read_regions(text: str, name: str = "regions") -> list[tuple[str, str]]:
    """(phrase, prompt) of lines "phrase => prompt"."""
    pairs = []
    for line in read_lines(text, name):
        phrase, arrow, prompt = (part.strip() for part in line.partition(ARROW))
        if not (phrase and arrow and prompt):
            raise InputError(f'Expected lines "phrase => prompt", got "{line}". (socket: {name})')
        pairs.append((phrase, prompt))
    return pairs


def pick(wanted: str, phrases: tuple[str, ...], name: str = "phrases") -> list[int]:
    """Indices into `phrases` of lines that name them, or give their number from 1; all of them for an empty text."""
    lines = lines_of(wanted)
    if not lines:
        return list(range(len(phrases)))
    found = []
    for line in lines:
        place = next((i for i, phrase in enumerate(phrases) if same(phrase, line)), None)
        if place is not None:
            found.append(place)
        elif line.isdecimal() and 1 <= int(line) <= len(phrases):
            found.append(int(line) - 1)
        else:
            known = ", ".join(f'{i + 1} "{phrase}"' for i, phrase in enumerate(phrases))
            raise InputError(f'Expected phrases of this segmentation ({known}), got "{line}". (socket: {name})')
    return found
