"""Attention of text and picture in one sequence on the tiny world: a small SD 3, read as every SD 3 of diffusers is.

    python benchmarks/joint.py drawing --scenes 200 --weights runs/weights     does it draw what captions name?
    python benchmarks/joint.py choose --scenes 40 --weights runs/weights       blocks and timesteps, from 500,000 on
    python benchmarks/joint.py masks --scenes 100 --weights runs/weights       masks beside the UNet's and blind ones

`ldznet train sd3` trains it; `--untrained` stands for it with random weights, as a floor. Nouns are phrases of a kind
alone ("a star"), coloured ones name its colour too. Photo scenes that no training saw; IoU is at 128 x 128 pixels,
intervals are over images. With `--json FILE` the figures are written there.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from helpers import CHOOSE, TEST, Figure, Row, alone, drawn, judge, parser, report
from torch import Tensor, nn

from ldznet import Predictor, load_head
from ldznet.attention import CONFIGS, AttentionHead
from ldznet.attention.config import joint_config
from ldznet.data import TinyWorldDataset
from ldznet.data.items import Item
from ldznet.evaluate.benchmark import Segment, figures, intervals, names_colour, nearest_colour, run, whole_image
from ldznet.evaluate.benchmark import segment_with as together
from ldznet.evaluate.gates import TEST_SEED, share_interval
from ldznet.hosts.hf_diffusers_joint import Encoder, JointDiffusersHost
from ldznet.hosts.tiny import TinyHost
from ldznet.tinyworld import joint, world
from ldznet.train.joint import Drawing
from ldznet.train.ldm import only_category
from ldznet.train.recipe import seeded

BATCH = 50
BLOCKS = ((0,), (1,), (2,), (0, 1, 2))
TIMESTEPS = (100, 260, 500, 700)
CHOSEN: tuple[tuple[int, ...], int] = ((0, 1, 2), 260)  # blocks and timestep, before any model for `choose` to try


class Said(NamedTuple):
    """What a CLIP with a projection says: `text_embeds` first, as in transformers."""

    text_embeds: Tensor
    hidden_states: tuple[Tensor, ...]


class Clip(nn.Module):
    """The tiny world's text encoder as one of SD 3's CLIPs, of which the last layer but one is read."""

    def __init__(self, models: world.Models) -> None:
        super().__init__()
        self.text = models.text

    def forward(self, ids: Tensor, output_hidden_states: bool) -> Said:
        states, pooled = joint.read(self.text, ids)
        states, pooled = (part[..., : joint.TEXT_WIDTH] for part in (states, pooled))
        return Said(pooled, (states, states))


class Words:
    """The tiny world's tokenizer as transformers calls one."""

    model_max_length = joint.ROWS

    def __init__(self, models: world.Models) -> None:
        self.tokenizer = models.tokenizer

    def __call__(self, texts: str | Sequence[str], add_special_tokens: bool = True, **_: Any) -> SimpleNamespace:
        if isinstance(texts, str):
            return SimpleNamespace(input_ids=self.tokenizer.ids(texts))
        return SimpleNamespace(input_ids=[joint.token_ids(self.tokenizer, text) for text in texts])


class Vae(nn.Module):
    """The tiny world's VAE, whose latents are scaled, as diffusers calls one."""

    dtype = torch.float32
    config = SimpleNamespace(latent_channels=4, block_out_channels=(0,) * 4, scaling_factor=1.0, shift_factor=0.0)

    def __init__(self, models: world.Models) -> None:
        super().__init__()
        self.vae = models.vae

    def encode(self, pixels: Tensor) -> SimpleNamespace:
        return SimpleNamespace(latents=self.vae.encode(pixels))

    def decode(self, latents: Tensor, return_dict: bool) -> tuple[Tensor]:
        return (self.vae.decode(latents),)


def transformer(given: argparse.Namespace) -> Any:
    """The trained one, or one of random weights."""
    if not given.untrained:
        return joint.load(given.weights)
    with seeded(0):
        made = joint.fresh()
        for parameter in made.parameters():
            nn.init.normal_(parameter, std=0.1)
    return made.eval().requires_grad_(False)


def host_of(network: Any, models: world.Models) -> JointDiffusersHost:
    """The host that `open_host` makes of an SD 3, around the tiny world's parts."""
    encoder = Encoder.clip(Clip(models), Words(models))
    return JointDiffusersHost(network, Vae(models), (encoder, encoder), {"shift": 1.0})


def head_of(host: JointDiffusersHost, blocks: Sequence[int], timestep: int) -> AttentionHead:
    """The attention head with what it reads, and the tiny world's words around phrases."""
    tiny = CONFIGS["tiny"]
    stride = joint.CONFIG["patch_size"]
    changes = {name: getattr(tiny, name) for name in ("opening", "closing", "background", "threshold", "size_multiple")}
    config = dataclasses.replace(joint_config(host), **changes)
    places = tuple(f"{stride}/joint.{block}" for block in blocks)
    return AttentionHead(dataclasses.replace(config, coarse=places, timestep=timestep))


def scored(segment: Segment, items: Sequence[Item]) -> Row:
    """mIoU at 0.5 and at the best threshold of nouns, coloured phrases and stuff, with intervals."""
    outcome = run(segment, items)
    colour = names_colour(outcome.phrases)
    kinds = {"nouns": outcome.things & ~colour, "coloured": outcome.things & colour, "stuff": ~outcome.things}
    row: dict[str, Figure] = {}
    for kind, rows in kinds.items():
        found, spans = figures(outcome, rows), intervals(outcome, rows)
        row[f"{kind} 0.5"] = [found.miou_50, *spans["miou_50"]]
        row[f"{kind} best"] = [found.miou_best, *spans["miou_best"]]
        row[f"n {kind}"] = found.phrases
    return {**row, "images": len(items)}


def present(count: int, start: int) -> list[Item]:
    """Photo scenes, of which what is there is asked alone."""
    return [dataclasses.replace(item, absent=()) for item in drawn("T0", count, start)]


def masks(given: argparse.Namespace, models: world.Models) -> Iterator[tuple[str, Row]]:
    """The small SD 3's attention beside the UNet's, and what never looks."""
    items = present(given.scenes, TEST)
    small = host_of(transformer(given), models)
    mine = Predictor(small, head_of(small, *CHOSEN))
    unet = Predictor(TinyHost(models), load_head("attention"))
    ways: dict[str, Callable[[], Segment]] = {
        "SD 3, attention together": lambda: together(mine),
        "SD 3, a phrase a pass": lambda: alone(mine),
        "UNet, attention together": lambda: together(unet),
        "UNet, a phrase a pass": lambda: alone(unet),
        "the nearest colour": lambda: nearest_colour,
        "the whole image": lambda: whole_image,
    }
    for name, way in ways.items():
        if given.only in name:
            yield name, scored(way(), items)


def choose(given: argparse.Namespace, models: world.Models) -> Iterator[tuple[str, Row]]:
    """Each choice of blocks and timestep, a phrase a pass, on scenes that no figure is taken on."""
    items, small = present(given.scenes, CHOOSE), host_of(transformer(given), models)
    for blocks in BLOCKS:
        for timestep in TIMESTEPS:
            name = f"blocks {', '.join(map(str, blocks))} at t {timestep}"
            if given.only in name:
                yield name, scored(alone(Predictor(small, head_of(small, blocks, timestep))), items)


def drawing(given: argparse.Namespace, models: world.Models) -> Iterator[tuple[str, Row]]:
    """The share of captions of one thing in whose pictures the gates' judge finds the captioned category, beside the
    UNet's; 95 % intervals (Wilson)."""
    scenes = TinyWorldDataset(given.scenes, start=TEST_SEED, things=1)
    captions = [scenes[i].captions[0] for i in range(given.scenes)]
    categories = [only_category([caption]) for caption in captions]
    network, classifier, host = transformer(given), judge(), TinyHost(models)
    mine, theirs = [], []
    for start in range(0, len(captions), BATCH):
        some, wanted = captions[start : start + BATCH], categories[start : start + BATCH]
        mine.append(Drawing(models, classifier, some, wanted, steps=28).found(network))
        with torch.no_grad():
            named = classifier(host.decode_latents(host.generate(some, seed=start)))[0].argmax(1)
        theirs.append(named == torch.tensor(wanted))
    for name, found in {"SD 3": mine, "UNet": theirs}.items():
        share = float(torch.cat(found).float().mean())
        yield name, {"found": [share, *share_interval(share, len(captions))], "captions": len(captions)}


def main() -> None:
    made = parser(__doc__)
    made.add_argument("what", choices=("drawing", "choose", "masks"))
    made.add_argument("--scenes", type=int, default=100, help="or captions (default: 100)")
    made.add_argument("--weights", type=Path, default=world.WEIGHTS, help="folder with sd3.safetensors")
    made.add_argument("--untrained", action="store_true", help="a transformer of random weights")
    made.add_argument("--only", default="", help="ways whose name contains this")
    given = made.parse_args()
    if given.scenes < 1:
        made.error(f"expected at least one scene, got {given.scenes}")
    rows = {"drawing": drawing, "choose": choose, "masks": masks}[given.what](given, world.load())
    report(rows, given.json)


if __name__ == "__main__":
    main()
