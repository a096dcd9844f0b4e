"""What the section asks, by name: for its components, `alwayson_scripts` and infotext. Imports nothing of the library.

The interface loads this file by itself, so that a section that is switched off imports no more than this.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

TITLE = "LD-ZNet: mask by words"
ATTENTION, TINY = "attention (no download)", "tiny (embedded)"
WITHOUT_FILE = {ATTENTION: "attention", TINY: "tiny"}  # what a list shows, and what `load_head` calls it
REFINES = ("none", "guided filter", "PAMR")
TOGETHER, EACH = "all phrases together", "one pass for each phrase"
UNITE, CUT, REPLACE = "united with it", "cut by it", "replaced by it"
LEAVE, STOP = "leave the picture as it is", "stop"
PREFIX = "LDZNet "  # of the keys in infotext
RESULT = PREFIX + "result"

CHOICES = {"refine": REFINES, "passes": (TOGETHER, EACH), "drawn": (UNITE, CUT, REPLACE), "missing": (LEAVE, STOP)}
RANGES = {
    "threshold": (0, 1),
    "grow": (-512, 512),
    "feather": (0, 512),
    "drop_specks": (0, 2**20),
    "denoise": (0, 1),
    "size": (0, 4096),
    "steps": (0, 150),
    "padding": (0, 512),
    "blur": (0, 64),
}
ARROW = "=>"  # between a detail's phrase and its prompt


@dataclasses.dataclass(frozen=True)
class Settings:
    """One run's settings; the fields, in this order, are the arguments of `alwayson_scripts`."""

    enabled: bool = False
    phrases: str = ""  # one a line; "# " begins a comment; none left means off
    head: str = ATTENTION  # or TINY, or a file's name in models/ldznet
    threshold: float = 0.5  # 0 to 1, on probabilities
    grow: int = 0  # pixels of the picture, -512 to 512; below 0 it shrinks
    feather: int = 0  # pixels of the picture, 0 to 512
    fill_holes: bool = False
    drop_specks: int = 0  # the fewest pixels that a piece must have, 0 to 2**20
    refine: str = REFINES[1]
    invert: bool = False
    passes: str = TOGETHER
    drawn: str = UNITE  # what becomes of a mask that the user drew
    missing: str = LEAVE  # what is done where nothing was found
    details: str = ""  # `phrase => prompt`, one a line; none left means off
    denoise: float = 0.4  # of a detail's own pass, 0 to 1
    size: int = 0  # pixels of both sides at which a detail is painted, to 4096; 0: as the picture was asked for
    steps: int = 0  # of a detail's own pass, to 150; 0: the picture's
    padding: int = 32  # pixels around a detail that its pass sees, 0 to 512
    blur: int = 4  # deviation in pixels of the edge of a detail's mask, 0 to 64
    while_sampling: bool = False  # words of the prompt are looked for in the sampler's own steps
    gallery: bool = False  # masks and overlays of the details follow the pictures

    @classmethod
    def of(cls, arguments: Sequence[Any]) -> Settings:
        """From the arguments of a script: values in the order of the fields, or one dict by their names.

        Raises ValueError that names the field for an unknown name, a value of another kind or out of its range.
        """
        if len(arguments) and isinstance(arguments[0], Mapping):
            unknown = [name for name in arguments[0] if name not in NAMES]
            if unknown:
                raise ValueError(f"Expected arguments among {', '.join(NAMES)}, got {', '.join(map(str, unknown))}.")
            given = dict(arguments[0])
            given.setdefault("enabled", True)
        else:
            given = {name: value for name, value in zip(NAMES, arguments, strict=False) if value is not None}
        return cls(**{name: _checked(name, value) for name, value in given.items()})

    @property
    def lines(self) -> list[str]:
        """The phrases, without blank lines and comments."""
        return _lines(self.phrases)

    @property
    def orders(self) -> list[Order]:
        """The details, without blank lines and comments."""
        parted = (line.partition(ARROW) for line in _lines(self.details))
        return [Order(phrase.strip(), prompt.strip()) for phrase, _, prompt in parted]

    @property
    def is_on(self) -> bool:
        """Whether anything is to be done."""
        return self.enabled and bool(self.lines or self.orders)

    def infotext(self) -> dict[str, Any]:
        """Keys of `extra_generation_params`: all that is not as it is by default; none if off."""
        if not self.is_on:
            return {}
        return {key_of(name): getattr(self, name) for name in NAMES[1:] if getattr(self, name) != DEFAULTS[name]}


class Order(NamedTuple):
    """A detail: what is painted again, and by which prompt (empty: the picture's own)."""

    phrase: str
    prompt: str


def _lines(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


NAMES = tuple(field.name for field in dataclasses.fields(Settings))
DEFAULTS: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(Settings)}


def changed(arguments: Sequence[Any], changes: Mapping[str, Any]) -> list[Any]:
    """The arguments of a script with other values for some fields; phrases among them switch the section on."""
    if not changes:
        return list(arguments)
    changes = {"enabled": True, **changes} if "phrases" in changes else changes
    if len(arguments) and isinstance(arguments[0], Mapping):
        return [{**arguments[0], **changes}, *arguments[1:]]
    given = dict(zip(NAMES, arguments, strict=False))
    return [changes.get(name, given.get(name)) for name in NAMES]


def key_of(name: str) -> str:
    """A field's key in infotext: "LDZNet drop specks"."""
    return PREFIX + name.replace("_", " ")


def restored(name: str, infotext: Mapping[str, Any]) -> Any:
    """A field's value as `infotext` has it; None, which changes nothing, where the section was off or a value is none.

    A field that is not mentioned was at its default.
    """
    if not any(key_of(what) in infotext for what in ("phrases", "details")):
        return None
    if name == "enabled":
        return True
    default, text = DEFAULTS[name], infotext.get(key_of(name))
    try:
        if text is None:
            return default
        if isinstance(default, bool):
            return _checked(name, {"True": True, "False": False}[str(text)])
        return _checked(name, type(default)(text))
    except (KeyError, ValueError):
        return None


def _checked(name: str, value: Any) -> Any:
    """`value`, an int made a float or the reverse where the field is of that kind; ValueError where it cannot be."""
    default = DEFAULTS[name]
    if isinstance(default, bool) or isinstance(value, bool):
        fits = isinstance(default, bool) and isinstance(value, bool)
    elif isinstance(default, str):
        fits = isinstance(value, str)
    else:
        fits = isinstance(value, (int, float)) and (isinstance(default, float) or value == int(value))
        value = type(default)(value) if fits else value
    if not fits:
        raise ValueError(f"Expected {type(default).__name__} as {name}, got {value!r}. (section {TITLE})")
    if name in CHOICES and value not in CHOICES[name]:
        raise ValueError(f"Expected one of {', '.join(CHOICES[name])} as {name}, got {value!r}. (section {TITLE})")
    low, high = RANGES.get(name, (value, value))
    if not low <= value <= high:
        raise ValueError(f"Expected {low} to {high} as {name}, got {value}. (section {TITLE})")
    return value
