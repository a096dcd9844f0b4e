"""A look before a run, and the route, on stand-ins of the host with the tiny world as the loaded model."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from webui import host as real
from webui import standin

from ldznet import tinyworld
from ldznet.errors import CheckpointError, InputError
from ldznet.webui import serving, showing
from ldznet.webui.section import begin
from ldznet.webui.settings import EACH, TINY, Settings

SCENE = tinyworld.scene(22, "photo")
PICTURE = Image.fromarray(SCENE.image)
CAT, GRASS, ABSENT = "a purple cat", "grass", "a yellow boat"
BASE = Settings(phrases=f"{CAT}\n{GRASS}\n{ABSENT}", head=TINY, refine="none")


@pytest.fixture
def host() -> standin.Host:
    return standin.Host()


@pytest.fixture
def looker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return standin.looker(tmp_path, monkeypatch)


@pytest.fixture
def look(host: standin.Host, looker: Any) -> showing.Look:
    return showing.look(PICTURE, BASE, looker, host.calls())


def changed(**settings: Any) -> Settings:
    return Settings(**{**vars(BASE), **settings})


def handed_on(host: standin.Host, looker: Any, **settings: Any) -> np.ndarray:
    """The mask that a run gives to the host."""
    p = standin.Processing(PICTURE)
    begin(p, [{**vars(BASE), "enabled": True, **settings}], looker, host.calls())
    return np.asarray(p.image_mask)


def test_settings_move_the_masks_of_one_look(host: standin.Host, looker: Any, look: showing.Look) -> None:
    areas = []
    for settings in (BASE, changed(threshold=0.9), changed(grow=4), changed(feather=6)):
        cat, _, absent = (np.asarray(mask) for mask in showing.parts(look, settings, host.calls()))
        areas.append(cat.mean())
        assert absent.max() == 0
        assert showing.seen(look, settings, host.calls()).lines[0].startswith(f"{CAT}: ")
    assert areas[1] < areas[0] < areas[2]
    assert len(np.unique(np.asarray(showing.parts(look, changed(feather=6), host.calls())[0]))) > 10
    assert looker.asked == 1


@pytest.mark.parametrize("settings", [{}, {"invert": True}, {"grow": 3, "threshold": 0.7}, {"passes": EACH}])
def test_what_is_sent_is_what_a_run_repaints(
    host: standin.Host, looker: Any, look: showing.Look, settings: dict[str, Any]
) -> None:
    mask = np.asarray(showing.whole(look, changed(**settings), host.calls()))
    once = {**settings, "passes": BASE.passes}
    assert np.array_equal(mask, handed_on(host, looker, **once))
    assert looker.asked == 1


def test_the_overlay_has_a_colour_and_a_line_for_each_phrase(host: standin.Host, look: showing.Look) -> None:
    overlay, lines = showing.seen(look, BASE, host.calls())
    assert overlay.width % PICTURE.width == 0
    assert overlay.height * PICTURE.width > overlay.width * PICTURE.height
    assert [line.split(":")[0] for line in lines[:3]] == [CAT, GRASS, ABSENT]
    assert "not found" in lines[2]
    assert "score 0." in lines[2]
    scale = overlay.width // PICTURE.width
    small = np.asarray(overlay)[::scale, ::scale][: PICTURE.height]
    covered = np.asarray(showing.parts(look, BASE, host.calls())[1]) > 0
    assert (small[covered] != SCENE.image[covered]).any(-1).mean() > 0.99
    everything = showing.parts(look, changed(invert=True), host.calls())
    assert len(everything) == len(showing.names_of(look, changed(invert=True))) == 1


def test_a_blank_mask_is_not_sent(host: standin.Host, looker: Any) -> None:
    nothing = showing.look(PICTURE, changed(phrases=ABSENT), looker, host.calls())
    for invert in (False, True):
        with pytest.raises(InputError, match="got a blank one"):
            showing.whole(nothing, changed(invert=invert), host.calls())
    with pytest.raises(InputError, match="Expected phrases, got none"):
        showing.look(PICTURE, changed(phrases="# none"), looker, host.calls())


def test_files_are_numbered_on(tmp_path: Path) -> None:
    masks = [Image.new("L", (2, 2), value) for value in (0, 255)]
    (tmp_path / "notes.png").touch()
    first = showing.save(masks, ["a dog - its ball", "../../x"], tmp_path)
    assert [path.name for path in first] == ["00000-a_dog_its_ball.png", "00001-x.png"]
    assert np.asarray(Image.open(first[1])).tolist() == [[255, 255], [255, 255]]
    assert [path.name for path in showing.save(masks[:1], ["é" * 99], tmp_path)] == [f"00002-{'é' * 60}.png"]


def npy(array: Any) -> str:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return base64.b64encode(buffer.getvalue()).decode()


def asked(host: standin.Host, looker: Any, **body: Any) -> Any:
    return serving.answer({"head": TINY, "refine": "none", **body}, looker, host.calls())


def test_the_route_gives_the_masks_of_the_section(host: standin.Host, looker: Any, look: showing.Look) -> None:
    answer = asked(host, looker, image=real.encoded(PICTURE), phrases=[CAT, GRASS, ABSENT], grow=2)
    assert (answer["width"], answer["height"], answer["calibrated"]) == (*PICTURE.size, True)
    assert [part["phrase"] for part in answer["masks"]] == [CAT, GRASS, ABSENT]
    assert [part["found"] for part in answer["masks"]] == [True, True, False]
    assert [part["score"] for part in answer["masks"]] == pytest.approx(look.found.scores[0].tolist(), abs=1e-6)
    expected = showing.parts(look, changed(grow=2), host.calls())
    for part, mask in zip(answer["masks"], expected, strict=True):
        assert np.array_equal(real.decoded(part["mask"])[..., 0], np.asarray(mask))
    assert looker.asked == 1
    data = "data:image/png;base64," + real.encoded(PICTURE)
    assert asked(host, looker, image=data, phrases=f"{CAT}\n# no\n{GRASS}")["masks"][1]["phrase"] == GRASS


def test_the_route_takes_latents(host: standin.Host, looker: Any) -> None:
    tiny = looker.host(host.model)
    pixels = torch.from_numpy(SCENE.image.copy()).movedim(-1, 0)[None].float() / 127.5 - 1
    latents = tiny.encode_image(pixels).numpy()
    answer = asked(host, looker, latents=npy(latents[0]), phrases=[GRASS])
    mask = real.decoded(answer["masks"][0]["mask"])[..., 0] > 127
    truth = SCENE.masks[GRASS] > 0
    assert (mask & truth).sum() / (mask | truth).sum() > 0.9
    assert answer["width"] == PICTURE.width


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "neither": ({"phrases": ["a"]}, "Expected one of image and latents, got none"),
    "both": ({"image": "", "latents": ""}, "got both"),
    "a name": ({"image": "", "thresh": 1}, "thresh"),
    "no phrase": ({"image": real.encoded(PICTURE)}, "Expected phrases, got none"),
    "no base64": ({"image": "a b"}, "Expected base64 as image"),
    "no text": ({"image": 3}, "Expected base64 as image, got int"),
    "no picture": ({"image": "aaaa"}, "Expected a picture in base64"),
    "a range": ({"image": "", "threshold": 2}, "0 to 1 as threshold"),
    "phrases of another kind": ({"image": "", "phrases": [1]}, "str as phrases"),
    "no npy": ({"latents": "aaaa", "phrases": ["a"]}, "Expected a .npy file"),
    "a pickle": ({"latents": npy(np.array([{}], dtype=object)), "phrases": ["a"]}, "Expected a .npy file"),
    "a shape": ({"latents": npy(np.zeros((3, 8, 8))), "phrases": ["a"]}, r"float64 of \(3, 8, 8\)"),
    "edges of latents": ({"latents": "", "refine": "PAMR"}, "which have no edges"),
    "a head": ({"image": real.encoded(PICTURE), "phrases": ["a"], "head": "no.safetensors"}, "found none"),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_route_says_what_is_wrong(host: standin.Host, looker: Any, case: str) -> None:
    body, message = WRONG[case]
    body = {"refine": "none", **body}
    with pytest.raises(ValueError, match=message) as caught:
        serving.answer(body, looker, host.calls())
    assert not isinstance(caught.value, CheckpointError)
    with pytest.raises(ValueError, match="Expected an object"):
        serving.answer([], looker, host.calls())  # type: ignore[arg-type]
