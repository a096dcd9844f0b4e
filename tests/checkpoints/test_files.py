"""Safetensors of ours: valid for the official reader, written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldznet.checkpoints.files import DTYPES, MAGIC, open_safetensors, save_tensors, sniff, stream_tensors
from ldznet.checkpoints.formats import TensorInfo
from ldznet.errors import CheckpointError, InputError


def test_the_official_reader_reads_what_we_write(tmp_path: Path) -> None:
    tensors = {
        "byte": torch.arange(3, dtype=torch.uint8),
        "half": torch.randn(2, 5).half(),
        "scalar": torch.tensor(3.5),
        "none": torch.empty(0, 4),
        "bf16": torch.randn(3, 1).bfloat16(),
        "strided": torch.randn(4, 6).t(),
        "flags": torch.tensor([True, False]),
        "count": torch.tensor([2**40]),
        "wanted": torch.randn(2, requires_grad=True),
    }
    save_tensors(tensors, tmp_path / "a.safetensors", {"licence": "MIT", "title": "é"})
    back = load_file(tmp_path / "a.safetensors")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype for name, tensor in tensors.items())
    with open_safetensors(tmp_path / "a.safetensors") as file:
        assert file.metadata == {"licence": "MIT", "title": "é"}
        assert file.tensors["strided"] == TensorInfo(torch.float32, (6, 4))


def test_we_read_what_the_official_writer_writes(tmp_path: Path) -> None:
    save_file({str(dtype): torch.zeros(2, dtype=dtype) for dtype in DTYPES.values()}, tmp_path / "a.safetensors")
    with open_safetensors(tmp_path / "a.safetensors") as file:
        assert {name: str(info.dtype) for name, info in file.tensors.items()} == {
            str(d): str(d) for d in DTYPES.values()
        }
        assert file.metadata == {}


def test_tensors_outlive_the_open_file(tmp_path: Path) -> None:
    save_tensors({"a": torch.arange(1000.0)}, tmp_path / "a.safetensors", {})
    with open_safetensors(tmp_path / "a.safetensors") as file:
        tensor = file.read("a")
    assert tensor.sum() == 499_500


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors({"a": torch.zeros(2)}, path, {})
    before = path.read_bytes()

    def interrupted(name: str) -> torch.Tensor:
        if name == "b":
            raise KeyboardInterrupt
        return torch.ones(2)

    layout = dict.fromkeys(("a", "b"), TensorInfo(torch.float32, (2,)))
    with pytest.raises(KeyboardInterrupt):
        stream_tensors(path, layout, interrupted, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Check the folder and its free space"):
        save_tensors({}, tmp_path / "no" / "a.safetensors", {})


@pytest.mark.parametrize("metadata", [{"steps": 3}, {3: "steps"}, {"config": None}])
def test_metadata_is_text(tmp_path: Path, metadata: dict) -> None:
    with pytest.raises(InputError, match="metadata of text alone"):
        save_tensors({}, tmp_path / "a.safetensors", metadata)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("magic", "kind", "advice"), MAGIC)
def test_files_of_other_kinds_are_called_by_their_name(tmp_path: Path, magic: bytes, kind: str, advice: str) -> None:
    (tmp_path / "x.ckpt").write_bytes(magic + b"\n and so on")
    with pytest.raises(CheckpointError, match=f"got {kind}") as error:
        sniff(tmp_path / "x.ckpt")
    assert advice in str(error.value)


def test_what_is_no_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "noise").write_bytes(bytes([0, 1, 2, 250]))
    for name, words in {"empty": "an empty file", "noise": "begins with 00 01 02 fa", "none": "could not open"}.items():
        with pytest.raises(CheckpointError, match=words):
            sniff(tmp_path / name)
    with pytest.raises(CheckpointError, match="got the folder"):
        sniff(tmp_path)


def test_a_cut_safetensors_is_said_to_be_cut(tmp_path: Path) -> None:
    save_tensors({"a": torch.zeros(100)}, tmp_path / "a.safetensors", {})
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match="cut short"), open_safetensors(tmp_path / "a.safetensors"):
        pass
