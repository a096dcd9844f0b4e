"""Does a head read its taps? The same masks with taps that say nothing, or something else.

A head that starts from the LDM's own weights can compute from the latents whatever the taps would say, and then nothing
that is measured with it speaks of taps. Each mistake here leaves latents, text and masks as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..contracts import Conditioning, Host, Taps
from ..data.cache import images_to_pixels
from ..data.items import Item
from ..models import DeltaHead, Network
from ..models.trained import conditioned
from ..phrases import fill
from ..shapes import Float
from .metrics import bootstrap

OWN, NULL = "its own taps", "null taps"
THRESHOLD = 0.5


@dataclass(frozen=True)
class Reading:
    """IoU at 0.5 of each phrase by what was done to the taps, and the scene that each phrase belongs to."""

    ious: dict[str, Float[np.ndarray, " n"]]
    scenes: np.ndarray

    def cost(self, mistake: str) -> tuple[float, float, float]:
        """Mean IoU that a mistake costs, and its 95 % interval over scenes, phrase by phrase."""
        return bootstrap(self.ious[OWN] - self.ious[mistake], self.scenes)


def reading(
    head: Network,
    host: Host,
    items: Sequence[Item],
    timestep: int | None = None,
    asked: Callable[[str, str], bool] = lambda phrase, kind: kind == "thing",
    mistakes: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Reading:
    """Every phrase of `items` that is `asked` for (phrase, kind), with its own taps and after each of `mistakes`
    (None: all of them). The taps of another scene are the next one's, of another phrase the scene's next."""
    config, device = head.head_config, head.example.device
    t = config.timestep if timestep is None else timestep
    wanted = [OWN, *(MISTAKES if mistakes is None else mistakes)]
    ious: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
    scenes: list[int] = []
    for number, item in enumerate(items):
        which = [i for i, (p, kind) in enumerate(zip(item.phrases, item.kinds, strict=True)) if asked(p, kind)]
        if not which:
            continue
        latents = _latents(host, item)
        text = conditioned(host, [fill(config.template, item.phrases[i]) for i in which])
        taps = head.extracted(host, latents, text, t, seed=0)
        other = head.extracted(host, _latents(host, items[(number + 1) % len(items)]), text, t, seed=0)
        masks = torch.from_numpy(item.masks[which]).to(device)
        rows = latents.to(device).expand(len(which), -1, -1, -1)
        for name in wanted:
            read = taps if name == OWN else MISTAKES[name](taps, other)
            ious[name].append(_iou(_logits(head, host, rows, text, read, name != NULL)[:, 0] > 0, masks))
        scenes += [number] * len(which)
        if progress:
            progress(number + 1, len(items))
    return Reading({name: np.concatenate([np.zeros(0), *found]) for name, found in ious.items()}, np.array(scenes))


def swapped(taps: Taps, other: Taps) -> Taps:
    """Each tap in the place of the next one of its shape."""
    names: dict[torch.Size, list[str]] = {}
    for block, tap in taps.items():
        names.setdefault(tap.shape, []).append(block)
    after = {b: of[(i + 1) % len(of)] for of in names.values() for i, b in enumerate(of)}
    return {block: taps[after[block]] for block in taps}


def of_another_phrase(taps: Taps, other: Taps) -> Taps:
    """The taps of the scene's next phrase (its own where there is one alone)."""
    return {block: tap.roll(1, dims=0) for block, tap in taps.items()}


MISTAKES: Mapping[str, Callable[[Taps, Taps], Taps]] = {
    "taps of another scene": lambda taps, other: other,
    "blocks swapped": swapped,
    NULL: lambda taps, other: taps,  # whatever they are, they are left out as in training
    "taps of another phrase": of_another_phrase,
}


@torch.no_grad()
def _logits(head: Network, host: Host, rows: Tensor, text: Conditioning, taps: Taps, there: bool) -> Tensor:
    """Of the masks, n 1 h w; where the taps are not `there`, they are left out as in training."""
    if isinstance(head, DeltaHead):
        return head.masks_over(host, rows, text, {block: tap * there for block, tap in taps.items()})[0]
    zeros = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    kept = torch.ones(len(rows), 2, dtype=rows.dtype, device=rows.device)
    kept[:, 1] = there
    return head.read(head.features(rows, zeros, text.context.to(rows.device), taps, kept))[0]


def _latents(host: Host, item: Item) -> Tensor:
    return host.encode_image(images_to_pixels(item.image[None]))


def _iou(masks: Tensor, truths: Tensor) -> np.ndarray:
    """With the 1 in the denominator that the paper's metric has, n."""
    both, either = (masks & truths).sum(dim=(1, 2)), (masks | truths).sum(dim=(1, 2))
    return (both / (1 + either)).cpu().numpy()
