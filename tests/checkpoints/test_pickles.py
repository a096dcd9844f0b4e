"""Torch pickles: what torch.save wrote is read exactly, and nothing that a pickle asks for ever runs."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from checkpoints import making
from hypothesis import given, settings
from hypothesis import strategies as st

from ldznet.checkpoints.files import open_safetensors
from ldznet.checkpoints.pickles import open_pickle
from ldznet.checkpoints.unpickling import GLOBALS
from ldznet.errors import CheckpointError


class Bomb:
    """Runs a command when it is unpickled by anyone who calls what a pickle names."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"echo > {self.marker}",)


def read_all(path: Path) -> dict[str, torch.Tensor]:
    opener = open_safetensors if path.suffix == ".safetensors" else open_pickle
    with opener(path) as file:
        return {name: file.read(name) for name in file.tensors}


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


STATE = {
    "float": torch.randn(3, 4),
    "half": torch.randn(5).half(),
    "bfloat": torch.randn(5).bfloat16(),
    "double": torch.randn(2, 2).double(),
    "long": torch.tensor(7),
    "flag": torch.tensor([True, False]),
    "parameter": torch.nn.Parameter(torch.randn(2)),
    "empty": torch.empty(0, 3),
    "transposed": torch.arange(12.0).reshape(3, 4).t(),
    "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "row": torch.arange(12.0).reshape(3, 4)[1],
    "expanded": torch.tensor([2.0]).expand(3, 3),
}
if making.SAVES_FLOAT8:
    STATE["float8"] = torch.randn(2, 3).to(torch.float8_e4m3fn)
    STATE["float8 of the other kind"] = torch.randn(4).to(torch.float8_e5m2)[1:]


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 1}, OrderedDict])
def test_reads_what_torch_saved(tmp_path: Path, wrap) -> None:
    tensors = read_all(saved(tmp_path / "a.ckpt", wrap(STATE)))
    assert tensors.keys() == STATE.keys()
    for name, tensor in STATE.items():
        assert torch.equal(tensors[name].double(), tensor.double()), name
        assert tensors[name].dtype == tensor.dtype


def test_reads_a_module_state_with_its_metadata(tmp_path: Path) -> None:
    state = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).state_dict()
    assert read_all(saved(tmp_path / "a.ckpt", {"state_dict": state})).keys() == state.keys()


def test_foreign_classes_need_not_exist(tmp_path: Path) -> None:
    making.save_with_foreign_class(making.lightning({"a": torch.ones(2)}), tmp_path / "a.ckpt")
    assert read_all(tmp_path / "a.ckpt")["a"].tolist() == [1, 1]


def test_a_bomb_beside_the_tensors_stays_inert(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.ckpt", making.lightning({"a": torch.ones(2)}, callbacks=[Bomb(tmp_path / "ran")]))
    assert read_all(path).keys() == {"a"}
    assert not (tmp_path / "ran").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "ran").exists()  # the bomb is live


def test_a_bomb_in_the_place_of_a_tensor_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.ckpt", {"state_dict": {"a": torch.ones(2), "b": Bomb(tmp_path / "ran"), "c": 3}})
    with pytest.raises(CheckpointError, match=r"got other objects: b \((posix|nt).system\), c \(int\)"):
        read_all(path)
    assert not (tmp_path / "ran").exists()


PROGRAMS = {  # hand-made pickles that return {} to whoever lets them
    "eval": b'cbuiltins\neval\n(S\'open("MARK", "w")\'\ntR0}.',
    "old eval": b'c__builtin__\neval\n(S\'open("MARK", "w")\'\ntR0}.',
    "instance": b"(S'echo > MARK'\nios\nsystem\n0}.",
    "new object": b"\x80\x02cos\nsystem\nU\x0becho > MARK\x85\x810}.",
    "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0becho > MARK\x85R0}.",
    "dotted": b"\x80\x04\x8c\x08builtins\x8c\x0deval.__call__\x93\x8c\x0dopen('MARK','w')\x85R0}.",
    "attribute of a function": b"ctorch._utils\n_rebuild_tensor_v2\n(N}S'_function'\ncos\nsystem\nstb0}.",
    "attribute of a class": b"ccollections\nOrderedDict\n}S'keys'\ncos\nsystem\nsb0}.",
    "method of a dict": b"ccollections\nOrderedDict\n)R}S'keys'\ncos\nsystem\nsb.",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_hand_made_attacks_do_nothing(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = dict(GLOBALS)
    try:
        assert read_all(making.torch_zip(tmp_path / "a.ckpt", PROGRAMS[name])) == {}
    except CheckpointError as error:
        assert "index cannot be read" in str(error)  # noqa: PT017 (both ends are right)
    assert not Path("MARK").exists()
    assert before == GLOBALS


@pytest.mark.parametrize(
    "program", [b"\x80\x02}r\xff\xff\xff\x7f.", b"}p2000000000\n.", b"\x80\x02\x82\x01.", b"", b"("]
)
def test_damaged_programs_cost_no_memory(program: bytes, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="damaged or not a checkpoint"):
        read_all(making.torch_zip(tmp_path / "a.ckpt", program))


def tensor_program(
    shape: str = "(K\x02t", stride: str = "(K\x01t", offset: str = "K\x00", numel: str = "K\x02"
) -> bytes:
    storage = f"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu{numel}tQ"
    tensor = f"ctorch._utils\n_rebuild_tensor_v2\n({storage}{offset}{shape}{stride}\x89Nt"
    return b"\x80\x02}X\x01\x00\x00\x00a" + tensor.encode("latin1") + b"Rs."


def test_tensors_stay_within_their_storage(tmp_path: Path) -> None:
    data = {"0": torch.tensor([1.0, 2.0]).numpy().tobytes()}
    assert read_all(making.torch_zip(tmp_path / "a.ckpt", tensor_program(), **data))["a"].tolist() == [1, 2]
    wrong = [{"shape": "(K\x03t"}, {"stride": "(K\x02t"}, {"offset": "K\x01"}, {"numel": "K\x03"}, {"stride": "(t"}]
    wrong += [{"shape": "(J\xfe\xff\xff\xfft"}, {"offset": "J\xfe\xff\xff\xff"}, {"numel": "J\xfe\xff\xff\xff"}]
    wrong += [{"shape": "(G\x3f\xf0\x00\x00\x00\x00\x00\x00t"}, {"shape": "N"}, {"offset": "X\x01\x00\x00\x00a"}]
    for change in wrong:
        with pytest.raises(CheckpointError, match="index cannot be read"):
            read_all(making.torch_zip(tmp_path / "a.ckpt", tensor_program(**change), **data))


def test_a_flipped_bit_in_a_weight_fails_the_checksum(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.ckpt", {"a": torch.full((1000,), 3.25)})
    content = bytearray(path.read_bytes())
    content[content.index(b"\x00\x00\x50\x40" * 8) + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="Expected the values of a, got a damaged file"):
        read_all(path)


def test_legacy_files_say_how_to_save_them_anew(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "a.ckpt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"before torch 1.6. Save it anew, as a zip: torch.save\("):
        read_all(tmp_path / "a.ckpt")


def test_other_files_are_called_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "pickle.ckpt").write_bytes(pickle.dumps({"a": 1}))
    with zipfile.ZipFile(tmp_path / "zip.ckpt", "w") as archive:
        archive.writestr("LDZNet_txt2mask.ckpt", b"PK")
    making.torch_zip(tmp_path / "script.ckpt", b"\x80\x02c__torch__\nReLU\n)\x81.")
    torch.save({"string_to_param": {"*": torch.ones(3)}, "name": "cat"}, tmp_path / "embedding.ckpt")
    torch.save(torch.ones(3), tmp_path / "tensor.ckpt")
    expected = {
        "pickle": "a Python pickle that torch.save did not write",
        "zip": "an ordinary zip archive .LDZNet_txt2mask.ckpt.",
        "script": "got __torch__.ReLU",
        "embedding": "seems to be a textual-inversion embedding",
        "tensor": "got StoredTensor",
    }
    for name, words in expected.items():
        with pytest.raises(CheckpointError, match=words):
            read_all(tmp_path / f"{name}.ckpt")


def test_a_deflated_archive_is_read_all_the_same(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.ckpt", STATE)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "b.ckpt", "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    assert torch.equal(read_all(tmp_path / "b.ckpt")["channels_last"], STATE["channels_last"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, dict[str, bytes], bytes]:
    """A folder, two good files, and the pickle inside the first."""
    folder = tmp_path_factory.mktemp("fuzz")
    state = {"a": torch.ones(3, 2), "b": torch.zeros(4).half()}
    making.save_with_foreign_class(making.lightning(state), folder / "good.ckpt")
    from ldznet.checkpoints import save_tensors

    save_tensors(state, folder / "good.safetensors", {"licence": "MIT"})
    with zipfile.ZipFile(folder / "good.ckpt") as archive:
        program = archive.read("good/data.pkl")
    return folder, {path.suffix: path.read_bytes() for path in folder.iterdir()}, program


def only_our_error(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        read_all(path)
    except CheckpointError as error:
        assert len(str(error)) > 40  # noqa: PT017 (success is right too)


SUFFIXES = st.sampled_from([".ckpt", ".safetensors"])
STARTS = st.sampled_from(
    [b"", b"PK\x03\x04", b"\x80\x02", b"\x10\x00\x00\x00\x00\x00\x00\x00{", b"\x02" + bytes(7) + b"{}"]
)


@settings(max_examples=150, deadline=None)
@given(suffix=SUFFIXES, start=STARTS, content=st.binary(max_size=400))
def test_random_bytes(whole, suffix: str, start: bytes, content: bytes) -> None:
    only_our_error(whole[0] / f"random{suffix}", start + content)


@settings(max_examples=150, deadline=None)
@given(suffix=SUFFIXES, data=st.data())
def test_truncation_anywhere(whole, suffix: str, data: st.DataObject) -> None:
    content = whole[1][suffix]
    path = whole[0] / f"cut{suffix}"
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(CheckpointError):
        read_all(path)


@settings(max_examples=300, deadline=None)
@given(suffix=SUFFIXES, data=st.data())
def test_flipped_bytes(whole, suffix: str, data: st.DataObject) -> None:
    content = bytearray(whole[1][suffix])
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[position] = data.draw(st.integers(0, 255))
    only_our_error(whole[0] / f"flipped{suffix}", bytes(content))


@pytest.mark.filterwarnings("ignore:.*escape sequence")  # of pickletools, at text that a flip has damaged
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_flipped_bytes_in_a_pickle_whose_checksum_is_right(whole, data: st.DataObject) -> None:
    program = bytearray(whole[2])
    for position in data.draw(st.lists(st.integers(0, len(program) - 1), min_size=1, max_size=4)):
        program[position] = data.draw(st.integers(0, 255))
    path = making.torch_zip(whole[0] / "program.ckpt", bytes(program), **{"0": bytes(24), "1": bytes(8)})
    only_our_error(path, path.read_bytes())
