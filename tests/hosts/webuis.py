"""Stand-ins for what A1111, reForge and Forge have loaded: their attributes, laid out as theirs, around small networks.

The UNet is `small.unet()` under the hosts' call signatures; VAE and text encoder are small and random. As theirs do,
`encode` draws from the global generator, and the text encoders read CLIP skip from the options or from themselves.
"""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace
from typing import Any

import torch
from hosts import small
from torch import Tensor, nn

from ldznet import schedule
from ldznet.clip_bpe import Tokenizer
from ldznet.config import UNetConfig
from ldznet.models import UNet

SCALE = 0.18215
opts = SimpleNamespace(data={"CLIP_stop_at_last_layers": 2, "emphasis": "Original"})  # a user set them


class HostUNet(UNet):
    """Called as the hosts call theirs; keeps what it was given beside latents, timesteps and context."""

    in_channels = 4
    given: dict[str, Any]

    def forward(  # type: ignore[override]
        self, x: Tensor, timesteps: Tensor, context: Tensor, control: Any = None, **others: Any
    ) -> Tensor:
        self.given = {"dtypes": (x.dtype, timesteps.dtype, context.dtype), "channels": x.shape[1], **others}
        return super().forward(x[:, :4], timesteps, context)


def unet(config: UNetConfig = small.UNET) -> HostUNet:
    """The weights of `small.unet()`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return HostUNet(config).eval()


class Posterior:
    """A VAE's answer in the LDM."""

    def __init__(self, moments: Tensor) -> None:
        self.mean, deviation = moments.chunk(2, dim=1)
        self.deviation = deviation.clamp(-1, 1).exp()

    def sample(self) -> Tensor:
        return self.mean + self.deviation * torch.randn(self.mean.shape)


class VAE(nn.Module):
    """Eight pixels to a latent, at no depth; a Forge's has `process_in` and gives a sample at once."""

    def __init__(self, samples: bool) -> None:
        super().__init__()
        self.encoder, self.quant_conv = nn.Conv2d(3, 8, 8, stride=8), nn.Conv2d(8, 8, 1)
        self.decoder, self.samples = nn.ConvTranspose2d(4, 3, 8, stride=8), samples

    def encode(self, x: Tensor) -> Any:
        posterior = Posterior(self.quant_conv(self.encoder(x)))
        return posterior.sample() if self.samples else posterior

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)


class ForgeVAE(VAE):
    """With the conversion that Forge has and reForge has not."""

    def process_in(self, latents: Tensor) -> Tensor:
        return latents * SCALE


class Encoder(nn.Module):
    """A1111's text encoder: two layers, of which CLIP skip 2 leaves the last away."""

    id_start, id_end, id_pad = 49406, 49407, 49407

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words = Tokenizer.from_merges(small.MERGES)
        self.embedding = nn.Embedding(49408, width)
        self.first, self.last = nn.Linear(width, width), nn.Linear(width, width)

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        return [self.words.ids(text) for text in texts]

    def skipped(self) -> bool:
        return opts.data["CLIP_stop_at_last_layers"] > 1

    def tokenize_line(self, line: str) -> tuple[list[Any], int]:
        """Chunks of 75 tokens; BREAK begins one, brackets and weights are no tokens, "<x3>" is a textual inversion."""
        chunks: list[Any] = []
        for part in re.split(r"\s*\bBREAK\b\s*", line):
            ids, fixes = [], []
            for text in re.split(r"(<x\d>)", re.sub(r"[()]|:[\d.]+(?=\))", "", part)):
                if match := re.fullmatch(r"<x(\d)>", text):
                    fixes.append(SimpleNamespace(offset=len(ids), embedding=SimpleNamespace(vectors=int(match[1]))))
                ids += [0] * int(match[1]) if match else self.words.ids(text)
            for start in range(0, max(1, len(ids)), 75):
                row = ids[start : start + 75]
                padded = [self.id_start, *row, *[self.id_end] * (76 - len(row))]
                chunks.append(SimpleNamespace(tokens=padded, fixes=fixes if not start else []))
        return chunks, 0

    def prompt(self, text: str) -> Tensor:
        """A prompt's conditioning n d."""
        chunks = self.tokenize_line(text)[0]
        return torch.cat([self.encode_with_transformers(torch.tensor([chunk.tokens]))[0] for chunk in chunks])

    def encode_with_transformers(self, tokens: Tensor) -> Tensor:
        hidden = self.first(self.embedding(tokens)).cumsum(dim=1)
        return hidden if self.skipped() else self.last(hidden)


class Engine(Encoder):
    """A Forge's: CLIP skip is a number of its own."""

    minimal_clip_skip, clip_skip = 1, 1

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.clip_skip = 2

    def skipped(self) -> bool:
        return self.clip_skip > 1


class Loaded(nn.Module):
    """An `sd_model`: what is set on it is what it has."""

    def __init__(self, **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)

    def decode_first_stage(self, latents: Tensor) -> Tensor:
        parts = getattr(self, "forge_objects", None)
        vae = self.first_stage_model if parts is None else parts.vae.first_stage_model
        return vae.decode(latents / SCALE)


class A1111Model(Loaded):
    """The LDM's call."""

    def apply_model(self, x: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        x = torch.cat([x, *cond["c_concat"]], dim=1)
        if "crossattn" in cond:
            return self.model.diffusion_model(x, t, context=cond["crossattn"], y=cond["vector"])
        return self.model.diffusion_model(x, t, context=torch.cat(cond["c_crossattn"], dim=1))


def seeded(make: Any) -> Any:
    """The same random weights at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return make().eval()


def alphas() -> Tensor:
    return schedule.alphas_cumprod().float()


def a1111(network: nn.Module | None = None) -> A1111Model:
    """As A1111 1.10.1 has it."""
    network = unet() if network is None else network
    model = A1111Model(
        model=Loaded(diffusion_model=network),
        first_stage_model=seeded(lambda: VAE(samples=False)),
        cond_stage_model=seeded(lambda: Encoder(_width(network))),
        scale_factor=SCALE,
        parameterization="eps",
    )
    model.alphas_cumprod = model.alphas_cumprod_original = alphas()
    return model


class Patcher(SimpleNamespace):
    """What a Forge's memory management moves; `vars` of the memory say whether it did."""


def _forge_objects(network: nn.Module, vae: nn.Module, kind: Any) -> SimpleNamespace:
    cpu = torch.device("cpu")
    return SimpleNamespace(
        unet=Patcher(model=kind, load_device=cpu),
        vae=Patcher(first_stage_model=vae, patcher=Patcher(), device=cpu, vae_dtype=torch.float32),
        clip=Patcher(patcher=Patcher()),
    )


def forge(network: nn.Module | None = None) -> Loaded:
    """As Forge (June 2025) has it: nothing of the LDM, everything in `forge_objects`, engines for text."""
    network = unet() if network is None else network
    predictor = SimpleNamespace(alphas_cumprod=alphas(), prediction_type="epsilon")
    kind = SimpleNamespace(diffusion_model=network, predictor=predictor, computation_dtype=torch.float32)
    objects = _forge_objects(network, seeded(lambda: ForgeVAE(samples=True)), kind)
    engine = seeded(lambda: Engine(_width(network)))
    return Loaded(forge_objects=objects, text_processing_engine=engine, first_stage_model=None, model=None)


def reforge(network: nn.Module | None = None) -> Loaded:
    """As reForge (March 2026) has it: the LDM's names and `forge_objects` beside them."""
    network = unet() if network is None else network
    kind = SimpleNamespace(
        diffusion_model=network,
        manual_cast_dtype=None,
        get_dtype=lambda: torch.float32,
        process_latent_in=lambda latents: latents * SCALE,
    )
    objects = _forge_objects(network, seeded(lambda: VAE(samples=True)), kind)
    model = Loaded(
        forge_objects=objects,
        model=Loaded(diffusion_model=network),
        cond_stage_model=seeded(lambda: Encoder(_width(network))),
        parameterization="eps",
    )
    model.alphas_cumprod = alphas()
    return model


def _width(network: Any) -> int:
    return network.config.context_dim


HOSTS = {"A1111": a1111, "Forge": forge, "reForge": reforge}
THIS = sys.modules[__name__]
