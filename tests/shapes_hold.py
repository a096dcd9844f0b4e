"""Makes the shapes in the library's signatures true while tests run: an import hook that checks them with jaxtyping.

A call that ends well has its arguments and its result compared with its annotations, one binding of dimension names for
both; a call that raises keeps its own error, so that tests of refusals stay as they are. Fields of the dataclasses and
NamedTuples that are returned are compared too. Everything else in an annotation is mypy's.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from typing import Any

import jaxtyping
import numpy as np
import torch

ARRAYS = (torch.Tensor, np.ndarray)
CHECK = "_shapes_hold"
compiling = getattr(torch.compiler, "is_compiling", lambda: False)  # from torch 2.3 on


class ShapeError(AssertionError):
    """An array that is not as its function says."""


def install(package: str) -> None:
    """From here on modules of `package` are checked as they are imported."""
    sys.meta_path.insert(0, _Finder(package))


def holding(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose annotated shapes have to hold once it has returned."""
    if inspect.isgeneratorfunction(function):
        return function
    hints: dict[str, Any] = {}

    @functools.wraps(function)
    def held(*args: Any, **named: Any) -> Any:
        out = function(*args, **named)
        if compiling():
            return out
        if not hints:
            hints.update({"": None, **_hints(function)})
        if len(hints) > 1:
            given = inspect.signature(function).bind(*args, **named).arguments
            with jaxtyping.jaxtyped("context"):
                for name, value in [*given.items(), ("return", out)]:
                    _require(value, hints.get(name), f"{function.__module__}.{function.__qualname__}: {name}")
        return out

    return held


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of `function` in which there is an array."""
    try:
        found = typing.get_type_hints(function)
    except NameError:  # names that are imported for type checkers alone
        return {}
    return {name: hint for name, hint in found.items() if _has_array(hint)}


def _has_array(hint: Any) -> bool:
    return _is_array(hint) or bool(_fields(hint)) or any(map(_has_array, typing.get_args(hint)))


def _is_array(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray)


def _fields(kind: Any) -> Mapping[str, Any]:
    """Annotations of a dataclass or NamedTuple of the library in which there is an array."""
    ours = isinstance(kind, type) and kind.__module__.startswith("ldznet")
    return _fields_of(kind) if ours and (dataclasses.is_dataclass(kind) or hasattr(kind, "_fields")) else {}


@functools.cache
def _fields_of(kind: type) -> Mapping[str, Any]:
    hints = typing.get_type_hints(kind)
    return {name: hint for name, hint in hints.items() if hint is not kind and _has_array(hint)}


def _require(value: Any, hint: Any, place: str) -> None:
    """Raises ShapeError where an array in `value` is not as `hint` says."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if _is_array(hint):
        if isinstance(value, ARRAYS) and not _fits(value, hint):
            kind = hint.dtype.__name__
            raise ShapeError(f'{place}: expected {kind} "{hint.dim_str}", got {value.dtype} {tuple(value.shape)}')
    elif origin in (typing.Union, types.UnionType):
        _require_any(value, [part for part in parts if _has_array(part)], place)
    elif isinstance(value, tuple) and origin is tuple and parts and parts[-1] is not ...:
        _require_each(zip(value, parts, strict=True), place)
    elif isinstance(value, Sequence) and isinstance(origin, type) and parts and not isinstance(value, str):
        _require_each(((part, parts[0]) for part in value), place)
    elif isinstance(value, Mapping) and len(parts) == 2:
        _require_each(((part, parts[1]) for part in value.values()), place)
    elif fields := _fields(type(value)):
        with jaxtyping.jaxtyped("context"):
            _require_each(((getattr(value, name), of_field) for name, of_field in fields.items()), place)


def _fits(value: Any, hint: Any) -> bool:
    try:
        return isinstance(value, hint)
    except (jaxtyping.AnnotationError, NameError):  # of dimensions that another argument, left out, would have named
        return True


def _require_each(pairs: Iterable[tuple[Any, Any]], place: str) -> None:
    for value, hint in pairs:
        _require(value, hint, place)


def _require_any(value: Any, hints: Sequence[Any], place: str) -> None:
    """One of several annotations."""
    for i, hint in enumerate(hints):
        try:
            return _require(value, hint, place)
        except ShapeError:
            if i == len(hints) - 1:
                raise
    return None


class _Finder(MetaPathFinder):
    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != self.package and not name.startswith(f"{self.package}."):
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is None or not isinstance(spec.loader, SourceFileLoader):
            return None
        spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    """Compiles a module with every annotated function decorated, past the cache."""

    def get_code(self, fullname: str) -> Any:
        tree = ast.parse(self.get_data(self.path))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.returns is not None:
                node.decorator_list.append(ast.Name(CHECK, ast.Load()))  # the innermost
        return compile(ast.fix_missing_locations(tree), self.path, "exec", dont_inherit=True)

    def exec_module(self, module: types.ModuleType) -> None:
        setattr(module, CHECK, holding)
        super().exec_module(module)
