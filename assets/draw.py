"""Draws the registry's icon and banner: pictures of the tiny world, and the masks that its words find in them.

python assets/draw.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

import ldznet
from ldznet import drawing

HERE = Path(__file__).parent
ICON, BANNER = (400, 400), (1344, 576)  # pixels: square, and 21:9
PANEL, OPACITY = 576, 0.6  # pixels of a side, and of the colours
ON_ICON, ON_BANNER = (12, "painting"), ((21, "photo"), (4, "photo"))  # scenes: seed and domain


def panels(seed: int, domain: str) -> tuple[Image.Image, Image.Image]:
    """A scene, and the same with the masks of what its caption names, at the banner's height."""
    scene = ldznet.tinyworld.scene(seed, domain, size=PANEL)
    predictor = ldznet.Predictor(ldznet.open_host("tiny"), ldznet.load_head("tiny"))
    predictor.set_image(scene.image)
    masks = predictor.predict([f"a {thing.colour} {thing.category}" for thing in scene.things]).masks().float()
    picture = torch.from_numpy(scene.image).movedim(-1, 0)[None] / 255
    overlaid = drawing.overlay(picture, masks, OPACITY, drawing.contrasting(picture, masks))
    return opened(picture), opened(overlaid)


def opened(pictures: torch.Tensor) -> Image.Image:
    """The first of some pictures b 3 h w in [0, 1]."""
    return Image.fromarray((pictures[0].movedim(0, -1) * 255).round().numpy().astype(np.uint8))


def main() -> None:
    """Both files."""
    icon, found = panels(*ON_ICON)
    icon.paste(found.crop((PANEL // 2, 0, PANEL, PANEL)), (PANEL // 2, 0))
    icon.resize(ICON, Image.Resampling.LANCZOS).save(HERE / "icon.png", optimize=True)
    (plain, first), (_, second) = (panels(*scene) for scene in ON_BANNER)
    banner, width = Image.new("RGB", BANNER), BANNER[0] // 3
    for i, panel in enumerate((plain, first, second)):
        left = 0 if panel is second else PANEL - width
        banner.paste(panel.crop((left, 0, left + width, PANEL)), (i * width, 0))
    banner.quantize(256, dither=Image.Dither.NONE).save(HERE / "banner.png", optimize=True)


if __name__ == "__main__":
    main()
