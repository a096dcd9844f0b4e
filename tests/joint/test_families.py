"""What is read of every family of transformers equals an explicit computation, in ComfyUI's own classes.

`checks.py` runs in ComfyUI's interpreter; here its figures are judged.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from comfyui import host
from joint import families

pytestmark = [pytest.mark.host, pytest.mark.slow]
TITLES = {
    "sd3": "SD 3",
    "flux": "Flux.1",
    "flux2": "Flux.2",
    "chroma": "Chroma",
    "qwen": "Qwen-Image",
    "lumina2": "Lumina 2",
    "zimage": "Z-Image",
    "krea2": "Krea 2",
    "anima": "Anima",
    "chroma_radiance": "Chroma",
    "cosmos_predict2": "Cosmos Predict2",
    "wan2.1": "Wan",
    "wan2.2": "Wan",
    "aura": "AuraFlow",
    "hunyuan_image": "Hunyuan Image 2.1",
    "omnigen2": "OmniGen2",
    "hidream": "HiDream",
    "kandinsky5": "Kandinsky 5",
    "kandinsky5_image": "Kandinsky 5",
    "ideogram4": "Ideogram 4",
    "lens": "Lens",
    "longcat": "LongCat-Image",
    "pixart_alpha": "PixArt",
    "pixart_sigma": "PixArt",
    "hydit": "HunyuanDiT",
    "hydit1": "HunyuanDiT",
    "ernie": "ERNIE-Image",
    "ovis": "Ovis-Image",
    "boogu": "Boogu-Image",
    "pixeldit": "PixelDiT",
    "zimage_pixel": "Z-Image",
    "hidream_o1": "HiDream O1",
}
CASES = (*TITLES, "sd3+t5")
JOINT = {"another block", "softmax over the text alone", "the other order", "rotary left out"}
WRONG = {  # by family, the variants that must fail, where they are not JOINT
    "sd3": JOINT - {"rotary left out"},
    "sd3+t5": JOINT - {"rotary left out"},
    **{
        name: JOINT | {"caption padding counted", "caption padding forgotten", "picture padding kept"}
        for name in ("zimage", "zimage_pixel")
    },
    "longcat": JOINT | {"caption padding left out"},
    "aura": JOINT - {"rotary left out"} | {"registers forgotten"},
    **{name: {"another block"} for name in ("anima", "cosmos_predict2", "wan2.1", "wan2.2")},  # true cross-attention
    **{name: {"another block", "softmax over the words alone"} for name in ("kandinsky5", "kandinsky5_image")},  # too
    **{name: {"another block", "softmax over the words alone"} for name in ("pixart_alpha", "pixart_sigma")},
    **{
        name: {"another block", "rotary left out", *(f"softmax over {text} rows alone" for text in ("BERT's", "mT5's"))}
        for name in ("hydit", "hydit1")
    },
}
BEFORE_THE_TEXT = {  # rows: a template, or a start; families that are not here have none, or cut theirs off
    "flux2": 3,
    "zimage": 3,
    "lumina2": 1,
    "omnigen2": 23,
    "ideogram4": 3,
    "ovis": 1,
    "boogu": 29,
    "pixeldit": 1,
    "zimage_pixel": 3,
    "hidream_o1": 3,
}
NAIVE = {"dog": 5, "grass": 9}  # the tokens of the words, counted from the beginning of the text


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All figures of all families."""
    if reason := host.reason_to_skip():
        pytest.skip(reason)
    folder = host.folder()
    assert folder is not None
    out = tmp_path_factory.mktemp("joint") / "figures.json"
    script = Path(__file__).parent / "checks.py"
    command = [str(host.interpreter(folder)), str(script), str(folder), str(out), *CASES]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def lacking(name: str) -> str | None:
    """Why there are no figures of a family: this ComfyUI does not have it."""
    family = name.partition("+")[0]
    return host.lacking(families.NETWORKS[family][0], families.ENCODERS.get(family, ""))


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, figures: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A family's name and its figures."""
    if reason := lacking(request.param):
        pytest.skip(reason)
    found = figures[request.param]
    assert "failed" not in found, found
    return request.param, found


def test_maps_are_those_of_an_explicit_softmax(case: tuple[str, dict[str, Any]]) -> None:
    name, found = case
    maps = found["maps"]
    assert maps["error"] < 1e-6, maps
    assert maps.get("self", 0) < 1e-6, maps
    assert maps["largest"] > 1e-3
    older = {"rotary left out"} if host.lacking("Flux2") else set()
    assert set(maps["wrong"]) | older == WRONG.get(name, JOINT) | older
    assert all(distance > 1e-4 for distance in maps["wrong"].values()), maps["wrong"]


def test_the_second_attention_of_sd_3_5_medium_is_left_out(figures: dict[str, Any]) -> None:
    assert figures["sd3"]["maps"]["calls"] == [2, 2, 1]


def test_rows_of_text_and_of_the_picture_are_where_they_are_looked_for(case: tuple[str, dict[str, Any]]) -> None:
    for changed, expected in case[1]["places"].values():
        assert changed == expected


def test_words_are_the_rows_that_change_with_them(case: tuple[str, dict[str, Any]]) -> None:
    name, found = case
    words = found["words"]
    assert words["found"] == words["changed"]
    assert words["same"]
    assert words["brackets"]
    assert ("quotation marks" in words.get("quoted", "")) == (name == "longcat")  # spells what is quoted
    times = {"sd3+t5": 2, "hidream": 3, "hydit": 2, "hydit1": 2}.get(name, 1)
    assert words["made"] == [times, 2 * times]
    shifted = {word: [row - NAIVE[word] for row in rows] for word, rows in words["found"].items()}
    if name in BEFORE_THE_TEXT:
        assert shifted["dog"] == shifted["grass"] == [BEFORE_THE_TEXT[name]]


def test_reference_pictures_are_cut_off(figures: dict[str, Any]) -> None:
    for name in ("flux", "flux2", "qwen", "longcat"):
        if lacking(name):
            continue
        found = figures[name]["references"]
        assert found["error"] < 1e-5
        assert found["rows"][0] < found["rows"][1]  # with those of the reference


@pytest.mark.parametrize("name", ["flux", "chroma"])
def test_concepts_read_the_picture_and_nothing_reads_them(name: str, figures: dict[str, Any]) -> None:
    found = figures[name]["concepts"]
    assert found["error"] < 2e-7 * found["scores"]  # float32, and the softmax is of large numbers
    assert found["another picture"] > 0.1
    assert found["picture"] == 0
    assert found["read by it"] > 0.1


def test_rows_of_quoted_text_are_cut_off(figures: dict[str, Any]) -> None:
    found = figures["hunyuan_image"]["glyphs"]
    assert found["error"] < 1e-6
    assert found["forgotten"] > 1e-3


def test_the_sampler_s_picture_stays_the_same_to_the_bit(case: tuple[str, dict[str, Any]]) -> None:
    name, found = case
    sampling = found["sampling"]
    assert sampling["bit_equal"] == [True, True]
    assert sampling["others"]["before"] > 0
    assert (sampling["others"]["inside"] > 0) == (
        not name.startswith(("sd3", "omnigen2", "pixart", "hydit", "ernie", "boogu"))
    )  # which have no such wrapper
    assert sampling["name left"]
    assert sampling["steps"] == 3


def test_keys_of_the_text_that_a_network_kept_are_read(figures: dict[str, Any]) -> None:
    if reason := lacking("hidream_o1"):
        pytest.skip(reason)
    found = figures["hidream_o1"]["kept keys"]
    assert found["rows"] == [80, 61]  # 20 of text, the last of which is the timestep's, and 6 x 10 of the picture
    assert max(found["errors"]) < 1e-6
    assert found["differ"] < 1e-6


def test_a_pass_without_a_text_in_a_second_network_is_left_alone(figures: dict[str, Any]) -> None:
    if reason := lacking("ideogram4"):
        pytest.skip(reason)
    found = figures["ideogram4"]["two networks"]
    assert found["bit_equal"]
    assert found["same"] == {"joint.1": True}


def test_captured_words_need_no_pass_and_others_take_one(case: tuple[str, dict[str, Any]]) -> None:
    name, found = case
    sampling = found["sampling"]
    assert sampling["notes"] == ['read from the sampling itself: "dog", "grass"']
    cell = {
        "flux2": 16,
        "wan2.2": 16,
        "hunyuan_image": 32,
        "ideogram4": 16,
        "lens": 16,
        "ernie": 16,
        "hidream_o1": 16,
    }.get(name, 8)
    height, width = (28, 40) if name.startswith("pixart") else (12, 20)
    assert sampling["captured"] == [3, 2, height * cell, width * cell]
    assert sampling["finite"]
    assert sampling["differ"] > 0.1


def test_the_report_names_the_family_and_whether_constants_are_published(case: tuple[str, dict[str, Any]]) -> None:
    name, found = case
    described = found["sampling"]["described"]
    assert described.startswith(f"{TITLES[name.partition('+')[0]]}: attention of its blocks ")
    assert "guess" in described  # no model here has the depth that was studied; Chroma's constants are Flux.1's
    assert (", 16, 17, 18 of 19" in described) == name.startswith("chroma")


def test_timesteps_go_through_the_model_s_own_schedule(case: tuple[str, dict[str, Any]]) -> None:
    sampling = case[1]["sampling"]
    at = 260 if case[0].startswith("sd3") else 100 if case[0].startswith(("pixart", "hydit")) else 500
    shifts = {"flux": 0.7595, "flux2": 0.8829, "zimage": 0.75, "lumina2": 0.8571, "qwen": 0.7595}
    shifts |= {"wan2.1": 0.8889, "wan2.2": 0.8889, "aura": 0.6337, "hunyuan_image": 0.8333, "omnigen2": 0.7222}
    shifts |= {"kandinsky5": 0.9091, "kandinsky5_image": 0.75, "ideogram4": 0.5, "lens": 0.8616, "longcat": 0.7595}
    shifts |= {"ovis": 0.7595, "boogu": 0.7596, "pixeldit": 0.8, "zimage_pixel": 0.75, "hidream_o1": 0.75}
    shifts |= {"pixart_alpha": 0.3388, "pixart_sigma": 0.3388, "ernie": 0.75, "hydit": 0.3555, "hydit1": 0.3780}
    assert sampling["step"] == pytest.approx(at, abs=1.5)
    if case[0] in shifts:
        assert sampling["noise"] == pytest.approx(shifts[case[0]], abs=1e-3)
