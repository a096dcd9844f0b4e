"""From a picture and phrases to soft maps with the model that the host has loaded; the last ones are kept."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..attention import AttentionHead
from ..checkpoints import load_head
from ..contracts import Captured
from ..errors import CheckpointError
from ..hosts import open_host
from ..hosts.memo import Memo
from ..models import Network
from ..predictor import Predictor
from ..segmentation import Segmentation
from ..shapes import Float
from .settings import WITHOUT_FILE

Check = Callable[[], None]


class Question(NamedTuple):
    """What is looked for in a picture, with what. `weights` names what the host has loaded, for it may put other
    weights into the same object."""

    phrases: tuple[str, ...]
    head: str
    weights: str


class Looker:
    """The heads of `folder` and the last soft maps. One for a running host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._heads: dict[tuple[str, float], AttentionHead | Network] = {}
        self._memo = Memo()

    def look(self, sd_model: Any, picture: Image.Image, question: Question, check: Check) -> Segmentation:
        """The soft maps of the phrases in an RGB picture, on the CPU; `check` is called between passes and may raise.

        Raises LDZNetError: for a model that no head reads, a head that does not fit it or is not there, a phrase that
        names nothing.
        """
        path = self.path_of(question.head)
        pixels = hashlib.sha256(np.asarray(picture).tobytes()).hexdigest()
        key = (question, _age(path), pixels, picture.size)
        return self._memo.get([sd_model], key, lambda: self._looked(sd_model, picture, question, path, check))

    def _looked(self, sd_model: Any, picture: Image.Image, question: Question, path: str, check: Check) -> Segmentation:
        host = self.host(sd_model)
        with self._head(path, host) as head:
            predictor = Predictor(host, head, progress=lambda done, total: check())
            check()
            predictor.set_image(picture)
            check()
            return _at_rest(predictor.predict(question.phrases))

    def host(self, sd_model: Any) -> Any:
        """What is loaded, as a host; raises HostError where no head reads it."""
        return open_host(sd_model)

    def look_at_latents(
        self,
        host: Any,
        latents: Float[Tensor, "b 4 h w"],
        question: Question,
        captured: Sequence[Captured | None],
        check: Check,
    ) -> list[Segmentation]:
        """Those of each of some model-space latents, with what was captured while it was made; nothing is kept. Raises
        as `look` does."""
        found = []
        with self._head(self.path_of(question.head), host) as head:
            predictor = Predictor(host, head, progress=lambda done, total: check())
            for latent, seen in zip(latents.split(1), captured, strict=True):
                check()
                predictor.set_latents(latent, captured=seen)
                found.append(_at_rest(predictor.predict(question.phrases)))
        return found

    @contextlib.contextmanager
    def _head(self, path: str, host: Any) -> Iterator[AttentionHead | Network]:
        """The head on the host's device, and back on the CPU afterwards: the host does not know it."""
        key = (path, _age(path))
        if key not in self._heads:
            dtype = torch.float32 if host.device.type == "cpu" else torch.float16
            self._heads = {key: load_head(path, dtype=dtype)}  # one head is kept
        head = self._heads[key]
        size = sum(weight.numel() * weight.element_size() for weight in head.parameters())
        if size and host.device.type != "cpu" and hasattr(host, "make_room"):
            host.make_room(size)
        try:
            yield head.to(host.device)
        finally:
            head.to("cpu")

    def path_of(self, name: str) -> str:
        """Where the head lies that the section calls `name`; raises CheckpointError where there is none."""
        if name in WITHOUT_FILE:
            return WITHOUT_FILE[name]
        path = self.folder / name
        if self.folder.resolve() not in path.resolve().parents or not path.is_file():
            raise CheckpointError(
                f"Expected {name} in {self.folder}, found none. Put it there, or choose another head."
            )
        return str(path)


def _at_rest(result: Segmentation) -> Segmentation:
    """On the CPU: it is kept."""
    return dataclasses.replace(result, logits=result.logits.cpu(), scores=result.scores.cpu())


def _age(path: str) -> float:
    """When the file was changed; 0 where the head has none."""
    return os.path.getmtime(path) if os.path.isfile(path) else 0.0
