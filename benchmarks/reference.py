"""What a mask costs beside the published code of LD-ZNet, on the same weights: an image, ready latents, captured taps.

    git clone https://github.com/koutilya-pnvr/LD-ZNet
    python benchmarks/reference.py LD-ZNet --pairs 3 --json reference.json

The published code runs its own VAE encoder, its whole feature pass and its head; ours a predictor over a diffusers host
that holds the same tensors, with less to do where latents or taps are there already. Weights are random: time does not
depend on them. Text encoders are left out of both. Each round runs all of them, in an order that alternates, and a
round that is in the JSON already is not run again. Seconds are the processor's of all threads.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from torch import Tensor, nn

from ldznet import Predictor, schedule
from ldznet.checkpoints.load import meta_head
from ldznet.config import HeadConfig, UNetConfig
from ldznet.hosts import single_file
from ldznet.hosts.hf_diffusers import DiffusersHost
from ldznet.models import CapturedTaps

SD1 = Path(__file__).parents[1] / "ldznet" / "hosts" / "sd1"
SCALE, TIMESTEP = 0.18215, 400
UNET = {  # configs/ldznet/phrasecut.yaml, but for the width
    "image_size": 32,
    "in_channels": 4,
    "attention_resolutions": [4, 2, 1],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 4, 4],
    "num_heads": 8,
    "use_spatial_transformer": True,
    "transformer_depth": 1,
    "context_dim": 768,
    "use_checkpoint": True,
    "legacy": False,
}
VAE = {"double_z": True, "z_channels": 4, "resolution": 384, "in_channels": 3, "out_ch": 3, "ch_mult": [1, 2, 4, 4]}


def published(folder: Path) -> tuple[Any, Any, Any]:
    """The published code's classes: of the feature UNet, of the head, of the VAE's encoder."""
    sys.path.insert(0, str(folder))
    asked: dict[str, dict[str, Any]] = {  # for what training and configuration files need, none of which runs here
        "ldm_seg.util": {"instantiate_from_config": None},
        "omegaconf": {},
        "omegaconf.listconfig": {"ListConfig": tuple},
    }
    for name, values in asked.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(values)
    names = ("openaimodel", "ldznet_UNet", "model")
    parts = [importlib.import_module(f"ldm_seg.modules.diffusionmodules.{name}") for name in names]
    return parts[0].UNetModel, parts[1].UNetModel, parts[2].Encoder


def filled(build: Callable[[], Any], seed: int) -> Any:
    """A network of random weights."""
    with torch.device("meta"):
        module = build()
    module = module.to_empty(device="cpu").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in module.named_parameters():
        inputs = weight[0].numel() if weight.ndim > 1 else 2500
        weight.normal_(std=inputs**-0.5, generator=generator)  # so that values neither vanish nor grow
        if "norm" in name and name.endswith("weight"):
            weight += 1
    return module


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Encoder(nn.Module):
    """The published VAE as far as an image needs it: mean of the posterior, scaled."""

    def __init__(self, kind: Any, width: int) -> None:
        super().__init__()
        self.encoder = kind(ch=width, num_res_blocks=2, attn_resolutions=[], dropout=0.0, **VAE)
        self.quant_conv = nn.Conv2d(8, 8, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(pixels)).chunk(2, dim=1)[0] * SCALE


class Host(DiffusersHost):
    """A diffusers model whose text is given."""

    text: Tensor

    def encode_text(self, phrases: Sequence[str]) -> Tensor:
        return self.text.expand(len(phrases), -1, -1)


def prefixed(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Its tensors under the names that they have in a whole checkpoint."""
    return {prefix + name: tensor for name, tensor in module.state_dict().items()}


def shared_host(unet: nn.Module, vae: Encoder, width: int, vae_width: int) -> Host:
    """A host of ours over the very tensors of the published modules."""
    unet_config = json.loads((SD1 / "unet.json").read_text())
    unet_config["block_out_channels"] = [width, 2 * width, 4 * width, 4 * width]
    vae_config = json.loads((SD1 / "vae.json").read_text())
    vae_config["block_out_channels"] = [vae_width, 2 * vae_width, 4 * vae_width, 4 * vae_width]
    with torch.device("meta"):
        ours: Any = UNet2DConditionModel.from_config(unet_config)
        encoder: Any = AutoencoderKL.from_config(vae_config)
    ours.load_state_dict(convert_ldm_unet_checkpoint(prefixed(unet, single_file.UNET), ours.config), assign=True)
    state = convert_ldm_vae_checkpoint(prefixed(vae, single_file.VAE), encoder.config)
    encoder.load_state_dict(state, assign=True, strict=False)  # the decoder stays without weights
    host = Host(ours.eval(), encoder.eval(), texts=None, device=torch.device("cpu"))  # type: ignore[arg-type]
    host.text = noise(1, 77, 768, seed=2)
    return host


def jobs(folder: Path, size: int, width: int, vae_width: int) -> dict[str, Callable[[], Tensor]]:
    """What is timed, by name; each gives its mask logits 1 1 h w."""
    unet_kind, head_kind, encoder_kind = published(folder)
    features = filled(lambda: unet_kind(out_channels=4, model_channels=width, **UNET), seed=0)
    network = filled(lambda: head_kind(out_channels=1, model_channels=width, **UNET), seed=1)
    vae = filled(lambda: Encoder(encoder_kind, vae_width), seed=2)
    head = meta_head(
        HeadConfig(unet=UNetConfig(out_channels=1, model_channels=width), host_unet=UNetConfig(model_channels=width))
    )
    head.load_state_dict(network.state_dict(), assign=True)
    host, network_of_ours = shared_host(features, vae, width, vae_width), head.eval().requires_grad_(False)
    predictor = Predictor(host, network_of_ours, resolution="native")
    pixels = noise(1, 3, size, size, seed=3).clamp(-1, 1)
    latents = vae(pixels)
    step, zero = torch.tensor([predictor.config.timestep]), torch.tensor([0])
    noisy = schedule.add_noise(latents, schedule.seeded_noise(tuple(latents.shape), 0), step)
    text = host.text
    taps = host.extract(noisy, step, text, list(head.head_config.tap_specs))

    def whole() -> Tensor:
        clean = vae(pixels)
        noisy = schedule.add_noise(clean, schedule.seeded_noise(tuple(clean.shape), 0), step)
        return network(clean, zero, text, features(noisy, step, text)[1])[0]

    def image() -> Tensor:
        predictor.set_image(pixels, value_range=(-1, 1))
        return predictor.predict(["a dog"]).logits

    def latent(captured: CapturedTaps | None = None) -> Tensor:
        predictor.set_latents(latents, captured=captured)
        return predictor.predict(["a dog"]).logits

    captured = CapturedTaps(taps)
    return {"published": whole, "image": image, "latent": latent, "captured": lambda: latent(captured)}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the published code")
    parser.add_argument("--pairs", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument("--size", type=int, default=384, help="side of the image in pixels (default: 384)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--channels", type=int, default=320, help="of the UNets' first level, SD 1.x's by default")
    parser.add_argument("--vae-channels", type=int, default=128)
    parser.add_argument("--json", type=Path, help="seconds of every round, and where to go on")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    work = jobs(given.folder, given.size, given.channels, given.vae_channels)
    rounds = json.loads(given.json.read_text()) if given.json and given.json.exists() else []
    while len(rounds) < given.pairs:
        seconds, logits = {}, {}
        for name in sorted(work, reverse=bool(len(rounds) % 2)):
            start = time.process_time()
            logits[name] = work[name]()
            seconds[name] = time.process_time() - start
        expected = logits.pop("published")
        apart = max(float((found - expected).abs().max()) for found in logits.values())
        rounds.append({**seconds, "apart": apart, "spread": float(expected.max() - expected.min())})
        print(json.dumps(rounds[-1]), flush=True)
        if given.json:
            given.json.write_text(json.dumps(rounds, indent=1))
    print(f"{len(rounds)} rounds at {given.size} px, float32 on the CPU, {given.threads} threads")
    for name in ("image", "latent", "captured"):
        ratios = [seconds[name] / seconds["published"] for seconds in rounds]
        print(
            f"{name:>9}: {statistics.median(ratios):.3f} of the published code's time "
            f"({min(ratios):.3f} to {max(ratios):.3f})"
        )
    print(f"logits: at most {max(r['apart'] for r in rounds):.1e} apart, of a spread of {rounds[-1]['spread']:.1e}")


if __name__ == "__main__":
    main()
