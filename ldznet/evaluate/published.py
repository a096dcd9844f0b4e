"""Figures that others published, to stand beside ours, each with what keeps the two from being the same.

From the tables of LD-ZNet (arXiv 2303.12343) where nothing else is said. All in per cent, as printed.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """One row: mIoU at threshold 0.3 or at the best one, IoU over pooled pixels, AP; and what is not comparable."""

    system: str
    miou_30: float | None = None
    miou_best: float | None = None
    iou_fg: float | None = None
    ap: float | None = None
    note: str = ""


BOXES = "masks without probabilities, so no threshold was chosen"
CLIPSEG = "352 px, prompts of its own"
PAPER = "384 px; template, noise and t drawn at random; best threshold"
ZERO_SHOT = "trained on PhraseCut alone; which IoU is not said, and its split is not named"
TRAINED = "cIoU on val: pooled pixels at full size and the system's own threshold; trained on this set"

_PHRASECUT = (
    Published("MDETR", miou_best=53.7, note=BOXES),
    Published("GLIPv2-T", miou_best=59.4, note=BOXES),
    Published("RMI", miou_best=21.1, iou_fg=42.5, note=BOXES),
    Published("Mask-RCNN Top", miou_best=39.4, iou_fg=47.4, note=BOXES),
    Published("HulaNet", miou_best=41.3, iou_fg=50.8, note=BOXES),
    Published("CLIPSeg (PC+)", miou_30=43.4, iou_fg=54.7, ap=76.7, note=CLIPSEG),
    Published("CLIPSeg (PC, D=128)", miou_30=48.2, iou_fg=56.5, ap=78.2, note=CLIPSEG),
    Published("RGBNet", miou_best=46.7, iou_fg=56.2, ap=77.2, note=PAPER),
    Published("ZNet", miou_best=51.3, iou_fg=59.0, ap=78.7, note=PAPER),
    Published("LD-ZNet, concatenation", miou_best=50.2, iou_fg=59.0, ap=78.1, note=PAPER),
    Published("LD-ZNet", miou_best=52.7, iou_fg=60.0, ap=78.9, note=PAPER),
)
_AIGI = (
    Published("MDETR", miou_best=53.4, ap=63.8, note=BOXES),
    Published("CLIPSeg (PC+)", miou_best=56.4, ap=79.0, note=CLIPSEG),
    Published("SEEM", miou_best=57.4, ap=70.0, note=BOXES),
    Published("RGBNet", miou_best=63.4, ap=84.1, note=PAPER),
    Published("ZNet", miou_best=68.4, ap=85.0, note=PAPER),
    Published("LD-ZNet", miou_best=74.1, ap=89.6, note=PAPER),
)


def _referring(*rows: tuple[float, float]) -> tuple[Published, ...]:
    """(IoU, AP) of the four systems that the paper has on one of the referring sets."""
    names = ("CLIPSeg (PC+)", "RGBNet", "ZNet", "LD-ZNet")
    return tuple(
        Published(name, iou_fg=iou, ap=ap, note=ZERO_SHOT) for name, (iou, ap) in zip(names, rows, strict=True)
    )


PUBLISHED: dict[str, tuple[Published, ...]] = {  # by dataset
    "phrasecut": _PHRASECUT,
    "aigi": _AIGI,
    "refcoco": (
        *_referring((30.1, 14.1), (36.3, 15.7), (40.1, 16.8), (41.0, 17.2)),
        Published("UNINEXT-H", iou_fg=82.2, note=TRAINED),
        Published("GLaMM", iou_fg=79.5, note=TRAINED),
        Published("EVF-SAM", iou_fg=82.4, note=TRAINED),
    ),
    "refcoco+": _referring((30.3, 15.5), (37.1, 16.7), (40.9, 17.8), (42.5, 18.6)),
    "gref": _referring((33.8, 23.7), (41.9, 27.8), (47.1, 29.2), (47.8, 30.8)),
}
