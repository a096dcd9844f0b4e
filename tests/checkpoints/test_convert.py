"""The published checkpoint becomes one safetensors: exactly its averaged weights, whole or not, in little memory."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import making
from checkpoints.making import SMALL
from safetensors.torch import load_file, save_file

from ldznet.checkpoints import load_head, save_tensors
from ldznet.checkpoints.convert import convert
from ldznet.checkpoints.files import open_safetensors
from ldznet.config import HeadConfig, UNetConfig
from ldznet.errors import CheckpointError, InputError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("published") / "LDZNet_txt2mask.ckpt"
    making.save_with_foreign_class(making.lightning(making.published()), path)
    return path


def test_holds_the_averaged_head_alone(checkpoint: Path, tmp_path: Path) -> None:
    report = convert(checkpoint, tmp_path / "head.safetensors", config=SMALL)
    tensors = load_file(tmp_path / "head.safetensors")
    expected = making.head_state(seed=0)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert report.tensors == len(expected)
    assert report.ignored == len(expected) + len(making.extras())
    assert report.size == 4 * report.parameters == sum(t.nbytes for t in tensors.values())
    assert report.dtype is torch.float32


def test_metadata_says_where_it_comes_from(checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "head.safetensors", config=SMALL)
    with open_safetensors(tmp_path / "head.safetensors") as file:
        metadata = dict(file.metadata)
    assert metadata.pop("converted_by").startswith("ldznet ")
    assert metadata.pop("licence").startswith("Apache-2.0")
    assert HeadConfig.from_json(metadata.pop("config")) == SMALL
    assert metadata == {
        "ldznet_format": "1",
        "source": "LDZNet_txt2mask.ckpt",
        "source_sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "trained_on": "PhraseCut",
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_casts(dtype: torch.dtype, checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "head.safetensors", dtype, config=SMALL)
    tensors = load_file(tmp_path / "head.safetensors")
    assert all(torch.equal(tensors[name], tensor.to(dtype)) for name, tensor in making.head_state().items())


def test_takes_the_plain_weights_where_there_is_no_average(tmp_path: Path) -> None:
    state = making.renamed(making.head_state(), "lightning")
    torch.save(making.lightning(state), tmp_path / "a.ckpt")
    report = convert(tmp_path / "a.ckpt", tmp_path / "head.safetensors", config=SMALL)
    assert "without averaged weights" in report.source_format
    assert torch.equal(load_file(tmp_path / "head.safetensors")["out.2.weight"], making.head_state()["out.2.weight"])


def test_takes_the_published_tensors_from_safetensors_too(tmp_path: Path) -> None:
    save_file(making.published(), tmp_path / "a.safetensors")
    report = convert(tmp_path / "a.safetensors", tmp_path / "head.safetensors", config=SMALL)
    assert (report.tensors, report.ignored) == (756, 756 + len(making.extras()))


def test_a_head_of_ours_keeps_its_configuration_and_licence(checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "a.safetensors", config=SMALL)
    with open_safetensors(tmp_path / "a.safetensors") as file:
        tensors = {name: file.read(name) for name in file.tensors}
        save_tensors(tensors, tmp_path / "b.safetensors", {**file.metadata, "licence": "mine", "trained_on": "scenes"})
    convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors", torch.float16)
    with open_safetensors(tmp_path / "c.safetensors") as file:
        assert (file.metadata["licence"], file.metadata["trained_on"]) == ("mine", "scenes")
    assert load_head(tmp_path / "c.safetensors").head_config == SMALL


def test_deviations_leave_no_file(checkpoint: Path, tmp_path: Path) -> None:
    state = making.published()
    del state["model_ema.diffusion_modelfinal0bias"]
    torch.save(making.lightning({**state, "stranger": torch.ones(1)}), tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError) as error:
        convert(tmp_path / "a.ckpt", tmp_path / "head.safetensors", config=SMALL)
    assert "missing (1): model_ema.diffusion_modelfinal0bias" in str(error.value)
    assert "unexpected (1): stranger" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_the_published_configuration_is_the_default(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"wrong shape \(\d+\): .* and \d+ more"):
        convert(checkpoint, tmp_path / "head.safetensors")


def test_infinity_is_not_written(tmp_path: Path) -> None:
    state = making.head_state()
    state["out.2.bias"].fill_(70_000)
    torch.save(making.renamed(state, "ema"), tmp_path / "a.ckpt")
    convert(tmp_path / "a.ckpt", tmp_path / "head.safetensors", torch.bfloat16, config=SMALL)
    before = (tmp_path / "head.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match=r"infinity or NaN in out.2.bias as torch.float16"):
        convert(tmp_path / "a.ckpt", tmp_path / "head.safetensors", torch.float16, config=SMALL, force=True)
    assert (tmp_path / "head.safetensors").read_bytes() == before


def test_an_existing_file_needs_force(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "head.safetensors"
    target.write_bytes(b"mine")
    with pytest.raises(InputError, match=r"Expected a new file, but .* exists. Add --force"):
        convert(checkpoint, target, config=SMALL)
    assert target.read_bytes() == b"mine"
    convert(checkpoint, target, config=SMALL, force=True)
    assert load_head(target).head_config == SMALL


def test_progress_counts_to_the_end_and_can_stop_the_run(checkpoint: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    convert(checkpoint, tmp_path / "head.safetensors", config=SMALL, progress=lambda *call: calls.append(call))
    done, totals = zip(*calls, strict=True)
    assert list(done) == sorted(done)
    assert set(totals) == {done[-1]}

    def stop(done: int, total: int) -> None:
        if done > 0.9 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint, tmp_path / "other.safetensors", config=SMALL, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["head.safetensors"]


def test_settings_are_checked_first(checkpoint: Path, tmp_path: Path) -> None:
    for target, dtype, words in [
        (checkpoint, None, "another file than the source"),
        (tmp_path, None, "a file in a folder that exists"),
        (tmp_path / "no" / "head.safetensors", None, "a file in a folder that exists"),
        (tmp_path / "head.safetensors", torch.int8, "float16, bfloat16 or float32"),
    ]:
        with pytest.raises(InputError, match=words):
            convert(checkpoint, target, dtype)
    with pytest.raises(CheckpointError, match="could not open"):
        convert(tmp_path / "none.ckpt", tmp_path / "head.safetensors")


HUNDRED = HeadConfig(
    unet=UNetConfig(model_channels=32, context_dim=64, out_channels=1), host_unet=UNetConfig(model_channels=32)
)

MEASURE = """
import sys, threading, time
from ldznet.checkpoints.convert import convert
from ldznet.checkpoints.load import meta_head
from ldznet.config import HeadConfig

def private():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

def watch():
    while not done.is_set():
        peaks.append(private())
        time.sleep(0.001)

source, target, config = sys.argv[1:]
config = HeadConfig.from_json(config)
meta_head(config)
before, peaks, done = private(), [0], threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
convert(source, target, config=config)
done.set()
watcher.join()
print(before, max(peaks))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="RssAnon is Linux's")
def test_private_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A file of 100 MB, with the published names. The budget of 3 GB for 7.4 GB would be 40 MB; we ask for 20.

    What is held: one tensor three times over (read, cast, compared; the largest has 1.2 MB, in the published head
    118 MB), a chunk of 1 MB while hashing, and the index. What torch and the empty network take is the same for any
    file, and is subtracted.
    """
    state = {**making.published(HUNDRED), "first_stage_model.decoder.conv_in.weight": torch.zeros(6_500_000)}
    making.save_with_foreign_class(making.lightning(state), tmp_path / "a.ckpt")
    del state
    size = (tmp_path / "a.ckpt").stat().st_size
    assert 95e6 < size < 115e6
    command = [sys.executable, "-c", MEASURE, tmp_path / "a.ckpt", tmp_path / "head.safetensors", HUNDRED.to_json()]
    before, peak = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert (peak - before) * 1024 < 0.2 * size
    assert (tmp_path / "head.safetensors").stat().st_size > 0.3 * size
    print(f"RssAnon {before / 1024:.0f} MB before, {peak / 1024:.0f} MB at its peak")
