"""Heads from files: mapped, checked name by name, in the dtype asked for; and wrong files called by their name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from checkpoints import making
from checkpoints.making import SMALL
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from ldznet.checkpoints import load, load_head, load_weights, save_head, save_tensors
from ldznet.checkpoints.formats import TensorInfo
from ldznet.config import HEAD_BOUNDS, UNET_BOUNDS, HeadConfig, UNetConfig
from ldznet.errors import CheckpointError, InputError
from ldznet.models import LDZNet, RGBNet, build_head

METADATA = {"licence": "Apache-2.0", "trained_on": "rendered scenes"}


@pytest.fixture(scope="module")
def head() -> LDZNet:
    head = build_head(SMALL)
    head.load_state_dict(making.head_state())
    return head.eval()


@pytest.fixture
def path(head: LDZNet, tmp_path: Path) -> Path:
    save_head(head, tmp_path / "head.safetensors", METADATA, torch.float32)
    return tmp_path / "head.safetensors"


def test_a_head_is_told_by_its_header_alone(path: Path, head: LDZNet) -> None:
    about = load.head_info(path)
    assert (about.config, about.dtype) == (SMALL, torch.float32)
    assert about.parameters == sum(p.numel() for p in head.parameters())
    assert about.metadata == {**METADATA, "ldznet_format": "1"}
    assert load.head_info("tiny").config.has_presence
    assert load.head_info("attention").parameters == 0
    with pytest.raises(CheckpointError, match="which does not exist"):
        load.head_info("none.safetensors")


@pytest.mark.parametrize("network", ["rgbnet", "znet", "ldznet"])
@pytest.mark.parametrize("wide", [False, True])
def test_a_head_comes_back_as_it_was_saved(network: str, wide: bool, tmp_path: Path) -> None:
    more = {"mask_channels": (16, 8, 8), "has_presence": True} if wide else {}
    config = HeadConfig(network, unet=SMALL.unet, host_unet=SMALL.host_unet, latent_grid=(16, 16), **more)
    saved = build_head(config)
    save_head(saved, tmp_path / "a.safetensors", METADATA, torch.float32)
    loaded = load_head(tmp_path / "a.safetensors")
    assert type(loaded) is (RGBNet if network == "rgbnet" else LDZNet)
    assert loaded.head_config == config
    state = saved.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())


def test_a_loaded_head_runs_and_gives_the_same_logits(head: LDZNet, path: Path) -> None:
    taps = {b: torch.randn(1, s.channels, -(-16 // s.stride), -(-16 // s.stride)) for b, s in SMALL.tap_specs.items()}
    inputs = torch.randn(1, 4, 16, 16), torch.zeros(1, dtype=torch.int64), torch.randn(1, 77, 16), taps
    with torch.no_grad():
        assert torch.equal(load_head(str(path))(*inputs), head(*inputs))


def test_it_is_frozen_and_in_evaluation(path: Path) -> None:
    head = load_head(path)
    assert not head.training
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in head.parameters())


def test_dtypes(head: LDZNet, tmp_path: Path) -> None:
    save_head(head, tmp_path / "half.safetensors", METADATA)
    dtypes = {None: torch.float32, torch.float16: torch.float16, torch.bfloat16: torch.bfloat16}
    for asked, got in dtypes.items():
        loaded = load_head(tmp_path / "half.safetensors", device="cpu", dtype=asked)
        assert {parameter.dtype for parameter in loaded.parameters()} == {got}
    on_meta = load_head(tmp_path / "half.safetensors", device="meta")
    assert {parameter.dtype for parameter in on_meta.parameters()} == {torch.float16}


def test_nothing_is_initialised(path: Path, monkeypatch) -> None:
    """No layer gets real memory before its weights are there."""
    made: list[str] = []
    real = nn.Parameter.__new__
    monkeypatch.setattr(
        nn.Parameter,
        "__new__",
        lambda cls, data=None, *a, **k: made.append(data.device.type) or real(cls, data, *a, **k),
    )
    load_head(path)
    assert made.count("meta") >= made.count("cpu")
    assert made.count("cpu") == len(making.head_state())  # the mapped tensors, each once


def test_an_uncast_head_is_the_mapped_file(path: Path) -> None:
    pointers = sorted((p.data_ptr(), p.nbytes) for p in load_head(path).parameters())
    begin, end = pointers[0][0], sum(pointers[-1])
    assert end - begin == sum(size for _, size in pointers)


def test_layers_come_from_operations(path: Path) -> None:
    class Host(nn.Module):
        class Linear(nn.Linear):
            pass

        Conv1d, Conv2d, ConvTranspose2d = nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d
        GroupNorm, LayerNorm = nn.GroupNorm, nn.LayerNorm

    assert type(load_head(path, operations=Host).time_embed[0]) is Host.Linear


def test_embedded_names_resolve(path: Path, monkeypatch, tmp_path: Path) -> None:
    assert set(load.EMBEDDED) == {"tiny", "tiny-light", "tiny-znet"}
    monkeypatch.setitem(load.EMBEDDED, "tiny", path)
    assert load_head("tiny").head_config == SMALL
    names = "attention, concepts, tiny, tiny-light, tiny-znet"
    with pytest.raises(CheckpointError, match=f"one of {names}, got tinny, which does not exist"):
        load_head("tinny")


@pytest.mark.parametrize("name", ["tiny", "tiny-light", "tiny-znet"])
def test_embedded_heads_load(name: str) -> None:
    if not load.EMBEDDED[name].exists():
        pytest.skip("not trained yet")
    assert load_head(name).head_config.network == {"tiny": "ldznet", "tiny-light": "light", "tiny-znet": "znet"}[name]


def test_the_published_head_needs_no_metadata(tmp_path: Path, monkeypatch) -> None:
    """Names and shapes alone decide; the published head is played by a small one."""
    monkeypatch.setattr(load, "HeadConfig", lambda: SMALL)
    save_file(making.head_state(), tmp_path / "a.safetensors", {"format": "pt"})
    assert load_head(tmp_path / "a.safetensors").head_config == SMALL


def test_other_heads_without_metadata_are_refused(tmp_path: Path) -> None:
    save_file(making.head_state(), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"seems to be an LD-ZNet head, and deviates(.|\n)*wrong shape"):
        load_head(tmp_path / "a.safetensors")


def test_a_checkpoint_is_sent_to_the_converter(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "LDZNet_txt2mask.ckpt")
    with pytest.raises(CheckpointError, match=r"`python install.py convert LDZNet_txt2mask.ckpt`"):
        load_head(tmp_path / "LDZNet_txt2mask.ckpt")


def test_a_safetensors_of_something_else_is_named(tmp_path: Path) -> None:
    save_file({"lora_unet_x.lora_down.weight": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"seems to be a LoRA\. Nothing in it fits"):
        load_head(tmp_path / "a.safetensors")


def test_every_deviation_is_listed(path: Path, tmp_path: Path) -> None:
    state = making.head_state()
    state["stranger"] = state.pop("out.2.bias")
    state["final.0.bias"] = torch.ones(2)
    save_tensors(state, tmp_path / "b.safetensors", load.own_metadata(SMALL))
    with pytest.raises(CheckpointError) as error:
        load_head(tmp_path / "b.safetensors")
    lines = ["missing (1): out.2.bias", "unexpected (1): stranger"]
    lines += ["wrong shape (1): final.0.bias (expected 1 float32, got 2 float32)"]
    assert [line.strip() for line in str(error.value).splitlines()[1:]] == lines


BAD_METADATA = [
    ({"ldznet_format": "2", "config": SMALL.to_json()}, 'got format "2". Update the pack'),
    ({"ldznet_format": "1"}, "with its configuration"),
    ({"ldznet_format": "1", "config": "{"}, "configuration of an LD-ZNet head as JSON"),
    ({"ldznet_format": "1", "config": '{"colour": 3}'}, "colour"),
    ({"ldznet_format": "1", "config": '{"network": "sdxl"}'}, 'concatenation, light, delta, got "sdxl"'),
    ({"ldznet_format": "1", "config": '{"blocks": "input.8"}'}, "as blocks, got 'input.8'"),
    ({"ldznet_format": "1", "config": "[" * 100_000}, "configuration of an LD-ZNet head as JSON"),
    ({"ldznet_format": "\x1b[2J" + "9" * 10_000}, r'format "\\x1b.2J9+…"'),
]


FIELDS = [  # of a configuration, as JSON: what is believed by nobody
    ('{"network": ["a"]}', "str as network"),
    ('{"timestep": "400"}', "int as timestep, got '400'"),
    ('{"timestep": 5000}', "0 to 999 as timestep, got 5000"),
    ('{"timestep": -1}', "0 to 999 as timestep, got -1"),
    ('{"timestep_range": [300, 1000]}', r"0 to 999 as timestep_range, got \(300, 1000\)"),
    ('{"timestep_range": [500, 300]}', "the lower end first as timestep_range"),
    ('{"latent_grid": [48]}', "as latent_grid"),
    ('{"latent_grid": [0, 48]}', "1 to 512 as latent_grid"),
    ('{"latent_grid": [100000, 100000]}', "1 to 512 as latent_grid"),
    ('{"size_multiple": 0}', "8 to 512 in steps of 8 as size_multiple, got 0"),
    ('{"size_multiple": -32}', "8 to 512 in steps of 8 as size_multiple, got -32"),
    ('{"size_multiple": 12}', "8 to 512 in steps of 8 as size_multiple, got 12"),
    ('{"size_multiple": 1000000000}', "8 to 512 in steps of 8 as size_multiple, got 1000000000"),
    ('{"has_presence": 1}', "bool as has_presence"),
    ('{"presence_threshold": NaN}', "0 to 1 as presence_threshold, got nan"),
    ('{"presence_threshold": 5}', "0 to 1 as presence_threshold, got 5"),
    ('{"presence_threshold": -Infinity}', "0 to 1 as presence_threshold, got -inf"),
    ('{"template": "a photo"}', "one {} for the phrase in 300 characters at most as template, got 'a photo'"),
    ('{"template": "{} and {}"}', "one {} for the phrase"),
    (json.dumps({"template": "{}" + "a" * 300}), "one {} for the phrase"),
    ('{"mask_channels": []}', "as mask_channels"),
    ('{"mask_channels": [64, 32]}', "three, one before each doubling as mask_channels"),
    ('{"mask_channels": [1000000000, 1, 1]}', "1 to 1024 as mask_channels"),
    ('{"blocks": []}', "1 to 64 names as blocks"),
    ('{"blocks": ["input.99"]}', "one of input.1, .* as blocks, got 'input.99'"),
    ('{"blocks": ["input.3"]}', "one of input.1, .* as blocks, got 'input.3'"),
    ('{"unet": {"attention_downsampling": [1]}}', "one of input.1, .* as blocks, got 'input.8'"),
    ('{"unet": {"num_heads": 8.0}}', "int as num_heads, got 8.0"),
    ('{"unet": {"num_heads": 7}}', "a divisor of 320 channels as num_heads, got 7"),
    (
        '{"host_unet": {"model_channels": 32}, "unet": {"num_heads": 5}}',
        "a divisor of 128 channels as num_heads, got 5",
    ),
    ('{"unet": {"model_channels": 33}}', "32 to 2048 in steps of 32 as model_channels, got 33"),
    ('{"unet": {"model_channels": 0}}', "as model_channels, got 0"),
    ('{"unet": {"num_res_blocks": 100000000}}', "1 to 4 as num_res_blocks, got 100000000"),
    ('{"host_unet": {"num_res_blocks": 100000000}}', "1 to 4 as num_res_blocks, got 100000000"),
    (json.dumps({"unet": {"channel_mult": [1] * 20_000}}), "1 to 16 as channel_mult, got .{120}\\."),
    ('{"unet": {"channel_mult": []}}', "as channel_mult"),
    ('{"unet": {"context_dim": 0}}', "as context_dim, got 0"),
    ('{"unet": {"in_channels": -4}}', "1 to 1024 as in_channels, got -4"),
    ('{"unet": {"out_channels": 9000000000}}', "1 to 1024 as out_channels"),
    ('{"unet": {"attention_downsampling": [0]}}', "1 to 64 as attention_downsampling"),
]


@pytest.mark.parametrize(("config", "words"), FIELDS)
def test_a_configuration_that_lies_is_not_believed(config: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=rf"configuration of an LD-ZNet head as JSON, got .*{words}"):
        HeadConfig.from_json(config)


def test_every_number_of_a_configuration_has_a_bound() -> None:
    free = {
        HeadConfig: {"network", "unet", "host_unet", "blocks", "template", "has_presence", "ranks"},
        UNetConfig: set(),
    }
    for kind, bounds in ((HeadConfig, HEAD_BOUNDS), (UNetConfig, UNET_BOUNDS)):
        assert {field.name for field in dataclasses.fields(kind)} == free[kind] | bounds.keys()


@pytest.mark.parametrize(("metadata", "words"), BAD_METADATA)
def test_metadata_that_cannot_be(metadata: dict[str, str], words: str, tmp_path: Path) -> None:
    save_tensors(making.head_state(), tmp_path / "a.safetensors", metadata)
    with pytest.raises(CheckpointError, match=words):
        load_head(tmp_path / "a.safetensors")


def test_save_head_takes_text_alone(head: LDZNet, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="metadata of text alone"):
        save_head(head, tmp_path / "a.safetensors", {"steps": 17_000})  # type: ignore[dict-item]
    assert not any(tmp_path.iterdir())


def test_any_module_can_be_filled(tmp_path: Path) -> None:
    saved = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    save_tensors(saved.state_dict(), tmp_path / "a.safetensors", METADATA)
    with torch.device("meta"):
        module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    loaded = load_weights(module, tmp_path / "a.safetensors", dtype=torch.float16)
    assert loaded[1].num_batches_tracked.dtype is torch.int64
    assert torch.equal(loaded[0].weight, saved[0].weight.half())
    with pytest.raises(CheckpointError, match=r"Expected the 2 tensors of Linear in a.safetensors"):
        load_weights(nn.Linear(2, 2), tmp_path / "a.safetensors")


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_flipped_bytes_in_the_header(data: st.DataObject, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("flip")
    layout = {"a": TensorInfo(torch.float32, (2,))}
    text = json.dumps({name: info.shape for name, info in layout.items()})
    save_tensors({"a": torch.ones(2)}, folder / "good.safetensors", {**load.own_metadata(SMALL), "text": text})
    content = bytearray((folder / "good.safetensors").read_bytes())
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=3)):
        content[position] = data.draw(st.integers(0, 255))
    (folder / "bad.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError):
        load_head(folder / "bad.safetensors")
