"""Runs the program that a pickle is over inert things: containers, numbers, text, and tensors that are still in a file.

A pickle names Python callables and calls them. Here nothing is ever called: a name is looked up in `GLOBALS`, which
knows an ordered dict, three of torch's rebuilding functions and its types; every other name, and whatever is done
with it, becomes a `Placeholder`. A value can be large and be shared by all that follows, so no step looks into one: no
key is hashed that has parts, nothing is printed, joined or unpacked but what is short. The steps are counted.
`pickles` and `plain_pickles` alone may import this.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from ..errors import shown

MOST_SIDES = 64  # of a tensor; torch's own limit
MOST_BITS = 64  # of a whole number
LONGEST_NAME = 500  # characters of a module and of a name
MOST_ARGUMENTS = 16  # of a call; torch's own functions take up to seven


class Storage(NamedTuple):
    """A flat array of `numel` values, under the name `key` in the archive's folder of data."""

    key: str
    dtype: torch.dtype
    numel: int


class StoredTensor(NamedTuple):
    """A strided view of a storage that has not been read."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def span(self) -> int:
        """Values from the first to the last, both included."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))


class Placeholder:
    """Stands for an object of the class `origin`, for that class itself, or for anything else of no use here."""

    __slots__ = ("origin",)

    def __init__(self, origin: str) -> None:
        self.origin = origin


# What is understood when it is called; a typed tensor is one whose storage does not say its dtype.
DICT, TENSOR, TYPED_TENSOR, PARAMETER = "an ordered dict", "a tensor", "a typed tensor", "a parameter"
GLOBALS: dict[str, str | torch.dtype] = {
    "collections.OrderedDict": DICT,
    "torch._utils._rebuild_tensor_v2": TENSOR,
    "torch._utils._rebuild_tensor_v3": TYPED_TENSOR,
    "torch._utils._rebuild_parameter": PARAMETER,
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.storage.UntypedStorage": torch.uint8,
    "torch.float8_e4m3fn": torch.float8_e4m3fn,
    "torch.float8_e5m2": torch.float8_e5m2,
}


class Global(NamedTuple):
    """A name of `GLOBALS`, and what it means."""

    name: str
    meaning: str | torch.dtype


def unpickle(program: bytes, sizes: Mapping[str, int], most_steps: int) -> Any:
    """What `program` builds. `sizes` are the bytes that the archive has for each storage's key.

    Raises ValueError for a program that is damaged, that takes over `most_steps`, or whose tensors reach beyond their
    storages; and what Python raises for one that takes what is not there (IndexError, KeyError, TypeError).
    """
    machine = Machine(sizes)
    for step, (opcode, argument, position) in enumerate(pickletools.genops(program)):
        if step >= most_steps:
            raise ValueError(f"over {most_steps:,} steps")
        if opcode.name == "STOP":
            return machine.pop()
        STEPS[opcode.name](machine, argument, position or 0)
    raise ValueError("no end")  # which genops says itself


class Machine:
    """The state of a program: a stack, the stacks below its marks, and the memo."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._sizes = sizes
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def pop(self) -> Any:
        """Takes the topmost value."""
        return self._stack.pop()

    def push(self, value: Any, position: int = 0) -> None:
        """Lays a value on top; a long number is of no use and becomes a placeholder."""
        is_long = type(value) is int and value.bit_length() > MOST_BITS
        self._stack.append(Placeholder("a long number") if is_long else value)

    def mark(self) -> None:
        """Begins a new stack above this one."""
        self._below.append(self._stack)
        self._stack = []

    def pop_mark(self) -> list[Any]:
        """Everything above the last mark."""
        values, self._stack = self._stack, self._below.pop()
        return values

    def replace_mark(self, value: Any) -> None:
        """`value` in the place of the last mark and everything above it."""
        self.pop_mark()
        self.push(value)

    def pop_many(self, count: int) -> tuple[Any, ...]:
        """The topmost `count` values."""
        return tuple(reversed([self.pop() for _ in range(count)]))

    def put(self, index: int, position: int) -> None:
        """Remembers the topmost value as number `index`."""
        if index > position:  # numbers are given one by one
            raise ValueError("a damaged memo")
        self._memo[index] = self._stack[-1]

    def memoize(self) -> None:
        """Remembers the topmost value under the next number."""
        self._memo[len(self._memo)] = self._stack[-1]

    def get(self, index: int) -> None:
        """Lays what is remembered as number `index` on top."""
        self._stack.append(self._memo[index])

    def extend(self, values: list[Any]) -> None:
        """Appends to the topmost list."""
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Placeholder):
            raise ValueError("a list was expected")

    def update(self, pairs: list[Any]) -> None:
        """Sets key, value, key, value … in the topmost dict."""
        target = self._stack[-1]
        if isinstance(target, dict):
            target.update(_dict(pairs))
        elif not isinstance(target, Placeholder):
            raise ValueError("a dict was expected")

    def find(self, name: str) -> None:
        """Looks a global up by "module.name"."""
        known = GLOBALS.get(name)
        self._stack.append(Placeholder(name) if known is None else Global(name, known))

    def find_on_stack(self) -> None:
        """The same, module and name being the two topmost values."""
        module, name = self.pop_many(2)
        if not all(isinstance(text, str) and len(text) <= LONGEST_NAME for text in (module, name)):
            raise ValueError("a name that is none")
        self.find(f"{module}.{name}")

    def call(self, function: Any, arguments: Any) -> None:
        """Lays on top what stands for `function(*arguments)`."""
        meaning = function.meaning if isinstance(function, Global) else None
        if isinstance(meaning, str) and not (type(arguments) is tuple and len(arguments) <= MOST_ARGUMENTS):
            raise ValueError("a call without arguments")
        if meaning == DICT:
            self._stack.append(_ordered_dict(*arguments))
        elif meaning == TENSOR:
            self._stack.append(_tensor(*arguments))
        elif meaning == TYPED_TENSOR:
            self._stack.append(_typed_tensor(*arguments))
        elif meaning == PARAMETER:
            self._stack.append(arguments[0])
        else:
            self._stack.append(Placeholder(_origin(function)))

    def build(self) -> None:
        """Takes the state that an object is to get, and gives it to nobody."""
        self._stack.pop()
        self._stack[-1]  # whose it would be

    def load_storage(self, pid: Any) -> None:
        """Lays a storage on top by what torch writes for one: ("storage", type, key, device, numel)."""
        kind, storage_type, key, _device, numel = pid
        dtype = storage_type.meaning if isinstance(storage_type, Global) else None
        if kind != "storage" or not isinstance(dtype, torch.dtype) or type(key) is not str or not _is_count(numel):
            raise ValueError("a storage of unknown kind")
        if numel * dtype.itemsize > self._sizes.get(key, 0):
            raise ValueError(f"storage {shown(key)} is missing or cut short")
        self._stack.append(Storage(key, dtype, numel))


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> StoredTensor:
    if not (isinstance(shape, tuple) and isinstance(stride, tuple) and len(stride) == len(shape) <= MOST_SIDES):
        raise ValueError("a tensor without a shape")
    tensor = StoredTensor(storage, offset, shape, stride)
    whole = isinstance(storage, Storage) and all(map(_is_count, (offset, *shape, *stride)))
    if not (whole and offset + tensor.span <= storage.numel):
        raise ValueError("a tensor reaches beyond its storage")
    return tensor


def _typed_tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, gradient: Any, hooks: Any, dtype: Any, *rest: Any
) -> StoredTensor:
    meaning = dtype.meaning if isinstance(dtype, Global) else None
    if not (isinstance(storage, Storage) and isinstance(meaning, torch.dtype)):
        raise ValueError("a tensor of unknown type")
    values = storage.numel * storage.dtype.itemsize // meaning.itemsize
    return _tensor(Storage(storage.key, meaning, values), offset, shape, stride)


def _ordered_dict(pairs: Any = None) -> dict[Any, Any]:
    """Of nothing, or of a list of pairs, as older Pythons wrote it; the list becomes empty, so that it counts once."""
    if pairs is None:
        return {}
    if type(pairs) is not list:
        raise ValueError("a dict of no pairs")
    flat = [part for key, value in pairs for part in (key, value)]
    pairs.clear()
    return _dict(flat)


def _dict(pairs: list[Any]) -> dict[Any, Any]:
    """A dict of key, value, key, value …"""
    if len(pairs) % 2:
        raise ValueError("a key without a value")
    return {_key(pairs[i]): pairs[i + 1] for i in range(0, len(pairs), 2)}


def _key(key: Any) -> Any:
    """`key`, where hashing and comparing it costs a step; a tuple of shared tuples would cost without end."""
    plain = key is None or type(key) in (str, bytes, int, float, bool, Placeholder, torch.dtype)
    return key if plain else Placeholder(f"a {type(key).__name__}")


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _origin(value: Any) -> str:
    return value.origin if isinstance(value, Placeholder) else value.name if isinstance(value, Global) else "an object"


def _refuse(machine: Machine, argument: Any, position: int) -> None:
    raise ValueError("a pickle with extension codes or buffers")


def _constant(value: Callable[[], Any]) -> Callable[[Machine, Any, int], None]:
    return lambda machine, argument, position: machine.push(value())


# What each opcode does to the machine, given its argument and its position in the program; by pickletools' names.
STEPS: dict[str, Callable[[Machine, Any, int], Any]] = {
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"), Machine.push),
    **dict.fromkeys(("FLOAT", "BINFLOAT"), Machine.push),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE"), Machine.push),
    **dict.fromkeys(("BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), Machine.push),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"), _refuse),
    **dict.fromkeys(("PROTO", "FRAME"), lambda m, a, p: None),
    "BYTEARRAY8": lambda m, a, p: m.push(bytes(a)),
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    "EMPTY_LIST": _constant(list),
    "EMPTY_DICT": _constant(dict),
    "EMPTY_TUPLE": _constant(tuple),
    "EMPTY_SET": _constant(lambda: Placeholder("a set")),
    "MARK": lambda m, a, p: m.mark(),
    "APPEND": lambda m, a, p: m.extend([m.pop()]),
    "APPENDS": lambda m, a, p: m.extend(m.pop_mark()),
    "ADDITEMS": lambda m, a, p: m.pop_mark(),
    "SETITEM": lambda m, a, p: m.update(list(m.pop_many(2))),
    "SETITEMS": lambda m, a, p: m.update(m.pop_mark()),
    "LIST": lambda m, a, p: m.push(m.pop_mark()),
    "DICT": lambda m, a, p: m.push(_dict(m.pop_mark())),
    "TUPLE": lambda m, a, p: m.push(tuple(m.pop_mark())),
    "TUPLE1": lambda m, a, p: m.push(m.pop_many(1)),
    "TUPLE2": lambda m, a, p: m.push(m.pop_many(2)),
    "TUPLE3": lambda m, a, p: m.push(m.pop_many(3)),
    "FROZENSET": lambda m, a, p: m.replace_mark(Placeholder("a set")),
    "POP": lambda m, a, p: m.pop(),
    "POP_MARK": lambda m, a, p: m.pop_mark(),
    "DUP": lambda m, a, p: m.push(m._stack[-1]),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, a, p: m.get(a)),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda m, a, p: m.put(a, p)),
    "MEMOIZE": lambda m, a, p: m.memoize(),
    "GLOBAL": lambda m, a, p: m.find(a.replace(" ", ".", 1)),
    "STACK_GLOBAL": lambda m, a, p: m.find_on_stack(),
    "REDUCE": lambda m, a, p: m.call(*m.pop_many(2)),
    "NEWOBJ": lambda m, a, p: m.call(*m.pop_many(2)),
    "NEWOBJ_EX": lambda m, a, p: m.call(*m.pop_many(3)[:2]),
    "INST": lambda m, a, p: m.replace_mark(Placeholder(a.replace(" ", ".", 1))),
    "OBJ": lambda m, a, p: m.push(Placeholder(_origin(m.pop_mark()[0]))),
    "BUILD": lambda m, a, p: m.build(),
    "PERSID": lambda m, a, p: m.load_storage(a),
    "BINPERSID": lambda m, a, p: m.load_storage(m.pop()),
}
