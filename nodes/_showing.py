"""What a node shows of a segmentation: masks over pictures, with a legend. Preview and the segmenting nodes show it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from comfy_api.latest import io, ui
from torch import Tensor

from ..ldznet import drawing
from ..ldznet.masks import INSIDE, Check, never
from ..ldznet.shapes import Float, Size
from ._boundary import PREVIEW, Segmented, image_of, within

OPACITY = 0.6  # of the colours, where no widget says
LIVE = "ldznet"  # of what a node shows: what web/ldznet.js draws with
MOST_PHRASES, MOST_IMAGES = 16, 8  # that are sent to the page


class Shown(NamedTuple):
    """Pictures with masks over them, their legends as text, and all that they were made of."""

    overlays: Float[Tensor, "b 3 h w"]
    texts: list[str]
    segmentation: Segmented
    pictures: Float[Tensor, "b 3 h w"]
    hues: Float[Tensor, "p 3"]
    chosen: list[int]

    def in_node(self, node: Any) -> dict[str, Any]:
        """Soft maps for the page, which draws them itself (web/ldznet.js); a picture with its legend for all others."""
        if in_a_page(node):
            return {LIVE: [live(self.segmentation, self.pictures, self.hues)], "text": self.texts}
        legends = [text.splitlines()[: len(self.chosen)] for text in self.texts]
        notes, hues = self.segmentation.remarks(), self.hues[self.chosen]
        pages = [drawing.with_legend(*part, hues, notes) for part in zip(self.overlays, legends, strict=True)]
        return {**ui.PreviewImage(image_of(stacked(pages)), cls=node).as_dict(), "text": self.texts}


def in_a_page(node: Any) -> bool:
    """Whether the page queued what runs: it sends its workflow along. Of a node with the hidden input extra_pnginfo."""
    return node.hidden is not None and "workflow" in (node.hidden.extra_pnginfo or {})


class Kept:
    """What an outer node shows, under `LIVE`, before it is known: the inner node that it expands to fills it.

    ComfyUI sends what a node showed again where the node is cached, but of an expanded one the outer node's alone.
    """

    def __init__(self) -> None:
        self.shown: dict[str, Any] = {}

    def fill(self, shown: dict[str, Any]) -> None:
        """With what `Shown.in_node` gave for a page; in place, for ComfyUI has the dict already."""
        self.shown.update(shown[LIVE][0])


def show(
    segmentation: Segmented,
    masks: Float[Tensor, "b n h w"],
    pictures: Float[Tensor, "b 3 H W"],
    opacity: float,
    check: Check = never,
    chosen: Sequence[int] | None = None,
) -> Shown:
    """`masks` (0 or 1) of the `chosen` phrases of `segmentation` (all, if None) over `pictures` in [0, 1], of their
    size or smaller; `check` may raise. Colours are the same at every threshold."""
    chosen = list(range(len(segmentation.result.phrases)) if chosen is None else chosen)
    masks, hues = masks.cpu(), hues_of(segmentation, pictures)
    areas = masks.mean(dim=(2, 3))
    overlays = drawing.overlay(
        pictures, F.interpolate(masks, pictures.shape[2:], mode="nearest"), opacity, hues[chosen], check
    )
    part, notes = segmentation.select(chosen), segmentation.remarks()
    texts = ["\n".join([*legend(part, b, areas[b]), *notes]) for b in range(len(overlays))]
    return Shown(overlays, texts, segmentation, pictures, hues, chosen)


def hues_of(segmentation: Segmented, pictures: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "p 3"]:
    """A colour for each phrase, unlike what it most probably covers: the same in every node that shows `segmentation`,
    where that has kept its own picture."""
    pictures = pictures if segmentation.picture is None else segmentation.pictures(PREVIEW)
    return drawing.contrasting(
        pictures, (_sized(segmentation.soft(), (pictures.shape[2], pictures.shape[3])) > INSIDE).float()
    )


def live(segmentation: Segmented, pictures: Float[Tensor, "b 3 H W"], hues: Float[Tensor, "p 3"]) -> dict[str, Any]:
    """What web/ldznet.js draws with: phrases, colours, scores, and the names of temporary files with the pictures and
    the soft maps, three phrases as red, green and blue. Of the first `MOST_IMAGES` and `MOST_PHRASES` alone, at most
    `PREVIEW` pixels high and wide."""
    result = segmentation.select(list(range(len(segmentation.result.phrases)))[:MOST_PHRASES]).result
    height, width = within(segmentation.size, PREVIEW)
    soft = _sized(segmentation.soft()[:MOST_IMAGES, :MOST_PHRASES], (height, width))
    count, phrases = soft.shape[:2]
    packed = F.pad(soft, (0, 0, 0, 0, 0, -phrases % 3)).reshape(-1, 3, height, width)
    maps, each = _saved("maps", packed), packed.shape[0] // count
    left_out = len(segmentation.result.phrases) - phrases
    notes = [f"{left_out} more phrases are not shown here"] if left_out else []
    return {
        "phrases": [
            {
                "text": phrase,
                "hue": [round(255 * value) for value in hues[p].tolist()],
                "scores": result.scores[:count, p].tolist(),
                "found": result.found[:count, p].tolist(),
            }
            for p, phrase in enumerate(result.phrases)
        ],
        "notes": [*segmentation.remarks(), *notes],
        "calibrated": result.calibrated,
        "threshold": segmentation.threshold,
        "size": list(segmentation.size),
        "pictures": _saved("picture", _sized(pictures[:MOST_IMAGES], (height, width))),
        "maps": [maps[i * each : (i + 1) * each] for i in range(count)],
    }


def _sized(maps: Float[Tensor, "b c h w"], size: Size) -> Float[Tensor, "b c H W"]:
    """`maps` on the CPU, scaled down bilinearly where they are larger."""
    maps = maps.cpu()
    if maps.shape[2:] == torch.Size(size):
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False, antialias=True)


def _saved(name: str, pictures: Float[Tensor, "n 3 h w"]) -> list[dict[str, str]]:
    """The names of temporary files of 8 bits, each value rounded: what saves them cuts off."""
    rounded = ((pictures.clamp(0, 1) * 255).round() + 0.25) / 255
    saved = ui.ImageSaveHelper.save_images(
        image_of(rounded), filename_prefix=f"ldznet_{name}", folder_type=io.FolderType.temp, cls=None, compress_level=1
    )
    return [{key: str(file[key]) for key in ("filename", "subfolder", "type")} for file in saved]


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
