"""Weights in float8 with a scale beside them: multiplied by it wherever they are read, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import making
from checkpoints.making import SMALL
from safetensors.torch import save_file

from ldznet.checkpoints import load, load_head, save_tensors
from ldznet.checkpoints.convert import convert
from ldznet.checkpoints.load import head_info
from ldznet.errors import CheckpointError
from ldznet.hosts import single_file

FLOAT8 = torch.float8_e4m3fn


def scaled(state: dict[str, torch.Tensor], scale: str = "scale_weight") -> dict[str, torch.Tensor]:
    """`state` as ComfyUI saves it in float8: matrices divided by a scale that spreads them over float8's range."""
    out = {"scaled_fp8": torch.zeros(2).to(FLOAT8)}
    for name, tensor in state.items():
        out[name] = tensor
        if name.endswith(".weight") and tensor.ndim == 2:
            factor = tensor.abs().max() / 448
            out[name] = (tensor / factor).to(FLOAT8)
            out[f"{name.removesuffix('weight')}{scale}"] = factor
            out[f"{name.removesuffix('weight')}scale_input"] = torch.tensor(1.0)
    return out


def in_float8(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What `scaled` gives back when it is read: within float8's three bits of `state`."""
    loose = scaled(state)
    scales = {n.removesuffix("scale_weight") + "weight": t for n, t in loose.items() if n.endswith("scale_weight")}
    return {name: loose[name].float() * scales.get(name, torch.tensor(1.0)) for name in state}


@pytest.mark.parametrize("scale", ["scale_weight", "weight_scale"])
def test_a_head_is_read_with_its_scales(scale: str, tmp_path: Path) -> None:
    state = making.head_state()
    save_tensors(scaled(state, scale), tmp_path / "a.safetensors", load.own_metadata(SMALL))
    expected = in_float8(state)
    loaded = load_head(tmp_path / "a.safetensors").state_dict()
    assert all(torch.equal(loaded[name], expected[name]) for name in state)
    assert max((loaded[name] - state[name]).abs().max() for name in state) < 0.02  # 0.05 · 4 deviations / 16
    assert head_info(tmp_path / "a.safetensors").parameters == sum(tensor.numel() for tensor in state.values())


@pytest.mark.skipif(not making.SAVES_FLOAT8, reason="this torch cannot write float8 into a pickle")
def test_a_pickle_is_converted_with_its_scales(tmp_path: Path) -> None:
    state = making.head_state()
    torch.save({"state_dict": making.renamed(scaled(state), "lightning")}, tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "a.safetensors", torch.float32, config=SMALL)
    loaded, expected = load_head(tmp_path / "a.safetensors").state_dict(), in_float8(state)
    assert all(torch.equal(loaded[name], expected[name]) for name in state)


def test_a_model_in_one_file_is_read_with_its_scales(tmp_path: Path) -> None:
    state = {"model.diffusion_model.a.weight": torch.randn(3, 4), "model.diffusion_model.a.bias": torch.ones(3)}
    save_file(scaled(state), tmp_path / "a.safetensors")
    with single_file.open_file(tmp_path / "a.safetensors") as file:
        part = single_file.read_part(file, "model.diffusion_model.")
    expected = in_float8(state)
    assert part.keys() == state.keys()
    assert all(torch.equal(part[name], expected[name]) for name in state)


def test_a_scale_for_each_row(tmp_path: Path) -> None:
    weight, scale = torch.tensor([[1.0, 2.0], [4.0, 8.0]]), torch.tensor([[3.0], [0.5]])
    save_file({"u.weight": weight.to(FLOAT8), "u.weight_scale": scale}, tmp_path / "a.safetensors")
    with single_file.open_file(tmp_path / "a.safetensors") as file:
        assert file.tensors.keys() == {"u.weight"}
        assert file.read("u.weight").tolist() == [[3, 6], [2, 4]]


WRONG = {
    "of blocks": {"u.weight_scale_inv": torch.ones(2, 2)},
    "of other rows": {"u.scale_weight": torch.ones(3)},
    "of whole numbers": {"u.scale_weight": torch.ones(1, dtype=torch.int64)},
    "of unknown meaning": {"u.weight": torch.ones(4, 4, dtype=torch.int8), "u.weight_scale": torch.ones(4)},
}


@pytest.mark.parametrize("name", WRONG)
def test_a_scale_that_is_not_understood_is_refused(name: str, tmp_path: Path) -> None:
    save_file({"u.weight": torch.ones(4, 4).to(FLOAT8), **WRONG[name]}, tmp_path / "a.safetensors")
    words = r"or one for each of their rows, in a.safetensors, got u\.\w*scale\w* \(.*Take the model in float16"
    with pytest.raises(CheckpointError, match=words), single_file.open_file(tmp_path / "a.safetensors"):
        pass


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_is_positive(scale: float, tmp_path: Path) -> None:
    tensors = {"u.weight": torch.ones(4, 4).to(FLOAT8), "u.scale_weight": torch.tensor(scale)}
    save_file(tensors, tmp_path / "a.safetensors")
    with (
        single_file.open_file(tmp_path / "a.safetensors") as file,
        pytest.raises(CheckpointError, match=r"a positive scale in u\.scale_weight"),
    ):
        file.read("u.weight")


def test_float8_without_scales_and_scales_without_float8_are_left_alone(tmp_path: Path) -> None:
    tensors = {"u.weight": torch.ones(2).to(FLOAT8), "v.weight": torch.ones(2), "v.scale": torch.ones(2)}
    save_file(tensors, tmp_path / "a.safetensors")
    with single_file.open_file(tmp_path / "a.safetensors") as file:
        assert {name: info.dtype for name, info in file.tensors.items()} == {n: t.dtype for n, t in tensors.items()}


def test_a_head_in_float8_and_float16_has_a_dtype(tmp_path: Path) -> None:
    state = {n: t.to(FLOAT8) if n.endswith(".weight") else t.half() for n, t in making.head_state().items()}
    save_tensors(state, tmp_path / "a.safetensors", load.own_metadata(SMALL))
    assert head_info(tmp_path / "a.safetensors").dtype is torch.float16
    assert {p.dtype for p in load_head(tmp_path / "a.safetensors", device="meta").parameters()} == {torch.float16}
