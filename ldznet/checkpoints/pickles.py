"""Reads the tensors of a torch zip checkpoint (.ckpt, .pt) without running anything that its pickle asks for.

`torch.load` is not used: `unpickling` runs the program over placeholders, so foreign packages need not be installed and
every torch version behaves the same. Tensors stay in the file until they are read, one at a time. What a file costs is
bounded by its size: archives may be deflated, and tensors may share what they show, so far and no farther. May be
imported by checkpoints and by single_file alone.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, cause, shown
from .files import TensorFile, sniff
from .formats import TensorInfo, listing, seems_to_be
from .scales import with_scales
from .unpickling import Placeholder, StoredTensor, unpickle

# What a file may cost, above what its size allows. torch.save deflates nothing; other programs that pack again do.
MARGIN = 2**20  # bytes
MOST_INFLATION = 32  # times its bytes, of all members together
MOST_PICKLE = 4 * MARGIN, 64 * MARGIN  # bytes of the index: beside the file's own, and ever; the published has 10**6
MOST_STEPS = 320_000  # of the index, and one more for each 4 KB of the file; the published takes about 160,000
MOST_SHARING = 4  # times the bytes of all storages, that tensors show in all; two that are tied show them twice
MOST_READING = {True: 4, False: 256}  # times those bytes, to be read for all tensors: of deflated members, of stored


@dataclass(frozen=True)
class Archive:
    """An open torch zip: its pickle, and the storages beside it by key."""

    zip: zipfile.ZipFile
    name: str
    size: int  # of the file, in bytes
    index: zipfile.ZipInfo
    storages: Mapping[str, zipfile.ZipInfo]

    @classmethod
    def of(cls, path: Path) -> Archive:
        """Raises CheckpointError for a zip that is none of torch's, or that unfolds to more than weights do."""
        name, size = shown(path.name), path.stat().st_size
        try:
            archive = zipfile.ZipFile(path)
        except Exception as error:  # BadZipFile, NotImplementedError for another version, and others
            raise CheckpointError(
                f"Expected a whole torch checkpoint, got {name}, which seems to be a zip archive cut short, damaged or "
                f"of another version ({size:,} bytes; {cause(error)}). Download it again."
            ) from error
        try:
            return cls(archive, name, size, *_members(archive, name, size))
        except BaseException:
            archive.close()
            raise


@contextmanager
def open_pickle(path: Path) -> Iterator[TensorFile]:
    """Opens the state dict of a torch zip checkpoint: its entry `state_dict`, or the whole where there is none.

    Raises CheckpointError, which says what the file seems to be, unless it holds tensors and nothing else.
    """
    if sniff(path) != "zip":
        raise CheckpointError(
            f"Expected a .ckpt file, got {shown(path.name)}, which seems to be a safetensors. Load it as such."
        )
    archive = Archive.of(path)
    with archive.zip:
        state = _state_dict(archive)
        infos = {name: TensorInfo(tensor.storage.dtype, tensor.shape) for name, tensor in state.items()}
        yield with_scales(TensorFile(path, infos, lambda name: _read(archive, state[name], name)))


def _members(archive: zipfile.ZipFile, name: str, size: int) -> tuple[zipfile.ZipInfo, dict[str, zipfile.ZipInfo]]:
    """The pickle of a torch zip, and its storages by key."""
    members = {info.filename: info for info in archive.infolist()}
    unfolded = sum(info.file_size for info in archive.infolist())
    pickles = [member for member in members if member == "data.pkl" or member.endswith("/data.pkl")]
    if not pickles:
        inside = listing(list(members), 3)
        raise CheckpointError(
            f"Expected a torch checkpoint, got {name}, which seems to be an ordinary zip archive ({inside}). "
            "If the checkpoint is inside, unpack it first."
        )
    if unfolded > MOST_INFLATION * size + MARGIN:
        raise CheckpointError(
            f"Expected a torch checkpoint, got {name}, whose {size:,} bytes unfold to {unfolded:,}, as no weights do. "
            "Get it from another place."
        )
    folder = pickles[0].removesuffix("data.pkl") + "data/"
    storages = {member[len(folder) :]: info for member, info in members.items() if member.startswith(folder)}
    return members[pickles[0]], storages


def _state_dict(archive: Archive) -> dict[str, StoredTensor]:
    root = _unpickled(archive)
    state = root.get("state_dict", root) if isinstance(root, dict) else root
    if not isinstance(state, dict):
        raise CheckpointError(
            f"Expected a state dict in {archive.name}, got {_class_name(state)}. Give the published .ckpt."
        )
    foreign = [name for name, value in state.items() if not (type(name) is str and isinstance(value, StoredTensor))]
    if foreign:
        others = listing(foreign, describe=lambda name: f"{shown(_text(name))} ({_class_name(state[name])})")
        raise CheckpointError(
            f"Expected tensors alone in the state dict of {archive.name}, got other objects: {others}. "
            f"The file seems to be {seems_to_be([_text(name) for name in state])}. Nothing of it was run or loaded."
        )
    _require_modest(archive, list(state.values()))
    return state


def _text(name: Any) -> str:
    return name if isinstance(name, str) else shown(name) if isinstance(name, (int, float)) else _class_name(name)


def _class_name(value: object) -> str:
    return shown(value.origin if isinstance(value, Placeholder) else type(value).__name__)


def _unpickled(archive: Archive) -> Any:
    beside, ever = MOST_PICKLE
    most = min(archive.size + beside, ever)
    sizes = {key: info.file_size for key, info in archive.storages.items()}
    try:
        with archive.zip.open(archive.index) as member:
            program = member.read(most + 1)  # no more is inflated, whatever the archive says of its size
        if len(program) > most:
            raise ValueError(f"its index has over {most:,} bytes")
        return unpickle(program, sizes, MOST_STEPS + archive.size // 4096)
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise CheckpointError(
            f"Expected a torch checkpoint, got {archive.name}, whose index cannot be read: it seems to be damaged or "
            f"not a checkpoint ({type(error).__name__}: {cause(error)}). Download it again."
        ) from error


def _require_modest(archive: Archive, tensors: list[StoredTensor]) -> None:
    """Raises CheckpointError where tensors show, or make one read, many times what there is."""
    stored = sum(info.file_size for info in archive.storages.values())
    deflated = any(info.compress_type != zipfile.ZIP_STORED for info in archive.storages.values())
    values = sum(math.prod(t.shape) * t.storage.dtype.itemsize for t in tensors)
    reading = sum((t.offset + t.span) * t.storage.dtype.itemsize for t in tensors)
    if values > MOST_SHARING * stored + MARGIN or reading > MOST_READING[deflated] * stored + MARGIN:
        raise CheckpointError(
            f"Expected tensors with values of their own in {archive.name}, got {values:,} bytes of them out of "
            f"{stored:,} stored. Save the state dict anew, with contiguous tensors."
        )


def _read(archive: Archive, tensor: StoredTensor, name: str) -> Tensor:
    """The values of one tensor. The archive's checksum is compared where a whole member is read, as nearly always."""
    dtype = tensor.storage.dtype
    try:
        with archive.zip.open(archive.storages[tensor.storage.key]) as member:
            member.seek(tensor.offset * dtype.itemsize)
            data = bytearray(member.read(tensor.span * dtype.itemsize))
        if not data:
            return torch.empty(0, dtype=dtype, device="cpu").as_strided(tensor.shape, tensor.stride)
        return torch.frombuffer(data, dtype=dtype, count=tensor.span).as_strided(tensor.shape, tensor.stride)
    except Exception as error:  # zipfile's, zlib's and torch's are many
        raise CheckpointError(
            f"Expected the values of {shown(name)}, got a damaged file ({cause(error)}). Download it again."
        ) from error
