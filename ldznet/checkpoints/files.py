"""Tensors in files: telling what a file is, reading safetensors by mapping them, writing them without ever holding all.

Knows nothing of heads. May be imported by checkpoints, by the tiny world and by training.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import CheckpointError, InputError, cause, shown
from ..writing import replacing
from .formats import TensorFile, TensorInfo
from .scales import with_scales

DTYPES: dict[str, torch.dtype] = {  # safetensors' names
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

# First bytes of what is taken for a checkpoint: what it seems to be, and what to do.
MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (
        b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.",
        "a torch file in the format from before torch 1.6",
        "Save it anew, as a zip: torch.save(torch.load(FILE, weights_only=True), NEW_FILE).",
    ),
    (b"\x80", "a Python pickle that torch.save did not write", "Give the published .ckpt file."),
    (b"\x1f\x8b", "a gzip archive", "Unpack it first."),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "Unpack it first."),
    (b"Rar!", "a RAR archive", "Unpack it first."),
    (b"<", "a web page", "The download was a page instead of the file: open the link in a browser and confirm it."),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "Run `git lfs pull`, or download the file."),
    (b"GGUF", "a GGUF file", "Give a .safetensors file."),
    (b"\x89PNG", "a picture", "Give a checkpoint."),
    (b"\xff\xd8\xff", "a picture", "Give a checkpoint."),
    (b"{", "a JSON file", "Give the file that holds the weights."),
)
MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library


def sniff(path: Path) -> Literal["zip", "safetensors"]:
    """What `path` is by its first bytes, whatever its name; raises CheckpointError for anything else, saying what."""
    if path.is_dir():
        raise CheckpointError(f"Expected a file, got the folder {_path(path)}. Give the checkpoint file inside it.")
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"Expected a checkpoint file, could not open {_path(path)}: {cause(error)}. Check the path."
        ) from error
    if start.startswith(b"PK\x03\x04"):
        return "zip"
    if start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] <= MAX_HEADER:
        return "safetensors"
    raise CheckpointError(f"Expected a checkpoint in {shown(path.name)}, got {_describe(start)}")


def _path(path: Path) -> str:
    return shown(path, 300)


def _describe(start: bytes) -> str:
    if not start:
        return "an empty file. Download it again."
    for magic, kind, advice in MAGIC:
        if start.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(magic):
            return f"{kind}. {advice}"
    return f"neither a torch file nor a safetensors (it begins with {start[:8].hex(' ')}). Download it again."


@contextmanager
def open_safetensors(path: Path) -> Iterator[TensorFile]:
    """Opens a safetensors file. The tensors read from it are views of the mapped file and outlive the context.

    Raises CheckpointError if the file is anything else, cut short, or damaged in its header.
    """
    name = shown(path.name)
    if sniff(path) != "safetensors":
        raise CheckpointError(
            f"Expected a .safetensors file, got {name}, which seems to be a .ckpt or .zip archive. Convert it "
            f"first: `ldznet convert {name} head.safetensors`, or `python install.py convert {name}`."
        )
    try:
        handle = safe_open(path, framework="pt")
        infos = {name: _info(handle.get_slice(name)) for name in handle.keys()}  # noqa: SIM118 (no mapping)
    except Exception as error:  # SafetensorError, KeyError for a type, and what the system says of the file
        raise CheckpointError(
            f"Expected a whole safetensors file, got {name}, which is cut short, damaged or of unknown types "
            f"({cause(error)}). Download it again."
        ) from error
    with handle:
        yield with_scales(TensorFile(path, infos, partial(_read, handle), handle.metadata() or {}))


def _read(handle: Any, name: str) -> Tensor:
    try:
        with torch.device("cpu"):  # older versions put it where torch's default is
            return handle.get_tensor(name)
    except Exception as error:  # of a shape that torch cannot have
        raise CheckpointError(
            f"Expected the values of {shown(name)}, got a damaged file ({cause(error)}). Download it again."
        ) from error


def _info(view: object) -> TensorInfo:
    return TensorInfo(DTYPES[view.get_dtype()], tuple(view.get_shape()))  # type: ignore[attr-defined]


def save_tensors(tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file whole or not at all; `metadata` is text alone, else InputError."""
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.dtype not in DTYPE_NAMES:
            kind = f"{tensor.dtype} {tensor.layout}"
            raise InputError(f"Expected ordinary tensors, got {kind} in {shown(name)}. Call to_dense() or float().")
    layout = {name: TensorInfo(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    stream_tensors(path, layout, tensors.__getitem__, metadata)


def stream_tensors(
    path: str | Path,
    layout: Mapping[str, TensorInfo],
    read: Callable[[str], Tensor],
    metadata: Mapping[str, str],
    progress: Callable[[int], None] | None = None,
) -> None:
    """Writes the tensors of `layout` as safetensors, holding one at a time: `read` gives each, when its turn comes.

    `progress` gets the bytes of each tensor written. Whatever it or `read` raises leaves no file behind.
    Format: github.com/huggingface/safetensors, "Format" (header size, JSON header, then the bytes without gaps).
    """
    _check_metadata(metadata)
    order = sorted(layout, key=lambda name: -layout[name].dtype.itemsize)  # keeps every tensor aligned
    with replacing(Path(path)) as file:
        file.write(_header(order, layout, metadata))
        for name in order:
            tensor = read(name)
            assert TensorInfo(tensor.dtype, tuple(tensor.shape)) == layout[name], name
            written = file.write(_bytes(tensor))
            if progress:
                progress(written)


def _check_metadata(metadata: Mapping[str, str]) -> None:
    for key, value in metadata.items():
        if not (isinstance(key, str) and isinstance(value, str)):
            raise InputError(
                f"Expected metadata of text alone, got {shown(repr(key))}: {shown(repr(value))}. Turn it into a string."
            )


def _header(order: list[str], layout: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON, padded with spaces so that the tensors begin at a multiple of 8 bytes."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for name in order:
        end = offset + nbytes(layout[name])
        dtype, shape = layout[name]
        header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def nbytes(info: TensorInfo) -> int:
    """Bytes of a tensor's values."""
    return torch.Size(info.shape).numel() * info.dtype.itemsize


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
