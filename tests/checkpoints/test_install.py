"""install.py as hosts and people call it: a process of its own, -I, from another folder, from inside custom_nodes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import making
from safetensors.torch import load_file

from ldznet.checkpoints import load_head

ROOT = Path(__file__).parents[2]


def call(*arguments: object, cwd: Path, pack: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(pack / "install.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def head_file(tmp_path_factory) -> Path:
    """A head of ours, which converts under its own configuration: the published one would need gigabytes."""
    from ldznet.checkpoints import load, save_tensors

    path = tmp_path_factory.mktemp("source") / "head.safetensors"
    save_tensors(making.head_state(), path, load.own_metadata(making.SMALL))
    return path


@pytest.fixture
def comfy_pack(tmp_path: Path) -> Path:
    """This pack as it lies in a ComfyUI: only what git would bring, under another folder's name."""
    pack = tmp_path / "ComfyUI" / "custom_nodes" / "ComfyUI-LDZNet"
    ignore = shutil.ignore_patterns("__pycache__", "weights")
    shutil.copytree(ROOT / "ldznet", pack / "ldznet", ignore=ignore)
    shutil.copy(ROOT / "install.py", pack)
    return pack


def test_converts_beside_the_file_from_another_folder(head_file: Path, tmp_path: Path) -> None:
    source = shutil.copy(head_file, tmp_path / "mine.safetensors")
    (tmp_path / "elsewhere").mkdir()
    result = call("convert", source, "--dtype", "float16", cwd=tmp_path / "elsewhere")
    target = tmp_path / "LDZNet_txt2mask.safetensors"
    assert (result.returncode, result.stderr) == (0, "")
    assert f"Wrote {target}" in result.stdout
    assert "100 %" in result.stdout
    assert load_file(target)["out.2.bias"].dtype == torch.float16
    assert load_head(target).head_config == making.SMALL


def test_converts_into_the_model_folder_of_comfyui(head_file: Path, comfy_pack: Path, tmp_path: Path) -> None:
    result = call("convert", os.path.relpath(head_file, tmp_path), cwd=tmp_path, pack=comfy_pack)
    target = tmp_path / "ComfyUI" / "models" / "ldznet" / "LDZNet_txt2mask.safetensors"
    assert result.returncode == 0, result.stderr
    assert f"Wrote {target}" in result.stdout
    assert target.exists()


def test_shrinks_over_the_model_that_it_started_from(tmp_path: Path) -> None:
    from ldznet.checkpoints.load import WEIGHTS

    head, base = (shutil.copy(WEIGHTS / f"{name}.safetensors", tmp_path) for name in ("ldznet", "unet"))
    result = call("shrink", head, base, "--size", "3", cwd=tmp_path)
    target = tmp_path / "LDZNet_txt2mask_small.safetensors"
    assert (result.returncode, result.stderr) == (0, "")
    assert f"Wrote {target} (3.0 MB, " in result.stdout
    assert load_head(target).head_config.network == "delta"
    refused = call("shrink", base, base, "other.safetensors", cwd=tmp_path)
    assert refused.returncode == 2
    assert "seems to be a Stable Diffusion UNet" in refused.stderr


def test_an_existing_output_needs_force(head_file: Path, tmp_path: Path) -> None:
    target = tmp_path / "head.safetensors"
    target.write_bytes(b"mine")
    refused = call("convert", head_file, target, cwd=tmp_path)
    assert refused.returncode == 2
    assert "exists. Add --force" in refused.stderr
    assert target.read_bytes() == b"mine"
    assert call("convert", head_file, target, "--force", cwd=tmp_path).returncode == 0
    assert load_head(target).head_config == making.SMALL


def test_wrong_input_is_one_line_and_2(tmp_path: Path) -> None:
    torch.save({"lora_unet_x.lora_down.weight": torch.ones(1)}, tmp_path / "lora.ckpt")
    for name, words in {"lora.ckpt": "seems to be a LoRA", "none.ckpt": "could not open"}.items():
        result = call("convert", name, cwd=tmp_path)
        assert result.returncode == 2
        assert words in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert call("convert", cwd=tmp_path).returncode == 2
    assert [path.name for path in tmp_path.iterdir()] == ["lora.ckpt"]


def test_without_arguments_it_checks_and_makes_the_folder(comfy_pack: Path, tmp_path: Path) -> None:
    result = call(cwd=tmp_path, pack=comfy_pack)
    assert (result.returncode, result.stderr) == (0, "")
    assert "LDZNet: ready." in result.stdout
    assert "convert LDZNet_txt2mask.ckpt" in result.stdout
    assert (tmp_path / "ComfyUI" / "models" / "ldznet").is_dir()


def test_an_a1111_has_its_folder_too(tmp_path: Path) -> None:
    pack = tmp_path / "webui" / "extensions" / "pack"
    pack.mkdir(parents=True)
    (tmp_path / "webui" / "launch.py").touch()
    shutil.copy(ROOT / "install.py", pack)
    result = call(cwd=tmp_path, pack=pack)
    assert (result.returncode, result.stderr) == (0, "")
    assert "LDZNet: ready." in result.stdout
    assert (tmp_path / "webui" / "models" / "ldznet").is_dir()


def test_without_arguments_outside_a_host_it_makes_nothing(tmp_path: Path) -> None:
    pack = tmp_path / "extensions" / "pack"
    pack.mkdir(parents=True)
    shutil.copy(ROOT / "install.py", pack)
    assert call(cwd=tmp_path, pack=pack).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["extensions"]
