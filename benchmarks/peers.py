"""What a mask costs beside other systems that take words: time, peak memory, parameters.

    python benchmarks/peers.py --pairs 3 --json peers.json
    python benchmarks/peers.py --pairs 3 --json peers.json --only clipseg "grounded sam-b" "captured, 4 phrases"
    python benchmarks/peers.py --picture growth.png      docs/figures/growth.json over phrases and pixels

Each case has a process of its own, which alternates with one of the baseline: captured taps, one phrase, 384 px,
float32. A case that is in the JSON is not run again. Others are transformers' classes in their published sizes; they
get tensors of the size that they ask for and a short phrase, SAM one fixed box after Grounding DINO. Ours are the
published head over diffusers' Stable Diffusion 1.x, without its text encoder (6.6 GMAC a phrase), and the tiers of
`ldznet train head`; "new" is what they add to the weights of a Stable Diffusion that is loaded anyway. Weights are
random everywhere: time does not depend on them. Seconds are the processor's, of all threads. SAM 3 needs torchvision.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from attention_cost import PHRASES, BareHost, forget_peak, peak
from helpers import ROOT, Row, random_weights, ranged, report
from torch import Tensor, nn

from ldznet import Predictor
from ldznet.attention import AttentionHead
from ldznet.config import HeadConfig, UNetConfig
from ldznet.hosts.hf_diffusers import DiffusersHost
from ldznet.models import CapturedTaps, build_head
from ldznet.models.known import unet_config
from ldznet.shapes import PIXELS_PER_LATENT, tap_size
from ldznet.train.tiers import tier_config

SD1 = ROOT / "ldznet" / "hosts" / "sd1"
BASELINE = "captured"
LABELS = {"captured": "published head, captured taps", "light": "light, captured taps", "clipseg": "CLIPSeg"}
FIGURES = ROOT / "docs/figures/growth.json"
SAM_H = {
    "hidden_size": 1280,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "global_attn_indexes": [7, 15, 23, 31],
    "mlp_dim": 5120,
}


class Work(NamedTuple):
    """Networks, what makes all masks with them, and those of the networks that no host has loaded."""

    networks: Sequence[nn.Module]
    run: Callable[[], Any]
    new: Sequence[nn.Module]


class Host(DiffusersHost):
    """A diffusers model whose text is given."""

    def encode_text(self, phrases: Sequence[str]) -> Tensor:
        return torch.zeros(len(phrases), 77, 768, dtype=self.dtype)


def drawn_taps(config: HeadConfig, side: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Noise in the place of the taps of one picture of `side` x `side` latents."""
    specs = config.tap_specs.values()
    sizes = {spec.block: (1, spec.channels, *tap_size((side, side), spec.stride)) for spec in specs}
    return {block: torch.randn(*size, dtype=dtype) for block, size in sizes.items()}


PUBLISHED = HeadConfig()
ZNET = HeadConfig(network="znet", blocks=())
TIERS = {tier: tier_config(tier, "sd1", UNetConfig(), 384) for tier in ("light", "one", "two")}


def ours(
    given: str, phrases: int = 1, size: int = 384, dtype: torch.dtype = torch.float32, config: HeadConfig = PUBLISHED
) -> Work:
    """A predictor given an image, latents, or what was captured; a head without taps needs no more than latents."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(json.loads((SD1 / "unet.json").read_text()))
        vae: Any = AutoencoderKL.from_config(json.loads((SD1 / "vae.json").read_text()))
    captured = given == "captured"
    used = [*([unet] if config.network == "delta" or not captured else []), *([vae] if given == "image" else [])]
    head = random_weights(lambda: build_head(config), torch.device("cpu"), dtype)
    for module in used:
        random_weights(lambda module=module: module, torch.device("cpu"), dtype)
    host = Host(unet, vae, texts=None, device=torch.device("cpu"))  # type: ignore[arg-type]
    predictor, side = Predictor(host, head, resolution="native"), size // PIXELS_PER_LATENT
    latents, pixels = torch.randn(1, 4, side, side), torch.rand(1, 3, size, size)
    taps = CapturedTaps(drawn_taps(config, side))

    def run() -> None:
        if given == "image":
            predictor.set_image(pixels, value_range=(0, 1))
        else:
            predictor.set_latents(latents, captured=taps if captured else None)
        predictor.predict(PHRASES[:phrases])

    return Work([head, *used], run, [head])


def over_sdxl(tier: str, phrases: int = 1, size: int = 1024) -> Work:
    """A head of a tier over SDXL, given captured taps: a light one in float32, others in the bfloat16 of the UNet."""
    host, side = BareHost("sdxl", torch.device("cpu"), torch.bfloat16), size // PIXELS_PER_LATENT
    config, dtype = tier_config(tier, "sdxl", unet_config(host.unet), 1024), host.dtype
    if tier == "light":
        dtype = torch.float32
    head, latents = random_weights(lambda: build_head(config), host.device, dtype), host.noise(1, 4, side, side)
    seen = {"timestep": config.timestep, "seed": 0, "captured": CapturedTaps(drawn_taps(config, side, dtype))}
    return Work([head, host.unet], lambda: head.segment(host, latents, PHRASES[:phrases], **seen), [head])


def attention(phrases: int = 1, size: int = 512) -> Work:
    """The head without weights of its own, on a latent."""
    host = BareHost("sd1", torch.device("cpu"), torch.float32)
    head, side = AttentionHead().fitted_to(host), size // PIXELS_PER_LATENT
    latents = host.noise(1, 4, side, side)
    return Work([host.unet], lambda: head.segment(host, latents, PHRASES[:phrases], timestep=100, seed=0), [])


def clipseg(phrases: int = 1) -> Work:
    """CLIPSeg rd64, ViT-B/16, at 352 px; as its processor gives it, the picture is there for each phrase."""
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    model = CLIPSegForImageSegmentation(CLIPSegConfig(vision_config={"patch_size": 16})).eval()
    given = {"input_ids": words(77).repeat(phrases, 1), "pixel_values": picture(352).repeat(phrases, 1, 1, 1)}
    return Work([model], lambda: model(**given, interpolate_pos_encoding=True), [model])


def grounded_sam(**vision: Any) -> Work:
    """Grounding DINO-T at 800 px, then SAM at 1024 px with one box."""
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection, SamConfig, SamModel

    dino = GroundingDinoForObjectDetection(GroundingDinoConfig()).eval()
    sam = SamModel(SamConfig(vision_config=vision)).eval()
    box = torch.tensor([[[100.0, 100.0, 600.0, 700.0]]])

    def run() -> None:
        dino(pixel_values=picture(800), input_ids=words(6))
        sam(pixel_values=picture(1024), input_boxes=box, multimask_output=False)

    return Work([dino, sam], run, [dino, sam])


def sam3() -> Work:
    """SAM 3 at 1008 px, by its text prompt."""
    from transformers import Sam3Config, Sam3Model

    model = Sam3Model(Sam3Config()).eval()
    return Work([model], lambda: model(pixel_values=picture(1008), input_ids=words(32)), [model])


def words(count: int) -> Tensor:
    """Token ids; CLIP's pooling wants its end token, the highest id, last."""
    return torch.arange(49408 - count, 49408)[None] if count == 77 else torch.arange(101, 101 + count)[None]


def picture(side: int) -> Tensor:
    return torch.zeros(1, 3, side, side)


GROWTH: dict[str, Callable[[], Work]] = {  # over phrases at one size, and over sizes for one phrase
    **{f"captured, {n} phrases": functools.partial(ours, "captured", n) for n in (4, 8)},
    **{f"light, {n} phrases": functools.partial(ours, "captured", n, config=TIERS["light"]) for n in (4, 8)},
    **{f"clipseg, {n} phrases": functools.partial(clipseg, n) for n in (4, 8)},
    **{f"captured, {px} px": functools.partial(ours, "captured", 1, px) for px in (256, 512, 768)},
    **{f"light, {px} px": functools.partial(ours, "captured", 1, px, config=TIERS["light"]) for px in (256, 512, 768)},
}
CASES: dict[str, Callable[[], Work]] = {
    BASELINE: functools.partial(ours, "captured"),
    **GROWTH,
    "captured, bfloat16": functools.partial(ours, "captured", 1, 384, torch.bfloat16),
    "latent": functools.partial(ours, "latent"),
    "latent, 4 phrases": functools.partial(ours, "latent", 4),
    "image": functools.partial(ours, "image"),
    "image, 512 px": functools.partial(ours, "image", 1, 512),
    "znet": functools.partial(ours, "captured", config=ZNET),
    "light": functools.partial(ours, "captured", config=TIERS["light"]),
    "light, bfloat16": functools.partial(ours, "captured", 1, 384, torch.bfloat16, TIERS["light"]),
    "one pass": functools.partial(ours, "captured", config=TIERS["one"]),
    "one pass, 8 phrases": functools.partial(ours, "captured", 8, config=TIERS["one"]),
    "two passes, captured": functools.partial(ours, "captured", config=TIERS["two"]),
    "two passes, latent": functools.partial(ours, "latent", config=TIERS["two"]),
    "SDXL, light, 1024 px": functools.partial(over_sdxl, "light"),
    "SDXL, light, 512 px, 8 phrases": functools.partial(over_sdxl, "light", 8, 512),
    "SDXL, two passes, captured, 1024 px": functools.partial(over_sdxl, "two"),
    "SDXL, two passes, captured, 512 px, 8 phrases": functools.partial(over_sdxl, "two", 8, 512),
    "attention, 512 px": attention,
    "attention, 512 px, 8 phrases": functools.partial(attention, 8),
    "clipseg": clipseg,
    "grounded sam-b": grounded_sam,
    "grounded sam-h": functools.partial(grounded_sam, **SAM_H),
    "sam 3": sam3,
}


def parameters(networks: Sequence[nn.Module]) -> int:
    return sum(p.numel() for network in networks for p in network.parameters())


@torch.no_grad()
def serve(name: str, threads: int) -> None:
    """Says what the case is, then runs it once for each line that comes, and answers with seconds and peak in GB."""
    torch.set_num_threads(threads)
    work = CASES[name]()
    print(json.dumps({"parameters": parameters(work.networks), "new": parameters(work.new)}), flush=True)
    for _ in sys.stdin:
        forget_peak(torch.device("cpu"))
        start = time.process_time()
        work.run()
        print(json.dumps([time.process_time() - start, peak(torch.device("cpu"))]), flush=True)


class Process:
    """A case in a process of its own."""

    def __init__(self, name: str, threads: int) -> None:
        command = [sys.executable, __file__, "--serve", name, "--threads", str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about: dict[str, Any] = self._answer()

    def run(self) -> tuple[float, float]:
        """Seconds, and GB at the peak."""
        assert self._process.stdin is not None
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        seconds, gigabytes = self._answer()
        return seconds, gigabytes

    def end(self) -> None:
        self._process.communicate()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process of a case ended; its own words are above")
        return json.loads(line)


def compared(name: str, pairs: int, threads: int, warm: bool) -> Row:
    """Of a case: its time as a share of the baseline's, pair by pair, and what else is known of it."""
    case, baseline = Process(name, threads), Process(BASELINE, threads)
    found: list[tuple[float, float]] = []
    peaks: list[float] = []
    for number in range(-1 if warm else 0, pairs):
        both = [(process, process.run()) for process in ((case, baseline) if number % 2 else (baseline, case))]
        answers = dict(both)
        if number >= 0:
            found.append((answers[case][0], answers[baseline][0]))
        peaks.append(answers[case][1])
    for process in (case, baseline):
        process.end()
    return {
        "time": ranged([own / base for own, base in found]),
        "seconds": ranged([own for own, _ in found]),
        "pairs": len(found),
        "peak GB": max(peaks),
        "parameters M": case.about["parameters"] / 1e6,
        "new M": case.about["new"] / 1e6,
    }


def drawing(rows: Mapping[str, Row], path: Path) -> None:
    """Shares of the baseline's time over phrases, and over the picture's side; the baseline's own is 1."""
    import matplotlib.pyplot as plt

    known: dict[str, Any] = {BASELINE: {"time": (1.0, 1.0, 1.0)}, **rows}
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for head in ("captured", "light", "clipseg"):
        points = {1: known[head], **{n: known.get(f"{head}, {n} phrases") for n in (4, 8)}}
        sizes = {384: known[head], **{px: known.get(f"{head}, {px} px") for px in (256, 512, 768)}}
        label = LABELS[head]
        for axes, of in ((left, points), (right, sizes)):
            there = {x: row["time"] for x, row in sorted(of.items()) if row is not None}
            middle, low, high = (np.array([time[i] for time in there.values()]) for i in range(3))
            if len(there) > 1:
                axes.errorbar([*there], middle, [middle - low, high - middle], marker="o", ms=4, label=label)
    left.set(xlabel="phrases, 384 px (CLIPSeg: 352 px)", ylabel="time; the published head's at 384 px is 1")
    right.set(xlabel="side of the picture in pixels, one phrase")
    for axes, ticks in ((left, (1, 4, 8)), (right, (256, 384, 512, 768))):
        axes.set(xscale="log", yscale="log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.xaxis.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3, help="that count (default: 3)")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument(
        "--growth", action="store_true", help="only those over phrases and sizes, in the place of --only"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cold", action="store_true", help="without a pair before those that count")
    parser.add_argument("--json", type=Path, help="what was measured, and where to go on")
    parser.add_argument("--picture", type=Path, help="measure nothing; draw what is measured into this file")
    parser.add_argument(
        "--figures", type=Path, default=FIGURES, help="what is drawn (default: docs/figures/growth.json)"
    )
    parser.add_argument("--serve", choices=CASES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve, given.threads)
        return
    if given.picture:
        drawing(json.loads(given.figures.read_text(encoding="utf-8"))["figures"], given.picture)
        return
    rows: dict[str, Row] = json.loads(given.json.read_text()) if given.json and given.json.exists() else {}
    for name in ["light", "clipseg", *GROWTH] if given.growth else given.only:
        if name not in rows:
            rows[name] = compared(name, given.pairs, given.threads, not given.cold)
            report([(name, rows[name])], None)
            if given.json:
                given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
