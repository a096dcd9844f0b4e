"""What a configuration's fields may hold, checked when one is made: files say anything. Imports errors alone."""

from __future__ import annotations

from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from .errors import InputError, shown


class Bound(NamedTuple):
    """What a field may hold: numbers from `low` to `high`, multiples of `step` unless that is 0; or `most` of them."""

    low: float
    high: float
    step: int = 0
    most: int = 2

    def admits(self, value: Any) -> bool:
        """Whether a number, or each of a tuple, lies within; NaN does not."""
        values = value if isinstance(value, tuple) else (value,)
        fitting = [self.low <= v <= self.high and not (self.step and v % self.step) for v in values]
        return 1 <= len(values) <= self.most and all(fitting)

    def __str__(self) -> str:
        return f"{self.low} to {self.high}" + (f" in steps of {self.step}" if self.step else "")


def check(config: Any, bounds: dict[str, Bound]) -> None:
    """Raises InputError unless every field is of its type and within its bound. Lists become tuples, in place."""
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if isinstance(value, list):
            value = tuple(value)
            object.__setattr__(config, name, value)
        if not _is(value, kind):
            raise fault(name, value, getattr(kind, "__name__", str(kind)) if get_origin(kind) is None else str(kind))
        if name in bounds and not bounds[name].admits(value):
            raise fault(name, value, str(bounds[name]))


def fault(name: str, value: Any, expected: str) -> InputError:
    """For a field `name` that holds `value`."""
    return InputError(f"Expected {expected} as {name}, got {shown(repr(value))}.")


def _is(value: Any, kind: Any) -> bool:
    if get_origin(kind) is tuple:
        if type(value) is not tuple:
            return False
        kinds = get_args(kind)
        kinds = kinds[:1] * len(value) if kinds[-1] is ... else kinds
        return len(value) == len(kinds) and all(map(_is, value, kinds))
    return type(value) is kind or (kind is float and type(value) is int)
