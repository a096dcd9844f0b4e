"""The masks of a real A1111 or Forge are those of diffusers' adapter around the checkpoint that the host has loaded,
SD 1.x, SD 2.x or SDXL, with the attention head and with heads over that UNet. `host.py` says what it needs."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from webui import host

from ldznet import Predictor, load_head
from ldznet.webui.settings import WITHOUT_FILE

diffusers = pytest.importorskip("diffusers")

from webui import same_file  # noqa: E402

pytestmark = [pytest.mark.webui, pytest.mark.slow]
ATTENTION = next(iter(WITHOUT_FILE))
PHRASES = ["a dog", "the sky"]
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of a picture that is over the thresholds at which masks are compared
TOLERANCE = 1e-3  # in probability
ORIGINAL = np.asarray(host.picture())


@pytest.fixture(scope="module")
def heads(webui: host.Webui, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, dict[str, Any]]]:
    """diffusers' adapter around what the host has loaded, and heads by the names that the section has for them."""
    loaded = webui.get("/sdapi/v1/options")["sd_model_checkpoint"] or ""
    models = webui.get("/sdapi/v1/sd-models")
    path = Path(next((m for m in models if loaded in (m["title"], m["model_name"])), models[0])["filename"])
    beside = same_file.opened(path, tmp_path_factory.mktemp("configurations"))
    folder = path.parents[1] / "ldznet"
    folder.mkdir(exist_ok=True)
    files = {tier: folder / f"ldznet_test_{tier}.safetensors" for tier in same_file.WEIGHTED}
    try:
        for tier, file in files.items():
            same_file.random_head(tier, beside, file)
        trained = {file.name: load_head(file, device="cpu", dtype=torch.float32) for file in files.values()}
        yield beside, {ATTENTION: load_head("attention"), **trained}
    finally:
        for file in files.values():
            file.unlink(missing_ok=True)


def named(heads: dict[str, Any], kind: str) -> str:
    return next(name for name in heads if kind in name)


def route(webui: host.Webui, given: dict[str, Any], head: str, threshold: float) -> list[np.ndarray]:
    body = {**given, "phrases": PHRASES, "head": head, "threshold": threshold, "refine": "none"}
    return [host.decoded(part["mask"])[..., 0] > 0 for part in webui.post("/ldznet/segment", body)["masks"]]


@pytest.mark.parametrize("kind", ["attention", *same_file.WEIGHTED])
@pytest.mark.parametrize("given", ["latents", "image"])
def test_masks_are_those_of_diffusers(
    webui: host.Webui, heads: tuple[Any, dict[str, Any]], kind: str, given: str
) -> None:
    """To 1e-3 in probability: what is farther than that from a threshold lies on the same side of it."""
    name = named(heads[1], kind)
    predictor = Predictor(heads[0], heads[1][name])
    latents = torch.randn(1, 4, 16, 24, generator=torch.Generator().manual_seed(0))
    if given == "latents":
        buffer = io.BytesIO()
        np.save(buffer, latents[0].numpy())
        body = {"latents": base64.b64encode(buffer.getvalue()).decode()}
        predictor.set_latents(latents)
    else:
        body = {"image": host.encoded(host.picture())}
        predictor.set_image(host.picture())
    expected = predictor.predict(PHRASES).probabilities[0].numpy()
    assert np.ptp(expected) > 100 * TOLERANCE
    for threshold in np.quantile(expected, SHARES).round(3).tolist():
        for probabilities, mask in zip(expected, route(webui, body, name, threshold), strict=True):
            assert mask[probabilities > threshold + TOLERANCE].all()
            assert not mask[probabilities < threshold - TOLERANCE].any()


@pytest.mark.parametrize("kind", ["attention", *same_file.WEIGHTED])
def test_what_is_outside_of_the_mask_stays_to_the_bit(
    webui: host.Webui, heads: tuple[Any, dict[str, Any]], kind: str
) -> None:
    name, image = named(heads[1], kind), {"image": host.encoded(host.picture())}
    threshold = 0.5 if kind != "attention" else 0.7
    hooks = webui.witness()["hooks"]
    mask = np.logical_or.reduce(route(webui, image, name, threshold))
    settings = {"phrases": "\n".join(PHRASES), "head": name, "threshold": threshold, "refine": "none"}
    (picture, *_), text = webui.img2img(settings)
    changed = (picture != ORIGINAL).any(-1)
    assert 0.05 < mask.mean() < 0.95
    assert not changed[~mask].any()
    assert changed[mask].mean() > 0.9
    assert "% of the picture" in text
    assert webui.witness()["hooks"] == hooks


def test_its_log_has_no_fault_of_ours(webui: host.Webui) -> None:
    assert "LD-ZNet:" not in webui.log.read_text(errors="replace")
