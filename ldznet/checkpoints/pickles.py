"""Reads the tensors of a torch zip checkpoint (.ckpt, .pt) without running anything that its pickle asks for.

A pickle is a program that names Python callables and calls them. Here a name is looked up in `GLOBALS`: a dict, two of
torch's rebuilding functions and its storage types, all replaced by our own; every other name (Lightning's, OmegaConf's,
os.system) becomes an inert placeholder. So `torch.load` is not used, foreign packages need not be installed, and every
torch version behaves the same. Tensors stay in the file until they are read, one at a time. May be imported by
checkpoints alone.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import CheckpointError
from .files import TensorFile, sniff
from .formats import TensorInfo, listing, seems_to_be

MAX_PICKLE = 64 * 2**20  # bytes; that of the published checkpoint has under one million


class Storage(NamedTuple):
    """A flat array of `numel` values in the archive's member `member`."""

    member: str
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
    """Stands for an object of a class that is not in `GLOBALS`. Takes what a pickle does to it, and does nothing."""

    origin = ""

    def __new__(cls, *args: object, **kwargs: object) -> Placeholder:
        return super().__new__(cls)

    def _ignore(self, *args: object) -> None:
        pass

    __init__ = __setstate__ = __setitem__ = append = extend = add = _ignore  # type: ignore[assignment]


class Inert(dict):
    """A dict whose methods a pickle cannot replace. `__slots__` and `__setstate__` see to that."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


class Call:
    """A function of ours under the name of one of torch's, wrapped so that a pickle cannot set its attributes."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: object) -> None:
        pass


def _rebuild_tensor(storage: Storage, offset: int, shape: Any, stride: Any, *rest: object) -> StoredTensor:
    tensor = StoredTensor(storage, offset, tuple(shape), tuple(stride))
    whole = all(type(n) is int and n >= 0 for n in (offset, *tensor.shape, *tensor.stride))
    if not (isinstance(storage, Storage) and whole and offset + tensor.span <= storage.numel):
        raise ValueError("a tensor reaches beyond its storage")
    return tensor


def _rebuild_parameter(tensor: object, *rest: object) -> object:
    return tensor


GLOBALS: dict[str, Any] = {
    "collections.OrderedDict": Inert,
    "torch._utils._rebuild_tensor_v2": Call(_rebuild_tensor),
    "torch._utils._rebuild_parameter": Call(_rebuild_parameter),
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
}


class InertUnpickler(pickle.Unpickler):
    """Unpickles the structure of a torch file: containers, numbers, text, `StoredTensor`s, and placeholders."""

    def __init__(self, program: bytes, sizes: Mapping[str, int], prefix: str) -> None:
        super().__init__(io.BytesIO(program))
        self._sizes, self._prefix = sizes, prefix

    def find_class(self, module: str, name: str) -> Any:
        known = GLOBALS.get(f"{module}.{name}")
        return type("Placeholder", (Placeholder,), {"origin": f"{module}.{name}"}) if known is None else known

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _device, numel = pid
        storage = Storage(f"{self._prefix}data/{key}", dtype, numel)
        if kind != "storage" or not isinstance(dtype, torch.dtype) or type(numel) is not int or numel < 0:
            raise ValueError("a storage of unknown kind")
        if numel * dtype.itemsize > self._sizes.get(storage.member, 0):
            raise ValueError(f"storage {key} is missing or cut short")
        return storage


def _check_program(program: bytes) -> None:
    """Refuses what makes the C unpickler allocate without need, or answer from the process instead of `find_class`."""
    for opcode, argument, position in pickletools.genops(program):
        if opcode.name.startswith("EXT"):
            raise ValueError("a pickle with extension codes")
        is_put = opcode.name in ("PUT", "BINPUT", "LONG_BINPUT")
        if is_put and isinstance(argument, int) and argument > (position or 0):  # a memo grows one by one
            raise ValueError("a pickle with a damaged memo")


@contextmanager
def open_pickle(path: Path) -> Iterator[TensorFile]:
    """Opens the state dict of a torch zip checkpoint: its entry `state_dict`, or the whole where there is none.

    Raises CheckpointError, which says what the file seems to be, unless it holds tensors and nothing else.
    """
    if sniff(path) != "zip":
        raise CheckpointError(
            f"Expected a .ckpt file, got {path.name}, which seems to be a safetensors. Load it as such."
        )
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise CheckpointError(
            f"Expected a whole torch checkpoint, got {path.name}, which seems to be a zip archive cut short "
            f"({path.stat().st_size:,} bytes; {error}). Download it again."
        ) from error
    with archive:
        state = _state_dict(archive, path.name)
        infos = {name: TensorInfo(tensor.storage.dtype, tensor.shape) for name, tensor in state.items()}
        yield TensorFile(path, infos, lambda name: _read(archive, state[name], name))


def _state_dict(archive: zipfile.ZipFile, source: str) -> dict[str, StoredTensor]:
    members = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
    if not pickles:
        inside = listing(list(members), 3)
        raise CheckpointError(
            f"Expected a torch checkpoint, got {source}, which seems to be an ordinary zip archive ({inside}). "
            "If the checkpoint is inside, unpack it first."
        )
    root = _unpickle(archive, members[pickles[0]], source)
    state = root.get("state_dict", root) if isinstance(root, dict) else root
    if not isinstance(state, dict):
        raise CheckpointError(f"Expected a state dict in {source}, got {_class_name(state)}. Give the published .ckpt.")
    foreign = {str(name): value for name, value in state.items() if not isinstance(value, StoredTensor)}
    if foreign or not all(isinstance(name, str) for name in state):
        others = listing([f"{name} ({_class_name(value)})" for name, value in foreign.items()])
        raise CheckpointError(
            f"Expected tensors alone in the state dict of {source}, got other objects: {others}. "
            f"The file seems to be {seems_to_be([str(name) for name in state])}. Nothing of it was run or loaded."
        )
    return state


def _class_name(value: object) -> str:
    return value.origin if isinstance(value, Placeholder) else type(value).__name__


def _unpickle(archive: zipfile.ZipFile, member: zipfile.ZipInfo, source: str) -> Any:
    prefix = member.filename.removesuffix("data.pkl")
    sizes = {info.filename: info.file_size for info in archive.infolist()}
    try:
        if member.file_size > MAX_PICKLE:
            raise ValueError(f"its index has {member.file_size:,} bytes")
        program = archive.read(member)
        _check_program(program)
        return InertUnpickler(program, sizes, prefix).load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise CheckpointError(
            f"Expected a torch checkpoint, got {source}, whose index cannot be read: it seems to be damaged or not a "
            f"checkpoint ({type(error).__name__}: {error}). Download it again."
        ) from error


def _read(archive: zipfile.ZipFile, tensor: StoredTensor, name: str) -> Tensor:
    """The values of one tensor. The archive's checksum is compared where a whole member is read, as nearly always."""
    dtype = tensor.storage.dtype
    try:
        with archive.open(tensor.storage.member) as member:
            member.seek(tensor.offset * dtype.itemsize)
            data = bytearray(member.read(tensor.span * dtype.itemsize))
        if not data:
            return torch.empty(0, dtype=dtype, device="cpu").as_strided(tensor.shape, tensor.stride)
        return torch.frombuffer(data, dtype=dtype, count=tensor.span).as_strided(tensor.shape, tensor.stride)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"Expected the values of {name}, got a damaged file ({error}). Download it again."
        ) from error
