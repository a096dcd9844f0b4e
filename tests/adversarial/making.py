"""Small files that cost much: each generator writes one, or returns its bytes. Not a test itself."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

MILLION = 10**6


def header(entries: dict[str, object], metadata: dict[str, str] | None = None, data: bytes = b"") -> bytes:
    """A safetensors file of these entries as they are."""
    text = json.dumps({**({"__metadata__": metadata} if metadata else {}), **entries}).encode()
    return struct.pack("<Q", len(text)) + text + data


def head(config: str) -> bytes:
    """A head of ours that says this of itself."""
    entry = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    return header(entry, {"ldznet_format": "1", "config": config}, bytes(4))


def named(name: str) -> bytes:
    """A safetensors of one tensor with this name."""
    return header({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, None, bytes(4))


def archive(program: bytes, storages: dict[str, bytes] | None = None, deflated: bool = False) -> bytes:
    """A torch zip around a pickle."""
    out = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
    with zipfile.ZipFile(out, "w", kind, compresslevel=9) as file:
        file.writestr("archive/data.pkl", program)
        for key, data in (storages or {}).items():
            file.writestr(f"archive/data/{key}", data)
    return out.getvalue()


def patched(content: bytes, offset: int, value: bytes) -> bytes:
    """`content` with a field of its zip's last central directory entry changed."""
    start = content.rindex(b"PK\x01\x02") + offset
    return content[:start] + value + content[start + len(value) :]


def text(words: str) -> bytes:
    """Opcode: this text."""
    data = words.encode()
    return b"X" + struct.pack("<I", len(data)) + data


STORAGE = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")  # then numel, and tQ
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
DOUBLING = b"".join(b"h\x00h\x00\x86q\x00" for _ in range(60))  # a pair of the pair before, sixty times over
DOUBLING_LIST = b"".join(b"]h\x00ah\x00aq\x00" for _ in range(60))
PAIRS = b"\x80\x02)q\x00" + DOUBLING
LISTS = b"\x80\x02]q\x00" + DOUBLING_LIST


def tensor(shape: bytes, stride: bytes, numel: bytes = b"K\x01", offset: bytes = b"K\x00") -> bytes:
    """Opcodes: a tensor on storage 0."""
    return REBUILD + b"(" + STORAGE + numel + b"tQ" + offset + shape + stride + b"\x89NtR"


def state(*values: bytes) -> bytes:
    """A pickle of a dict of these values."""
    return b"\x80\x02}" + b"".join(text(f"t{i}") + value + b"s" for i, value in enumerate(values)) + b"."


def unet(names: list[str]) -> bytes:
    """A file that begins as a Stable Diffusion's UNet does, and has these tensors too."""
    shapes = {
        "input_blocks.0.0.weight": [0, 4, 3, 3],
        "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": [0, 768],
    }
    shapes |= {name: [0] for name in names}
    empty = {"dtype": "F32", "data_offsets": [0, 0]}
    return header({f"model.diffusion_model.{name}": {**empty, "shape": shape} for name, shape in shapes.items()})


def deep(levels: int) -> bytes:
    return b"\x80\x02" + b"(" * levels + b"l" * levels + b"."


def aliases(count: int) -> bytes:
    """Tensors that all show the end of one storage of 30 MB, deflated to 30 KB."""
    numel = b"J" + struct.pack("<i", 7_000_000)
    values = [tensor(b"(K\x01t", b"(K\x01t", numel, b"J" + struct.pack("<i", 6_999_999))] * count
    return archive(state(*values), {"0": bytes(28_000_000)}, deflated=True)


def lying_size() -> bytes:
    """An index that says it has 100 bytes and inflates to 100 MB."""
    content = archive(b"]" * (100 * MILLION), deflated=True)
    return patched(content, 24, struct.pack("<I", 100))


def crowded(count: int) -> bytes:
    """A directory of many members that are said to have 4 GB each."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("archive/data.pkl", state())
        for i in range(count):
            file.writestr(f"archive/data/{i}", b"")
        for info in file.infolist()[1:]:
            info.file_size = 2**32 - 2
    return out.getvalue()


def many_tensors(count: int) -> bytes:
    return header({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(count)})


def wide_unet() -> str:
    """The largest configuration that the bounds let pass."""
    unet = {"channel_mult": [16] * 6, "num_res_blocks": 4, "model_channels": 2048, "num_heads": 128}
    unet["attention_downsampling"] = [1, 2, 4, 8, 16, 32]
    return json.dumps({"unet": unet, "host_unet": unet, "blocks": ["middle.0"], "latent_grid": [512, 512]})


def picture(kind: str, change: Callable[[bytes], bytes]) -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(out, kind)
    return change(out.getvalue())


HEADS: dict[str, Callable[[], bytes]] = {  # .safetensors
    "a hundred million blocks": lambda: head('{"unet": {"num_res_blocks": 100000000}}'),
    "a hundred million blocks of a host": lambda: head('{"host_unet": {"num_res_blocks": 100000000}}'),
    "twenty thousand levels": lambda: head(json.dumps({"unet": {"channel_mult": [1] * 20_000}})),
    "a hundred thousand blocks with taps": lambda: head(json.dumps({"blocks": ["input.8"] * 70_000})),
    "a grid of a million": lambda: head('{"latent_grid": [1000000, 1000000]}'),
    "a million channels": lambda: head('{"unet": {"model_channels": 1048576}}'),
    "a long mask head": lambda: head(json.dumps({"mask_channels": [1] * 200_000})),
    "a size multiple of a billion": lambda: head('{"size_multiple": 1000000000}'),
    "the largest that is allowed": lambda: head(wide_unet()),
    "deep JSON": lambda: head("[" * 400_000),
    "a long number": lambda: head('{"timestep": %s}' % ("9" * 900_000)),
    "a long template": lambda: head(json.dumps({"template": "{}" * 400_000})),
    "many empty tensors": lambda: many_tensors(14_000),
    "a name that patterns stumble over": lambda: named("diffusion_model" * 60_000),
    "names that steer a terminal": lambda: named("\x1b[2J\x1b]0;owned\x07\u202e" * 1000),
    "a tensor of many sides": lambda: header({"a": {"dtype": "F32", "shape": [1] * 300_000, "data_offsets": [0, 4]}}),
    "a header that is not there": lambda: struct.pack("<Q", 99_000_000) + b"{" + b" " * 900_000,
    "a format that steers a terminal": lambda: header({}, {"ldznet_format": "\x1b[31m" * 50_000, "config": "{}"}),
    "a UNet of seven thousand blocks": lambda: unet([f"input_blocks.{i}.0.x" for i in range(7_000)]),
    "a UNet of seven thousand tensors": lambda: unet([f"input_blocks.{i % 99}.{i // 99}.x" for i in range(7_000)]),
    "a UNet of half the names": lambda: unet([f"input_blocks.{i}.0.op.weight" for i in range(99)]),
    "a scale of many sides": lambda: header(
        {
            "a.weight": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]},
            "a.scale_weight": {"dtype": "F32", "shape": [1] * 200_000, "data_offsets": [4, 8]},
        },
        None,
        bytes(8),
    ),
}
CHECKPOINTS: dict[str, Callable[[], bytes]] = {  # .ckpt
    "shared pairs as a key": lambda: archive(PAIRS + b"}h\x00K\x01s."),
    "shared pairs as keys": lambda: archive(PAIRS + b"}(h\x00K\x01h\x00K\x01u."),
    "shared pairs as a key of old": lambda: archive(PAIRS + b"(h\x00K\x01d."),
    "shared pairs in a set": lambda: archive(b"\x80\x04" + PAIRS[2:] + b"\x8f(h\x00\x90."),
    "shared pairs in a frozen set": lambda: archive(b"\x80\x04" + PAIRS[2:] + b"(h\x00\x91."),
    "shared pairs in an ordered dict": lambda: archive(PAIRS + b"ccollections\nOrderedDict\n(](h\x00K\x01\x86eTtR."),
    "shared pairs as a storage": lambda: archive(
        PAIRS + b"(" + text("storage") + b"ctorch\nFloatStorage\nh\x00NK\x01tQ."
    ),
    "shared pairs as a persistent id": lambda: archive(PAIRS + b"h\x00Q."),
    "shared pairs as a name": lambda: archive(b"\x80\x04" + PAIRS[2:] + b"h\x00h\x00\x93."),
    "shared lists as a state": lambda: archive(LISTS + b"h\x00."),
    "shared lists as a shape": lambda: archive(
        LISTS + REBUILD + b"(" + STORAGE + b"K\x01tQK\x00h\x00h\x00\x89NtR.", {"0": bytes(4)}
    ),
    "shared lists as a numel": lambda: archive(LISTS + STORAGE + b"h\x00tQ."),
    "shared lists in the place of tensors": lambda: archive(LISTS + b"}" + text("a") + b"h\x00s."),
    "shared lists as a call's arguments": lambda: archive(LISTS + b"cos\nsystem\nh\x00R."),
    "a deflated memo": lambda: archive(b"\x80\x04]" + b"\x94" * (40 * MILLION) + b".", deflated=True),
    "deflated dicts": lambda: archive(b"\x80\x02(" + b"}" * (40 * MILLION) + b"t.", deflated=True),
    "a deflated text": lambda: archive(b"\x80\x02" + text("a" * (40 * MILLION)) + b".", deflated=True),
    "a size that lies": lying_size,
    "sets": lambda: archive(b"\x80\x04(" + b"\x8f" * 900_000 + b"t."),
    "dicts": lambda: archive(b"\x80\x02(" + b"}" * 900_000 + b"t."),
    "marks": lambda: archive(b"\x80\x02" + b"(" * 900_000 + b"."),
    "classes": lambda: archive(b"\x80\x02" + b"ca\n\n" * 230_000 + b"."),
    "classes of many names": lambda: archive(b"\x80\x02" + b"".join(b"c%d\n\n" % i for i in range(110_000)) + b"."),
    "objects": lambda: archive(b"\x80\x02ca\nb\nq\x00" + b"h\x00)\x81" * 230_000 + b"."),
    "lists in lists": lambda: archive(deep(450_000)),
    "tuples in tuples": lambda: archive(b"\x80\x02)" + b"\x85" * 900_000 + b"."),
    "a long key of storages": lambda: archive(
        b"\x80\x02"
        + text("k" * 400_000)
        + b"q\x00ctorch\nFloatStorage\nq\x01"
        + text("storage")
        + b"q\x02"
        + b"(h\x02h\x01h\x00NK\x00tQ" * 30_000
        + b".",
    ),
    "long names joined": lambda: archive(
        b"\x80\x04" + text("n" * 400_000) + b"\x94" + b"h\x00h\x00\x93" * 100_000 + b"."
    ),
    "a dict of the same pairs": lambda: archive(
        b"\x80\x02("
        + b"K\x01K\x02\x86" * 60_000
        + b"lq\x00ccollections\nOrderedDict\nq\x01"
        + b"h\x01h\x00\x85R" * 90_000
        + b"."
    ),
    "a call of many arguments": lambda: archive(
        b"\x80\x02(" + b"N" * 400_000 + b"tq\x00" + REBUILD + b"q\x01" + b"h\x01h\x00R" * 80_000 + b"."
    ),
    "a shape of many sides": lambda: archive(
        b"\x80\x02("
        + b"K\x01" * 200_000
        + b"tq\x00"
        + STORAGE
        + b"K\x01tQq\x01"
        + REBUILD
        + b"q\x02"
        + b"h\x02(h\x01K\x00h\x00h\x00tR" * 30_000
        + b".",
        {"0": bytes(4)},
    ),
    "a number of seven million bits": lambda: archive(
        b"\x80\x02\x8b" + struct.pack("<i", 880_000) + b"\x7f" * 880_000 + b"."
    ),
    "a number of many digits": lambda: archive(b"L" + b"9" * 900_000 + b"L\n."),
    "values that repeat without end": lambda: archive(
        state(tensor(b"(J\xff\xff\xff\x7fJ\xff\xff\xff\x7ft", b"(K\x00K\x00t")), {"0": bytes(4)}
    ),
    "values shown ten thousand times": lambda: archive(
        state(*[tensor(b"(J\x00\x00\x01\x00t", b"(K\x01t", b"J\x00\x00\x01\x00")] * 4_000), {"0": bytes(262_144)}
    ),
    "the end of a deflated storage": lambda: aliases(3_000),
    "members of 4 GB": lambda: crowded(7_000),
    "long origins": lambda: archive(
        b"\x80\x02c"
        + b"m" * 300_000
        + b"\nn\nq\x00}"
        + b"".join(b"K\x01h\x00s" for _ in range(3))
        + b"("
        + b"".join(b"J" + struct.pack("<i", i) + b"h\x00" for i in range(60_000))
        + b"u."
    ),
    "names that steer a terminal": lambda: archive(state()[:-1] + text("\x1b[2J\u202e") + b"K\x01s."),
    "a class that steers a terminal": lambda: archive(b"\x80\x02}" + text("a") + b"c\x1b[2J\n\x1b[31m\ns."),
    "a zip of another version": lambda: patched(archive(state()), 6, struct.pack("<H", 99)),
    "an encrypted zip": lambda: patched(archive(state()), 8, struct.pack("<H", 1)),
    "a zip of another compression": lambda: patched(archive(state()), 10, struct.pack("<H", 93)),
    "extension codes": lambda: archive(b"\x80\x02\x82\x01."),
    "a memo of two billion": lambda: archive(b"\x80\x02}r\xff\xff\xff\x7f."),
    "a sparse tensor": lambda: saved({"a": torch.eye(3).to_sparse()}),
    "a bare pickle": lambda: pickle.dumps({"a": 1}),
}


def saved(content: object) -> bytes:
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


FILES = {
    **{f"{name}.safetensors": make for name, make in HEADS.items()},
    **{f"{name}.ckpt": make for name, make in CHECKPOINTS.items()},
}


def write(folder: Path) -> list[Path]:
    """All of them, into `folder`."""
    for name, make in FILES.items():
        (folder / name).write_bytes(make())
    return [folder / name for name in FILES]
