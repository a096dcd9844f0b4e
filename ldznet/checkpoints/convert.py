"""The published checkpoint to one safetensors that holds the head alone. May be imported by the CLI and install.py.

One tensor is in memory at a time, so a file of 7.4 GB converts in a few hundred megabytes (docs/checkpoints.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .. import __version__
from ..config import HeadConfig
from ..errors import CheckpointError, InputError
from ..sources import require_no_url
from .files import TensorFile, nbytes, open_safetensors, sniff, stream_tensors
from .formats import Match, TensorInfo, match
from .load import OWNER, common_dtype, config_of, layout_of, meta_head, own_metadata
from .pickles import open_pickle

OPENERS: dict[str, Callable[[Path], AbstractContextManager[TensorFile]]] = {
    "zip": open_pickle,
    "safetensors": open_safetensors,
}
PUBLISHED = {  # what the authors state; a file's own metadata takes precedence
    "licence": "Apache-2.0 (github.com/koutilya-pnvr/LD-ZNet); initialised from Stable Diffusion v1.4",
    "trained_on": "PhraseCut",
}
CHUNK = 2**20  # bytes

Progress = Callable[[int, int], None]


class ConversionReport(NamedTuple):
    """What `convert` wrote."""

    target: Path
    source_format: str  # title of the format that was found
    tensors: int
    parameters: int
    dtype: torch.dtype
    size: int  # of the tensors, in bytes
    source_sha256: str
    ignored: int  # tensors of the source that are no part of the head


def convert(
    source: str | Path,
    target: str | Path,
    dtype: torch.dtype | None = None,
    *,
    config: HeadConfig | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> ConversionReport:
    """Writes the head in `source` to the safetensors `target`, in `dtype` (None keeps the source's own).

    `source` is the published .ckpt, its averaged (EMA) weights preferred; or a safetensors with such tensors, or a head
    of ours to be cast. `config` None is the file's own where it says, else the published head's.
    `progress(done, total)` counts bytes, read and written; it stops the run by raising. With `force` an existing
    `target` is replaced once the new one is whole; after an error nothing of it is left. No code of the source is run.
    Raises CheckpointError for a file that is anything else (it lists every deviation), InputError for a wrong setting.
    """
    source, target = Path(source), Path(target)
    check_settings(source, target, dtype, force)
    with OPENERS[sniff(source)](source) as file:
        config = config or config_of(file) or HeadConfig()
        expected = layout_of(meta_head(config))
        found = match(file.tensors, expected, source.name, OWNER)
        dtype = dtype or common_dtype([file.tensors[key].dtype for key in found.keys.values()])
        layout = {name: TensorInfo(dtype, info.shape) for name, info in expected.items()}
        size = sum(map(nbytes, layout.values()))
        tick = _counter(progress, source.stat().st_size + size)
        digest = _sha256(source, tick)
        metadata = {key: file.metadata.get(key, text) for key, text in PUBLISHED.items()}
        metadata |= {"source": source.name, "source_sha256": digest, "converted_by": f"ldznet {__version__}"}
        metadata |= own_metadata(config)
        stream_tensors(target, layout, _reader(file, found, dtype), metadata, tick)
    parameters = sum(torch.Size(info.shape).numel() for info in layout.values())
    return ConversionReport(
        target, found.format.title, len(layout), parameters, dtype, size, digest, len(found.ignored)
    )


def check_settings(source: Path, target: Path, dtype: torch.dtype | None, force: bool) -> None:
    require_no_url(source, "a checkpoint")
    if dtype not in (None, torch.float16, torch.bfloat16, torch.float32):
        raise InputError(
            f"Expected float16, bfloat16 or float32, got {dtype!r}. Leave it out to keep the source's own."
        )
    if target.is_dir() or not target.absolute().parent.is_dir():
        raise InputError(f"Expected a file in a folder that exists, got {target}. Name the .safetensors to write.")
    if target.exists() and source.exists() and target.samefile(source):
        raise InputError(f"Expected another file than the source, got {target} for both. Choose another name.")
    if target.exists() and not force:
        raise InputError(f"Expected a new file, but {target} exists. Add --force to replace it.")


def _counter(progress: Progress | None, total: int) -> Callable[[int], None]:
    done = 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total)

    return tick


def _sha256(path: Path, tick: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            tick(len(chunk))
    return digest.hexdigest()


def _reader(file: TensorFile, found: Match, dtype: torch.dtype) -> Callable[[str], Tensor]:
    def read(name: str) -> Tensor:
        tensor = file.read(found.keys[name]).to(dtype)
        if not tensor.float().isfinite().all():
            raise CheckpointError(
                f"Expected finite weights, got infinity or NaN in {name} as {dtype}. Convert to float32; "
                "if that says the same, the file is damaged: download it again."
            )
        return tensor

    return read
