"""What a head loses as a delta head: masks by rank on the tiny world, and a head of full size, made up.

    python benchmarks/shrinking.py --scenes 60                 *tiny* at several ranks, and at sizes of the file
    python benchmarks/shrinking.py --full FOLDER               a random Stable Diffusion 1.x, a head of rank 16 over it

Photo scenes from 0 on, mIoU at 0.5; brackets are 95 % intervals over scenes. The second writes some 8 GB into FOLDER
and leaves it empty.
"""

from __future__ import annotations

import dataclasses
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from coarse import by_kind
from helpers import Row, drawn, iou, parser, pixels_of, report

from ldznet import Predictor, load_head
from ldznet.checkpoints.files import stream_tensors
from ldznet.checkpoints.formats import TensorInfo
from ldznet.checkpoints.load import WEIGHTS, layout_of, meta_head, own_metadata
from ldznet.checkpoints.shrink import MEGABYTE, shrink
from ldznet.config import HeadConfig, UNetConfig
from ldznet.hosts.tiny import TinyHost
from ldznet.models.delta import layers_of

HEAD, BASE = WEIGHTS / "ldznet.safetensors", WEIGHTS / "unet.safetensors"
RANKS, SIZES, KNOWN = (4, 8, 16, 32, 64), (2.0, 4.0, 6.0), 16


def by_rank(count: int) -> Iterator[tuple[str, Row]]:
    """The head itself, then what is left of it."""
    host, items = TinyHost.load(), drawn("T0", count, one_each=True)

    def row(head: object) -> Row:
        predictor, found = Predictor(host, head), []  # type: ignore[arg-type]
        for item in items:
            predictor.set_latents(host.encode_image(pixels_of(item.image)))
            found.append(iou(predictor.predict(item.phrases).masks(0.5)[0].numpy(), item.masks))
        return by_kind(np.concatenate(found), items)

    yield "tiny", {"MB": HEAD.stat().st_size / MEGABYTE, "energy": 1.0, **row(load_head("tiny"))}
    with tempfile.TemporaryDirectory() as folder:
        for setting in [*({"rank": rank} for rank in RANKS), *({"megabytes": size} for size in SIZES)]:
            path = Path(folder) / "small.safetensors"
            made = shrink(HEAD, path, BASE, force=True, **setting)  # type: ignore[arg-type]
            name = f"rank {made.rank}" if "rank" in setting else f"{setting['megabytes']:g} MB, ranks up to {made.rank}"
            yield name, {"MB": made.size / MEGABYTE, "energy": made.energy, **row(load_head(path))}


def full_size(folder: Path, config: HeadConfig, ranks: Sequence[int]) -> Iterator[tuple[str, Row]]:
    """A random base, and a head whose matrices differ from it by a change of rank KNOWN."""
    base, head = folder / "base.safetensors", folder / "head.safetensors"
    layers = {
        f"{name}.{kind}": shape for name, shapes in layers_of(config.unet).items() for kind, shape in shapes.items()
    }
    layout = {name: TensorInfo(torch.float32, tuple(shape)) for name, shape in layers.items()}
    stream_tensors(base, layout, lambda name: _random(layers[name], name, 0.02), {})
    of_head = {name: TensorInfo(torch.float32, info.shape) for name, info in layout_of(meta_head(config)).items()}

    def tensor(name: str) -> torch.Tensor:
        if name not in layers:
            return _random(torch.Size(of_head[name].shape), name, 0.02)
        return _random(layers[name], name, 0.02) + _change(layers[name], name)

    stream_tensors(head, of_head, tensor, own_metadata(config))
    for rank in ranks:
        small, start = folder / "small.safetensors", time.process_time()
        made = shrink(head, small, base, rank=rank, dtype=torch.float32, force=True)
        seconds, errors = time.process_time() - start, []
        loading = time.perf_counter()
        found = load_head(small)
        loaded = time.perf_counter() - loading
        for name, shape in layers.items():
            layer, _, kind = name.rpartition(".")
            product = found.changes[layer.replace(".", "_")]  # type: ignore[union-attr, index]
            if kind == "weight" and len(shape) > 1:
                change = _change(shape, name).flatten(1)
                errors.append(float((product.up @ product.down.flatten(1) - change).norm() / change.norm()))
        yield (
            f"rank {rank}",
            {
                "MB as float16": made.size / MEGABYTE / 2,
                "energy": made.energy,
                "largest error": max(errors),
                "s of the processor": seconds,
                "s to load": loaded,
                "peak GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            },
        )
    for path in (base, head, small):
        path.unlink()


def _random(shape: torch.Size, name: str, deviation: float) -> torch.Tensor:
    return (
        torch.randn(shape, generator=torch.Generator().manual_seed(len(name) * 1009 + sum(name.encode()))) * deviation
    )


def _change(shape: torch.Size, name: str) -> torch.Tensor:
    """Of rank KNOWN for matrices, a tenth as large as the weights; of norms and biases, any."""
    if len(shape) < 2:
        return _random(shape, f"change {name}", 0.002)
    rank = min(KNOWN, shape[0], shape[1:].numel())
    left = _random(torch.Size((shape[0], rank)), f"left {name}", 1)
    right = _random(torch.Size((rank, shape[1:].numel())), f"right {name}", 1)
    return (left @ right).reshape(shape) * (0.002 / rank**0.5)


if __name__ == "__main__":
    made = parser(__doc__)
    made.add_argument("--scenes", type=int, default=60)
    made.add_argument("--full", type=Path, help="folder for files of full size, in the place of the tiny world")
    made.add_argument("--channels", type=int, default=320, help="of the made-up UNet")
    made.add_argument("--ranks", type=int, nargs="+", default=[KNOWN], help="of what is made of it")
    given = made.parse_args()
    torch.set_grad_enabled(False)
    if given.full:
        unet = UNetConfig(model_channels=given.channels)
        made_up = HeadConfig(unet=dataclasses.replace(unet, out_channels=1), host_unet=unet)
        report(full_size(given.full, made_up, given.ranks), given.json)
    else:
        report(by_rank(given.scenes), given.json)
