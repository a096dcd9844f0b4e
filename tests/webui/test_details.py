"""Detail by words on stand-ins of the host, with the tiny world as the loaded model: each picture's own masks, what is
outside of them to the bit, and a picture that stays as it is whatever goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops
from webui import standin

from ldznet import tinyworld
from ldznet.images import Picture
from ldznet.webui import detailing
from ldznet.webui.detailing import DETAILS, Pass
from ldznet.webui.section import FOR_IMG2IMG, begin
from ldznet.webui.settings import RESULT, TINY

SCENES = [tinyworld.scene(seed, "photo") for seed in (22, 20)]
PICTURES = [Image.fromarray(scene.image) for scene in SCENES]
CAT, GRASS, ABSENT = "a purple cat", "grass", "a yellow boat"
BASE = {"head": TINY, "refine": "none", "blur": 0}


@pytest.fixture(scope="module")
def latents() -> torch.Tensor:
    host = standin.tiny_host()
    return torch.cat([host.encode_image(Picture.of(picture, None).at(picture.size[::-1])) for picture in PICTURES])


@pytest.fixture
def host() -> standin.Host:
    return standin.Host()


@pytest.fixture
def looker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return standin.looker(tmp_path, monkeypatch)


class Sampler:
    """A host's, that makes the same latents whatever it is asked; or raises."""

    def __init__(self, latents: Any) -> None:
        self.latents = latents

    def launch_sampling(self, steps: int, func: Callable[[], Any]) -> Any:
        if isinstance(self.latents, BaseException):
            raise self.latents
        return self.latents


class Paint:
    """img2img's inpainting: white where the mask is; keeps what it was asked."""

    def __init__(self, after: Callable[[], None] | None = None) -> None:
        self.passes: list[Pass] = []
        self.after = after

    def __call__(self, p: Any, job: Pass) -> Image.Image:
        self.passes.append(job)
        if self.after is not None:
            self.after()
        return Image.composite(Image.new("RGB", job.picture.size, "white"), job.picture, job.mask)


def made(
    p: Any,
    host: standin.Host,
    looker: Any,
    latents: Any,
    paint: Any,
    samples: Any = None,
    pictures: Any = PICTURES,
    **settings: Any,
) -> Any:
    """A run of the host's as its hooks see it: the final pictures, and each one's infotext."""
    p.sampler, p.batch_size, p.iteration = Sampler(latents), 2, 0
    begin(p, [{**BASE, **settings}], looker, host.calls())
    detailing.before_sampling(p, None, torch.zeros(2, 4, 16, 16), looker, host.calls())
    made_now = p.sampler.launch_sampling(2, lambda: None)
    detailing.after_sampling(p, made_now if samples is None else samples, looker, host.calls())
    finals, texts = [], []
    for p.batch_index, picture in enumerate(pictures):
        finals.append(detailing.repainted(p, picture.copy(), host.calls(), paint))
        texts.append(p.extra_generation_params[RESULT])
    processed = SimpleNamespace(images=list(finals), infotexts=list(texts))
    detailing.finished(p, processed)
    assert not hasattr(p, DETAILS)
    assert "launch_sampling" not in vars(p.sampler)
    return finals, texts, processed


def white(picture: Image.Image, original: Image.Image) -> np.ndarray:
    return np.asarray(ImageChops.difference(picture, original).convert("L")) > 0


def test_each_picture_of_a_batch_has_its_own_mask(host: standin.Host, looker: Any, latents: torch.Tensor) -> None:
    p, paint = standin.Txt2Img(), Paint()
    finals, texts, processed = made(p, host, looker, latents, paint, details=f"{GRASS} => a meadow\n{ABSENT}\n{CAT}")
    first, second = (white(*pair) for pair in zip(finals, PICTURES, strict=True))
    truth = (SCENES[0].masks[GRASS] > 0) | (SCENES[0].masks[CAT] > 0)
    assert (first & truth).sum() / (first | truth).sum() > 0.85
    assert CAT not in SCENES[1].masks
    assert (first != second).mean() > 0.05
    orders = [(job.at, job.number, job.order.phrase, job.order.prompt) for job in paint.passes if job.at == 0]
    assert orders == [(0, 0, GRASS, "a meadow"), (0, 2, CAT, "")]
    assert np.array_equal(np.asarray(paint.passes[1].picture)[~first], np.asarray(PICTURES[0])[~first])
    assert f"{ABSENT}: not found" in texts[0]
    assert len(processed.images) == 2
    assert looker.asked == 1


def test_not_found_is_the_picture_to_the_bit(host: standin.Host, looker: Any, latents: torch.Tensor) -> None:
    p, paint = standin.Txt2Img(), Paint()
    finals, texts, _ = made(p, host, looker, latents, paint, details=f"{ABSENT} => a boat")
    assert [final.tobytes() for final in finals] == [picture.tobytes() for picture in PICTURES]
    assert all(text.startswith(f"{ABSENT}: not found") for text in texts)
    assert paint.passes == []
    assert p.extra_generation_params["LDZNet details"] == f"{ABSENT} => a boat"


def test_masks_and_overlays_follow_on_demand(host: standin.Host, looker: Any, latents: torch.Tensor) -> None:
    settings = {"details": f"{GRASS}\n{ABSENT}", "gallery": True}
    finals, _, processed = made(standin.Txt2Img(), host, looker, latents, Paint(), **settings)
    overlay, mask = processed.images[2:4]
    assert np.array_equal(np.asarray(mask) > 0, white(finals[0], PICTURES[0]))
    assert overlay.width == PICTURES[0].width * 2  # enlarged, for its legend
    assert len(processed.infotexts) == len(processed.images)


def test_latents_that_the_host_has_decoded_already_come_from_its_sampler(
    host: standin.Host, looker: Any, latents: torch.Tensor
) -> None:
    """Hires fix gives `post_sample` pictures."""
    decoded = [torch.zeros(3, 128, 128)] * 2
    finals, *_ = made(standin.Txt2Img(), host, looker, latents, Paint(), samples=decoded, details=GRASS)
    straight, *_ = made(standin.Txt2Img(), host, looker, latents, Paint(), details=GRASS)
    assert [final.tobytes() for final in finals] == [final.tobytes() for final in straight]


def test_a_picture_that_was_enlarged_since_is_masked_at_its_size(
    host: standin.Host, looker: Any, latents: torch.Tensor
) -> None:
    larger, paint = [picture.resize((256, 192)) for picture in PICTURES], Paint()
    made(standin.Txt2Img(), host, looker, latents, paint, pictures=larger, details=GRASS)
    assert paint.passes[0].mask.size == (256, 192)


STOPS = {  # whether the user has stopped already, and how many passes are done
    "before": (True, 0),
    "inside of a pass": (False, 1),
    "between passes": (False, 1),
}


@pytest.mark.parametrize("when", STOPS)
def test_a_stop_leaves_what_is_not_done(host: standin.Host, looker: Any, latents: torch.Tensor, when: str) -> None:
    host.interrupted, passes = STOPS[when]
    paint = Paint(after=lambda: setattr(host, "interrupted", True))

    def stopped(p: Any, job: Pass) -> Image.Image | None:
        return None if when == "inside of a pass" and paint(p, job) else paint(p, job)

    finals, texts, _ = made(standin.Txt2Img(), host, looker, latents, stopped, details=f"{GRASS}\n{CAT}")
    assert len(paint.passes) == passes
    assert white(finals[0], PICTURES[0]).any() == (when == "between passes")
    assert finals[1].tobytes() == PICTURES[1].tobytes()
    assert all("stopped before all details were done" in text for text in texts)


def test_a_pass_that_fails_leaves_the_picture_before_it(host: standin.Host, looker: Any, latents: torch.Tensor) -> None:
    paint = Paint()

    def failing(p: Any, job: Pass) -> Image.Image:
        if job.number:
            raise MemoryError("no memory")
        return paint(p, job)

    finals, texts, _ = made(standin.Txt2Img(), host, looker, latents, failing, details=f"{GRASS}\n{CAT}")
    assert np.array_equal(white(finals[0], PICTURES[0]), np.asarray(paint.passes[0].mask) > 0)
    assert "MemoryError: no memory" in texts[0]
    assert len(host.log) == 1


def test_a_sampler_that_fails_leaves_nothing_behind(host: standin.Host, looker: Any) -> None:
    with pytest.raises(RuntimeError, match="of the host"):
        made(p := standin.Txt2Img(), host, looker, RuntimeError("of the host"), Paint(), details=GRASS)
    assert "launch_sampling" not in vars(p.sampler)


FAILING = {
    "a phrase that names nothing": ({"details": "the - => x"}, "Expected a phrase"),
    "a head that is not there": ({"details": CAT, "head": "none.safetensors"}, "found none"),
    "a setting": ({"details": CAT, "denoise": 7}, "0 to 1 as denoise"),
    "img2img's phrases": ({"phrases": CAT}, FOR_IMG2IMG),
}


@pytest.mark.parametrize("case", FAILING)
def test_what_makes_no_sense_leaves_the_pictures(
    host: standin.Host, looker: Any, latents: torch.Tensor, case: str
) -> None:
    settings, message = FAILING[case]
    p = standin.Txt2Img()
    finals, texts, _ = made(p, host, looker, latents, Paint(), **settings)
    assert [final.tobytes() for final in finals] == [picture.tobytes() for picture in PICTURES]
    assert message in texts[0]
    assert host.log == []


def test_a_picture_that_img2img_leaves_has_no_details(host: standin.Host, looker: Any, latents: torch.Tensor) -> None:
    p = standin.Processing(PICTURES[0])
    _, texts, _ = made(p, host, looker, latents, paint := Paint(), phrases=ABSENT, details=GRASS)
    assert paint.passes == []
    assert texts[0].endswith(detailing.LEFT)
    assert f"{ABSENT}: not found" in texts[0]


def test_a_blur_that_wipes_a_detail_out_is_said(host: standin.Host, looker: Any, latents: torch.Tensor) -> None:
    settings = {"details": CAT, "blur": 64, "grow": -9}
    _, texts, _ = made(standin.Txt2Img(), host, looker, latents, paint := Paint(), **settings)
    assert all(job.at for job in paint.passes)
    assert f"{CAT}: a blur of 64 leaves nothing" in texts[0]


def test_a_host_without_latents_is_one_sentence(host: standin.Host, looker: Any) -> None:
    _, texts, _ = made(standin.Txt2Img(), host, looker, None, Paint(), samples=[], details=GRASS)
    assert texts == [detailing.NO_LATENTS] * 2
