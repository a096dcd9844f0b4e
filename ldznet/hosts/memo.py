"""Results that are still good because they were made of the very same objects. Imports nothing of the library."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

KEPT = 4


class Memo:
    """The last `KEPT` results, by the objects (by identity) and the settings (by value) that they were made of.

    Objects are held weakly: a result goes when one of them does. Meant to lie on an object that a host owns.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[list[Any], Any, Any]] = []

    def get(self, objects: Sequence[Any], settings: Any, make: Callable[[], Any]) -> Any:
        """What `make` gives, or gave for the same `objects` (None stands for itself) and `settings`."""
        self._entries = [entry for entry in self._entries if all(_alive(ref) for ref in entry[0])]
        for refs, known, result in self._entries:
            if known == settings and len(refs) == len(objects) and all(map(_refers, refs, objects)):
                return result
        result = make()
        refs = [None if thing is None else weakref.ref(thing) for thing in objects]
        self._entries = [*self._entries, (refs, settings, result)][-KEPT:]
        return result


def _alive(ref: Any) -> bool:
    return ref is None or ref() is not None


def _refers(ref: Any, thing: Any) -> bool:
    return thing is None if ref is None else ref() is thing
