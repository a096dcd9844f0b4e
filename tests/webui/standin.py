"""A1111's processing object as far as the section touches it, and its calls as far as they need a host."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image

from ldznet.checkpoints import load_head
from ldznet.hosts.tiny import TinyHost
from ldznet.predictor import Predictor
from ldznet.segmentation import Segmentation
from ldznet.webui import looking
from ldznet.webui.calls import Calls


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


class Txt2Img:
    """The fields of StableDiffusionProcessingTxt2Img."""

    def __init__(self, **others: Any) -> None:
        self.extra_generation_params: dict[str, Any] = {}
        self.comments: dict[str, int] = {}
        vars(self).update(others)

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
            texts=lambda p, prompt: [[part] for part in prompt.split(" AND ")],
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
    tiny = tiny_host()
    made: Any = looking.Looker(folder)
    made.asked = 0

    def opened(sd_model: Any) -> TinyHost:
        made.asked += 1
        return tiny

    monkeypatch.setattr(looking, "open_host", opened)
    monkeypatch.setattr(looking, "Predictor", Remembering)
    monkeypatch.setattr(looking, "load_head", head)
    return made


@functools.cache
def tiny_host() -> TinyHost:
    return TinyHost.load()


@functools.cache
def head(path: str, dtype: torch.dtype) -> Any:
    return load_head(path, dtype=dtype)


class Remembering:
    """A Predictor that predicts the same thing once for all tests."""

    known: ClassVar[dict[Any, Segmentation]] = {}

    def __init__(self, host: Any, head: Any, progress: Any) -> None:
        self.make, self.key = (
            lambda: Predictor(host, head, progress=progress),
            (type(head), len(list(head.parameters()))),
        )

    def set_image(self, picture: Image.Image) -> None:
        self.given = (picture.size, picture.tobytes())
        self.set = lambda predictor: predictor.set_image(picture)

    def set_latents(self, latents: torch.Tensor, captured: Any) -> None:
        self.given = (latents.shape, latents.numpy().tobytes())
        self.set = lambda predictor: predictor.set_latents(latents, captured=captured)

    def predict(self, phrases: Any) -> Segmentation:
        key = (self.key, self.given, tuple(phrases))
        if key not in self.known:
            predictor = self.make()
            self.set(predictor)
            self.known[key] = predictor.predict(phrases)
        return self.known[key]
