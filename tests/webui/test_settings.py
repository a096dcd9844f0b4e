"""The section's settings: by position, by name, in infotext and back; and the file that is loaded by itself."""

from __future__ import annotations

import ast
import dataclasses
import sys
from pathlib import Path

import pytest

from ldznet import shaping
from ldznet.webui import settings as module
from ldznet.webui.settings import CUT, DEFAULTS, EACH, NAMES, STOP, Settings, key_of, restored

CHANGED = Settings(
    True,
    "a dog\nthe sky - clouds",
    "own.safetensors",
    0.25,
    -3,
    7,
    True,
    40,
    "PAMR",
    True,
    EACH,
    CUT,
    STOP,
    "the hat => a red hat, felt\n# no\nthe face",
    0.75,
    512,
    30,
    64,
    8,
    True,
    True,
)


def test_by_position_and_by_name() -> None:
    assert Settings.of(dataclasses.astuple(CHANGED)) == CHANGED
    assert Settings.of([dataclasses.asdict(CHANGED), "what", "follows"]) == CHANGED
    assert Settings.of([{"phrases": "a dog"}]) == Settings(enabled=True, phrases="a dog")
    assert Settings.of([True, "a dog"]) == Settings(enabled=True, phrases="a dog")
    assert Settings.of([]) == Settings()


def test_numbers_of_the_page_are_taken_for_what_they_are() -> None:
    given = Settings.of([{"grow": 4.0, "threshold": 1}])
    assert (given.grow, given.threshold) == (4, 1.0)
    assert (type(given.grow), type(given.threshold)) == (int, float)


WRONG = {
    "unknown": ({"thresh": 1}, "thresh"),
    "kind": ({"phrases": 3}, "str as phrases"),
    "a number for yes": ({"invert": 1}, "bool as invert"),
    "yes for a number": ({"grow": True}, "int as grow"),
    "half a pixel": ({"grow": 0.5}, "int as grow"),
    "range": ({"threshold": 1.5}, "0 to 1 as threshold, got 1.5"),
    "NaN": ({"threshold": float("nan")}, "0 to 1 as threshold"),
    "choice": ({"refine": "magic"}, "guided filter"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_makes_no_sense_is_named(case: str) -> None:
    given, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        Settings.of([given])


def test_off_is_off() -> None:
    assert CHANGED.is_on
    assert not Settings(enabled=True, phrases=" \n# a comment\n").is_on
    assert not Settings(phrases="a dog").is_on
    assert CHANGED.lines == ["a dog", "the sky - clouds"]
    assert CHANGED.orders == [("the hat", "a red hat, felt"), ("the face", "")]
    assert Settings(enabled=True, details="the face").is_on


def test_infotext_gives_every_setting_back() -> None:
    written = {key: str(value) for key, value in CHANGED.infotext().items()}
    assert {name: restored(name, written) for name in NAMES} == dataclasses.asdict(CHANGED)
    few = {key: str(value) for key, value in Settings(True, "a dog").infotext().items()}
    assert few == {"LDZNet phrases": "a dog"}
    assert {name: restored(name, few) for name in NAMES} == {**DEFAULTS, "enabled": True, "phrases": "a dog"}


def test_infotext_of_details_alone_gives_them_back() -> None:
    written = Settings(True, details="the face => a smile").infotext()
    assert written == {"LDZNet details": "the face => a smile"}
    assert restored("details", written) == "the face => a smile"
    assert restored("enabled", written) is True
    assert restored("phrases", written) == ""


def test_infotext_of_others_changes_nothing() -> None:
    assert {restored(name, {"Steps": "20"}) for name in NAMES} == {None}
    broken = {key_of("phrases"): "a dog", key_of("threshold"): "much", key_of("invert"): "maybe"}
    assert restored("threshold", broken) is None
    assert restored("invert", broken) is None
    assert Settings().infotext() == {}


def test_it_imports_nothing_but_the_standard_library() -> None:
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert node.module in sys.stdlib_module_names | {"collections.abc"}
        if isinstance(node, ast.Import):
            assert all(alias.name in sys.stdlib_module_names for alias in node.names)


def test_ways_to_refine_are_the_library_s() -> None:
    assert module.REFINES == shaping.REFINES


def test_some_fields_of_the_arguments_are_changed() -> None:
    given = list(dataclasses.astuple(CHANGED))
    assert Settings.of(module.changed(given, {"grow": 9})) == dataclasses.replace(CHANGED, grow=9)
    assert Settings.of(module.changed([], {"phrases": "a dog"})) == Settings(enabled=True, phrases="a dog")
    assert Settings.of(module.changed([False, "a dog"], {"grow": 9})) == Settings(phrases="a dog", grow=9)
    assert module.changed([{"phrases": "a dog"}, 1], {"grow": 9}) == [{"phrases": "a dog", "grow": 9}, 1]
    assert module.changed([True, "a dog"], {}) == [True, "a dog"]
