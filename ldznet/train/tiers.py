"""Heads over a Stable Diffusion of yours: three sizes of them, one recipe.

*light* decodes latents and taps without a second UNet. *one* is a pass of the host's own UNet over clean latents under
low-rank changes, a ZNet; *two* reads taps of a pass before that, an LD-ZNet. Settings after CLIPSeg (Lüddecke and
Ecker, CVPR 2022: 20,000 steps of 64, a fifth of the phrases absent) and LoRA (Hu et al., ICLR 2022).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints import save_head
from ..config import PUBLISHED_BLOCKS, HeadConfig, UNetConfig
from ..contracts import Host
from ..data.cache import Cache
from ..errors import InputError
from ..models import DeltaHead, Network, TrainedHead, build_head
from ..models.delta import matrices_of
from ..tinyworld import world
from .engine import Progress, Run, TrainConfig
from .head import HeadTask
from .negatives import with_absent
from .recipe import commit, part_of, seeded

TIERS = ("light", "one", "two")
RANK, RANKS = 32, {"sdxl": 16}  # the latter by family
LIGHT_WIDTH = 96
ATTN3_WIDTH = 256
MASK_CHANNELS = (64, 32, 16)
BLOCKS = {  # whose taps *two* reads; the published ones elsewhere
    "tiny": world.LIGHT_BLOCKS,
    "sdxl": ("input.7", "input.8", "middle.0", "output.0", "output.1", "output.2"),
}
ABSENT_SHARE = 0.2
RECIPE = TrainConfig(20_000, 64, 5e-4, ema=0.999, graphs=False)


def tier_config(tier: str, family: str, unet: UNetConfig, side: int, rank: int | None = None) -> HeadConfig:
    """The head of `tier` over a `unet` of a `family` for pictures of `side` pixels. Raises InputError for what there is
    not.

    `rank`, the recipe's if None, is that of the changes to the linear layers of the UNet's transformers; other matrices
    keep their weights.
    """
    if tier not in TIERS:
        raise InputError(f"Expected a tier of {', '.join(TIERS)}, got {tier!r}.")
    config = world.head_config("light") if family == "tiny" else HeadConfig(mask_channels=MASK_CHANNELS)
    config = dataclasses.replace(
        config,
        has_presence=True,
        host_unet=unet,
        unet=dataclasses.replace(unet, out_channels=1),
        latent_grid=(side // config.pixels_per_latent,) * 2,
    )
    if side % config.size_multiple:
        raise InputError(f"Expected a size in multiples of {config.size_multiple} pixels, got {side}.")
    if tier == "light":
        narrow = dataclasses.replace(config.unet, model_channels=LIGHT_WIDTH)
        finest = min(unet.attention_downsampling)  # SDXL has no attention at full size, and latents four times as many
        strides = (finest, 2 * finest)
        return dataclasses.replace(config, network="light", unet=narrow, blocks=_spread(unet), strides=strides)
    names, rank = matrices_of(config.unet), rank or RANKS.get(family, RANK)
    return dataclasses.replace(
        config,
        network="delta",
        blocks=() if tier == "one" else BLOCKS.get(family, PUBLISHED_BLOCKS),
        ranks=tuple(rank if ".transformer_blocks." in name else 0 for name in names),
        attn3_width=min(ATTN3_WIDTH, unet.model_channels),
    )


def _spread(unet: UNetConfig) -> tuple[str, ...]:
    """Taps of a light head: the last of each size on the way in, and on the way out."""
    last = {(spec.block.split(".")[0], spec.stride): spec.block for spec in unet.tap_specs().values()}
    return tuple(block for (stage, _), block in last.items() if stage != "middle")


class Tier:
    """The training of a head over a host, from a cache with latents, in a folder where it resumes."""

    def __init__(
        self,
        config: HeadConfig,
        host: Host,
        cache: Cache,
        training: TrainConfig,
        folder: Path,
        teacher: TrainedHead | None = None,
    ) -> None:
        """Raises HostError for a teacher that does not fit the host."""
        with seeded(training.seed):
            self.head = build_head(config)
            if isinstance(self.head, DeltaHead):
                self.head.begin()
        cache.records = with_absent(cache.records)
        self.count = len(cache)
        taught = teacher and teacher.fitted_to(host)
        self.task = HeadTask(self.head, host, cache, absent_share=ABSENT_SHARE, folder=cache.folder, teacher=taught)
        self.run = Run(self.task, training, folder)

    def train(
        self,
        out: Path,
        metadata: Mapping[str, str],
        progress: Progress | None = None,
        examine: Callable[[Network], dict[str, float]] | None = None,
    ) -> None:
        """Trains to the end and writes the head to `out`, with `metadata` and how it was made.

        `examine`, given the head with the parameters' moving averages, adds figures to the log at each save.
        """

        def examined(parameters: Mapping[str, Tensor]) -> dict[str, float]:
            assert examine is not None
            with self._holding(parameters):
                return examine(self.head)

        trained = self.run.train(progress, examined if examine else None)
        config = self.run.config
        how = f"{config.steps} steps of {config.batch}, {self.count} images, EMA {config.ema}, {config.precision}"
        if not self.run.accelerator.is_main_process:
            return
        with self._holding(trained):
            save_head(self.head, out, {"how": how, "commit": commit(), **metadata})

    @contextlib.contextmanager
    def _holding(self, parameters: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, the head has these parameters, asks for no gradients, and its host is as it was."""
        self.task.module.close()
        before = {name: tensor.clone() for name, tensor in self.head.state_dict().items()}
        self.head.load_state_dict(part_of(parameters, "head."))
        try:
            with torch.no_grad():
                yield
        finally:
            self.head.load_state_dict(before)
