"""The memo recalls by identity and setting, and forgets with its objects."""

from __future__ import annotations

from typing import Any

from ldznet.hosts.memo import KEPT, Memo


class Thing:
    """Something that can be referred to weakly."""


def test_the_same_objects_and_settings_are_made_once() -> None:
    memo, one, two, made = Memo(), Thing(), Thing(), []

    def make() -> Any:
        made.append(1)
        return len(made)

    assert memo.get([one, None], (0.5,), make) == 1
    assert memo.get([one, None], (0.5,), make) == 1
    assert memo.get([two, None], (0.5,), make) == 2
    assert memo.get([one, two], (0.5,), make) == 3
    assert memo.get([one, None], (0.4,), make) == 4
    assert memo.get([one, None], (0.5,), make) == 1


def test_results_go_with_their_objects_and_the_oldest_first() -> None:
    memo, one = Memo(), Thing()
    memo.get([one], 0, Thing)
    del one
    kept = Thing()
    first = memo.get([kept], -1, Thing)
    for i in range(KEPT - 1):
        memo.get([kept], i, Thing)
    assert memo.get([kept], -1, Thing) is first
    memo.get([kept], KEPT, Thing)
    assert memo.get([kept], -1, Thing) is not first
    assert len(memo._entries) == KEPT
