"""A diffusers folder whose files hold something else: refused in our words, before networks are built."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hosts import small

from ldznet import open_host
from ldznet.errors import LDZNetError


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.diffusers_folder(tmp_path_factory.mktemp("folder"))


def setting(**fields: Any) -> Callable[[bytes], bytes]:
    """Changes fields of a JSON object."""
    return lambda content: json.dumps({**json.loads(content), **fields}).encode()


DAMAGE: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("unet/config.json", lambda content: b"[]"),
    ("unet/config.json", lambda content: b"[" * 100_000),
    ("unet/config.json", lambda content: b"\xff\xfe"),
    ("unet/config.json", setting(layers_per_block=10**8)),
    ("unet/config.json", setting(layers_per_block={"a": []})),
    ("unet/config.json", setting(cross_attention_dim=[{"a": 1}])),
    ("unet/config.json", setting(block_out_channels=[32] * 20_000)),
    ("unet/config.json", setting(block_out_channels=[10**9, 64, 64, 64])),
    ("unet/config.json", setting(_class_name="\x1b[2J" * 1000)),
    ("unet/config.json", setting(in_channels=[4])),
    ("vae/config.json", setting(layers_per_block=10**8)),
    ("vae/config.json", setting(latent_channels=10**9)),
    ("text_encoder/config.json", setting(num_hidden_layers=10**8)),
    ("text_encoder/config.json", setting(hidden_size=10**9)),
    ("text_encoder/config.json", setting(hidden_size="wide")),
    ("scheduler/scheduler_config.json", lambda content: b"3"),
    ("tokenizer/tokenizer.json", lambda content: b"[]"),
    ("tokenizer/tokenizer.json", lambda content: b"{}"),
    ("tokenizer/tokenizer.json", lambda content: content[:-30]),
    ("tokenizer/tokenizer.json", setting(model={"vocab": {}, "merges": []})),
    ("tokenizer/tokenizer.json", setting(model={"vocab": [], "merges": 3})),
    ("tokenizer/tokenizer.json", lambda content: b"[" * 100_000),
    ("tokenizer/tokenizer_config.json", lambda content: b"[]"),
    ("tokenizer/tokenizer_config.json", lambda content: b'{"pad_token": 3}'),
]


def split(folder: Path) -> None:
    """Writes a folder's tokenizer.json as older programs did: vocab.json and merges.txt."""
    model = json.loads((folder / "tokenizer/tokenizer.json").read_bytes())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "tokenizer/vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    (folder / "tokenizer/merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a\nb c d e\n"])
@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_damaged_tokenizer_of_two_files(name: str, content: bytes, whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole, tmp_path / "folder")
    split(folder)
    open_host(folder)
    (folder / "tokenizer" / name).write_bytes(content)
    with pytest.raises(LDZNetError, match=r"Expected .*got "):
        open_host(folder)


@pytest.mark.parametrize(("name", "change"), DAMAGE, ids=[f"{i} {name}" for i, (name, _) in enumerate(DAMAGE)])
def test_a_damaged_folder_is_an_error_of_ours(
    name: str, change: Callable[[bytes], bytes], whole: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(whole, tmp_path / "folder")
    if not (folder / name).exists():
        (folder / name).write_bytes(b"{}")
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    with pytest.raises(LDZNetError, match=r"Expected .*(got|missing)") as error:
        open_host(folder)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1500
