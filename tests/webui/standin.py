"""A1111's processing object as far as the section touches it, and its calls as far as they need a host."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ldznet.hosts.tiny import TinyHost
from ldznet.webui import looking
from ldznet.webui.inpainting import Calls


class Processing:
    """The fields of StableDiffusionProcessingImg2Img; `sample` is a method of the class, as there."""

    def __init__(self, *pictures: Image.Image, drawn: Image.Image | None = None, **others: Any) -> None:
        self.init_images, self.image_mask = list(pictures), drawn
        self.inpaint_full_res, self.inpainting_mask_invert, self.resize_mode = True, 0, 0
        self.mask_blur_x = self.mask_blur_y = 0
        self.width, self.height = pictures[0].size if pictures else (64, 64)
        self.extra_generation_params: dict[str, Any] = {"Denoising strength": 0.75}
        self.comments: dict[str, int] = {}
        self.init_latent = torch.zeros(1, 4, 8, 8)
        vars(self).update(others)

    def sample(self, **named: Any) -> str:
        return "sampled"

    def comment(self, text: str) -> None:
        self.comments[text] = 1


class Host:
    """What `Calls` reach: a model, a user who may stop, a log, LoRAs."""

    def __init__(self) -> None:
        self.model = torch.nn.Linear(1, 1)  # looking at it gives the tiny world: see `looker`
        self.stopped = self.interrupted = False
        self.networks, self.log, self.file = "of the last run", list[str](), "a.safetensors"

    def calls(self) -> Calls:
        return Calls(
            sd_model=lambda: self.model,
            weights=lambda: self.file,
            flatten=lambda image: image.convert("RGB"),
            resized=lambda p, image: image if p.inpaint_full_res else image.resize((p.width, p.height)),
            without_networks=self.without,
            cancelled=lambda: self.interrupted,
            stop=lambda: setattr(self, "stopped", True),
            failed=self.log.append,
        )

    @contextlib.contextmanager
    def without(self) -> Iterator[None]:
        self.networks = ""
        try:
            yield
        finally:
            self.networks = "of the last run"


def looker(folder: Path, monkeypatch: Any) -> Any:
    """A Looker for whom every loaded model is the tiny world; `asked` counts how often it was opened."""
    tiny = TinyHost.load()
    made: Any = looking.Looker(folder)
    made.asked = 0

    def opened(sd_model: Any) -> TinyHost:
        made.asked += 1
        return tiny

    monkeypatch.setattr(looking, "open_host", opened)
    return made
