"""Good files with a few bytes changed, the same ones at every run: an error of ours, or success, and nothing else."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from adversarial import making
from checkpoints.making import SMALL, head_state, lightning
from PIL import Image, features
from safetensors.torch import save

from ldznet.checkpoints import load_head
from ldznet.checkpoints.load import head_info, own_metadata
from ldznet.config import HeadConfig
from ldznet.data import FolderDataset
from ldznet.data.folder import read_mask
from ldznet.errors import LDZNetError
from ldznet.hosts import single_file
from ldznet.images import Picture, open_picture

MUTATIONS = 40  # of each kind of file

INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """`content` after one to four of: a byte set, a bit flipped, a stretch dropped, doubled, or cut off at its end."""
    out = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        where, length = int(rng.integers(0, len(out) or 1)), int(rng.integers(1, 40))
        kind = rng.integers(0, 5)
        if kind == 0 and out:
            out[where] = int(rng.choice(INTERESTING))
        elif kind == 1 and out:
            out[where] ^= 1 << int(rng.integers(0, 8))
        elif kind == 2:
            del out[where : where + length]
        elif kind == 3:
            out[where:where] = out[where : where + length]
        elif rng.random() < 0.3:
            del out[where:]
    return bytes(out)


def picture(kind: str, mode: str = "RGB", **options: object) -> bytes:
    out = io.BytesIO()
    Image.radial_gradient("L").resize((40, 30)).convert(mode).save(out, kind, **options)
    return out.getvalue()


def read_all(path: Path) -> None:
    with single_file.open_file(path) as file:
        for name in file.tensors:
            file.read(name)


def program(change: Callable[[bytes], bytes]) -> bytes:
    """A torch zip whose pickle is changed and whose checksums are right."""
    out = io.BytesIO()
    torch.save(lightning({"a": torch.ones(3, 2), "b": torch.zeros(4).half()}), out)
    with zipfile.ZipFile(out) as archive:
        files = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    storages = {name.removeprefix("data/"): data for name, data in files.items() if name.startswith("data/")}
    return making.archive(change(files["data.pkl"]), storages)


def opened(path: Path) -> None:
    picture = open_picture(path)
    Picture.of(picture).at((16, 16))
    read_mask(path)


def configured(path: Path) -> None:
    HeadConfig.from_json(path.read_bytes().decode("latin-1"))


def indexed(path: Path) -> None:
    folder = path.with_suffix("")
    folder.mkdir(exist_ok=True)
    (folder / "index.jsonl").write_bytes(path.read_bytes())
    FolderDataset(folder)


def whole() -> dict[str, bytes]:
    """A good file of each kind, by the name that it gets."""
    state = head_state()
    tensors = io.BytesIO()
    torch.save(lightning({"a": torch.ones(3, 2), "b": torch.zeros(4).half()}), tensors)
    record = {"image": "a.png", "captions": ["x"], "masks": {"a dog": "m.png"}, "absent": ["a cat"]}
    files = {
        "head.safetensors": save({"a": torch.ones(2)}, own_metadata(SMALL)),
        "whole.safetensors": save(state, own_metadata(SMALL))[:200_000],
        "tensors.ckpt": tensors.getvalue(),
        "config.json": SMALL.to_json().encode(),
        "index.jsonl": json.dumps(record).encode(),
    }
    files |= {f"picture.{kind.lower()}": picture(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "DDS", "TGA")}
    files |= {"palette.png": picture("PNG", "P"), "alpha.png": picture("PNG", "LA"), "grey.tiff": picture("TIFF", "F")}
    for kind in ("WEBP", "AVIF", "JPEG2000"):
        if features.check({"JPEG2000": "jpg_2000"}.get(kind, kind.lower())):
            files[f"picture.{kind.lower()}"] = picture(kind)
    return files


FILES = whole()
OPENERS: dict[str, list[Callable[[Path], object]]] = {
    ".safetensors": [load_head, head_info, read_all],
    ".ckpt": [read_all],
    ".json": [configured],
    ".jsonl": [indexed],
}


def only_ours(path: Path) -> bool:
    """Whether opening `path` was refused at all; any error but ours fails the test by itself."""
    refused = False
    for opener in OPENERS.get(path.suffix, [opened]):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of Pillow, at what it then refuses
                opener(path)
        except LDZNetError as error:
            refused = True
            assert all(c.isprintable() or c == "\n" for c in str(error)), repr(error)  # noqa: PT017
            assert 40 < len(str(error)) < 6000  # noqa: PT017
    return refused


@pytest.mark.parametrize("name", FILES)
def test_a_mutated_file_is_an_error_of_ours_or_none(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(sorted(FILES).index(name))
    refused = 0
    for i in range(MUTATIONS):
        path = tmp_path / f"{i}{Path(name).suffix}"
        path.write_bytes(mutated(FILES[name], rng))
        refused += only_ours(path)
    assert refused  # or the changes touch nothing


@pytest.mark.filterwarnings("ignore:.*escape sequence")  # of pickletools, at text that a change has damaged
def test_a_mutated_program_is_an_error_of_ours_or_none(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    refused = 0
    for i in range(5 * MUTATIONS):
        (tmp_path / f"{i}.ckpt").write_bytes(program(lambda content: mutated(content, rng)))
        refused += only_ours(tmp_path / f"{i}.ckpt")
    assert refused > MUTATIONS
