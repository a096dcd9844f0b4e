"""What a node shows of a segmentation: masks over pictures, with a legend. Preview and the segmenting nodes show it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from comfy_api.latest import ui
from torch import Tensor

from ..ldznet import drawing
from ..ldznet.masks import Check, never
from ..ldznet.shapes import Float
from ._boundary import Segmented, image_of

OPACITY = 0.6  # of the colours, where no widget says


class Shown(NamedTuple):
    """Pictures with masks over them, the same with a legend below, and the legends as text."""

    overlays: Float[Tensor, "b 3 h w"]
    pages: list[Float[Tensor, "3 H W"]]
    texts: list[str]

    def in_node(self, node: Any) -> dict[str, Any]:
        """For the page, and for those who read the history."""
        return {**ui.PreviewImage(image_of(stacked(self.pages)), cls=node).as_dict(), "text": self.texts}


def show(
    segmentation: Segmented,
    masks: Float[Tensor, "b p h w"],
    pictures: Float[Tensor, "b 3 H W"],
    opacity: float,
    check: Check = never,
) -> Shown:
    """`masks` of `segmentation` (0 or 1) over `pictures` in [0, 1], of their size or smaller; `check` may raise."""
    masks = masks.cpu()
    areas, masks = masks.mean(dim=(2, 3)), F.interpolate(masks, pictures.shape[2:], mode="nearest")
    hues = drawing.contrasting(pictures, masks)
    overlays = drawing.overlay(pictures, masks, opacity, hues, check)
    legends, notes = [legend(segmentation, b, areas[b]) for b in range(len(overlays))], segmentation.remarks()
    pages = [drawing.with_legend(*part, hues, notes) for part in zip(overlays, legends, strict=True)]
    return Shown(overlays, pages, ["\n".join([*lines, *notes]) for lines in legends])


def legend(segmentation: Segmented, image: int, areas: Float[Tensor, " p"]) -> list[str]:
    """A line per phrase: its share of the picture, or that it was not found, and its score."""
    result = segmentation.result
    states = [result.state(image, i, float(area)) for i, area in enumerate(areas)]
    return [
        f"{p}: {s}, {result.score_text(image, i)}" for i, (p, s) in enumerate(zip(result.phrases, states, strict=True))
    ]


def stacked(pages: list[Float[Tensor, "3 h w"]]) -> Float[Tensor, "b 3 h w"]:
    """As one batch, on white: the legend of one picture may have more lines than another's."""
    height = max(page.shape[1] for page in pages)
    return torch.stack([F.pad(page, (0, 0, 0, height - page.shape[1]), value=1.0) for page in pages])
