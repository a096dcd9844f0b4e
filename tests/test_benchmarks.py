"""Every script of benchmarks/ runs to its end, at its smallest, and prints figures that can be."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comfyui import host
from PIL import Image

from ldznet import load_head
from ldznet.evaluate.reading import reading
from ldznet.hosts.tiny import TinyHost

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
Run = Callable[..., str]
WITH_COMFYUI = {"capture_cost", "inpaint", "steering"}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """What a script prints."""
    threads = torch.get_num_threads()

    def run(name: str, *options: str) -> str:
        path = BENCHMARKS / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(path), *options])
        monkeypatch.syspath_prepend(str(BENCHMARKS))  # as for a script that is run
        try:
            runpy.run_path(str(path), run_name="__main__")
        finally:
            torch.set_num_threads(threads)
            torch.set_grad_enabled(True)  # a script may have no use for gradients, and ends without a word of it
        return capsys.readouterr().out

    return run


def figures(text: str, pattern: str) -> list[float]:
    """The numbers after every `pattern`; there has to be one, and each is a share."""
    found = [float(number) for number in re.findall(rf"{pattern}\s*(-?[\d.]+)", text)]
    assert found, text
    assert all(0 <= number <= 1 for number in found), text
    return found


def test_every_script_has_a_test() -> None:
    tested = re.findall(r'(?:run|with_comfyui)\(\s*"(\w+)"', Path(__file__).read_text(encoding="utf-8"))
    assert {path.stem for path in BENCHMARKS.glob("*.py")} - {"helpers"} == {*tested, "capture"}


def test_the_small_sd_3(run: Run) -> None:
    pytest.importorskip("diffusers")
    out = run("joint", "masks", "--scenes", "1", "--untrained", "--only", "SD 3, attention")
    assert len(figures(out, "nouns best")) == len(figures(out, "stuff best")) == 1


@pytest.mark.skipif("LDZNET_LONG" not in os.environ, reason="$LDZNET_LONG is not set: four pictures are drawn")
def test_pictures_of_the_small_sd_3(run: Run) -> None:
    pytest.importorskip("diffusers")
    drawn = run("joint", "drawing", "--scenes", "2", "--untrained")
    assert [line.split()[0] for line in drawn.splitlines()] == ["SD", "UNet"]
    assert len(figures(drawn, "found")) == 2


def test_the_small_sd_3_is_told_what_it_was_taught() -> None:
    """The rows of text that its host makes are those of its training."""
    pytest.importorskip("diffusers")
    from ldznet.tinyworld import joint, world

    sys.path.insert(0, str(BENCHMARKS))
    try:
        script = runpy.run_path(str(BENCHMARKS / "joint.py"))
    finally:
        sys.path.remove(str(BENCHMARKS))
    models, text = world.load(), "a photo of a red star on grass"
    host = script["host_of"](joint.fresh(), models)
    context, pooled = joint.read(models.text, torch.tensor([joint.token_ids(models.tokenizer, text)]))
    conditioning = host.condition([text])
    torch.testing.assert_close(conditioning.context, context)
    torch.testing.assert_close(conditioning.extras["pooled"], pooled)
    (row,) = host.texts.rows(text)
    assert row[5:7] == models.tokenizer.ids("red star")
    assert (len(row), row[0], row[9]) == (joint.ROWS, -1, -1)


def test_attention_ablations(run: Run, tmp_path: Path) -> None:
    out = run("attention", "ablate", "--scenes", "2", "--only", "guided", "--json", str(tmp_path / "figures.json"))
    assert figures(out, "things best") == pytest.approx(
        [row["things best"][0] for row in json.loads((tmp_path / "figures.json").read_text()).values()], abs=1e-3
    )
    assert figures(out, "all 0.5")[0] > 0.1


def test_blocks_are_weighed_by_their_self_attention(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two blocks on the reference's grid of 2 x 2, and one of a single cell, whose link counts for all 16 pairs."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    by_affinity = runpy.run_path(str(BENCHMARKS / "attention.py"))["by_affinity"]
    links = {"own": torch.eye(4)[None], "even": torch.full((1, 4, 4), 0.25), "whole": torch.ones(1, 1, 1)}
    sharp = by_affinity(links, 100 * torch.eye(4)[None])  # each place is like itself alone
    assert [round(float(weight), 6) for weight in sharp.values()] == [round(n / 9, 6) for n in (4, 1, 4)]
    assert figures(run("attention", "ablate", "--scenes", "1", "--only", "weighed by self"), "all 0.5")[0] < 0.5


def test_attention_presence(run: Run) -> None:
    out = run("attention", "presence", "--scenes", "1")
    assert max(figures(out, "AUROC")) > 0.5


def test_attention_beside_other_heads(run: Run) -> None:
    trained = figures(run("attention", "compare", "--scenes", "1", "--only", "LD-ZNet"), "all 0.5")
    blind = figures(run("attention", "compare", "--scenes", "1", "--only", "the whole image"), "all 0.5")
    assert len(trained) == len(blind) == 2  # photo scenes, and the other renderings
    assert trained[0] > 0.5 > blind[0]


def test_attention_s_cost(run: Run) -> None:
    out = run("attention_cost", "--model", "small", "--size", "64", "--pairs", "1")
    for job in ("one phrase", "eight phrases", "sampling step"):
        assert re.search(rf"{job} +median s \(range\) [\d.]+ .* of a sampling step [\d.]+ .* peak GB", out)


def test_heat_map(run: Run, tmp_path: Path) -> None:
    rows, picture = tmp_path / "rows.json", tmp_path / "map.png"
    run("heatmap", "--scenes", "3", "--labels", "10", "--timesteps", "0", "--json", str(rows))
    found = json.loads(rows.read_text())
    assert found["output.10, t = 0"]["colours"][0] > 0.6 > 0.2 > found["middle.0, t = 0"]["colours"][0]
    assert found["output.10, t = 0"]["colours"][0] > found["output.10, t = 200, UNet untrained"]["colours"][0] + 0.1
    rows.write_text(json.dumps({"figures": found}))
    run("heatmap", "--figures", str(rows), "--picture", str(picture))
    with Image.open(picture) as drawn:
        assert drawn.width > 1000


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return runpy.run_path(str(BENCHMARKS / "decoder.py"))


def test_a_decoder_of_the_best_cell(run: Run) -> None:
    out = run("decoder", "--scenes", "2", "--labels", "8", "--steps", "2", "--cells", "1")
    assert [line.partition("  ")[0] for line in out.splitlines()] == [
        "latents, t = 0",
        "input.2, t = 0",
        "input.2, t = 0, UNet untrained",
    ]
    assert len(figures(out, r"  colours")) == 3


def test_a_decoder_reads_neighbours_where_a_line_reads_one_place(decoder: dict[str, Any]) -> None:
    """A star is where the place on the left is bright; words that no label names count for nothing."""
    words = {"star": torch.tensor([1.0, 0.0]), "red": torch.tensor([0.0, 1.0])}
    bright = torch.rand(12, 16, 16, generator=torch.Generator().manual_seed(0)) < 0.2
    stars = bright.roll(1, dims=2).float().flatten(1)
    shown = decoder["Places"](bright, [[(("star", "red"), share)] for share in stars])
    features = decoder["of_unit_variance"](bright.flatten(1)[..., None].float(), bright.flatten(1)[..., None].float())
    figures = []
    for read in (
        decoder["by_lines"](*features, shown, words),
        decoder["by_decoder"](*features, shown, words, 150),
    ):
        found = decoder["precisions"](read, shown, words)
        assert len(found["nouns"][0]) == len(found["colours"][0]) == 12
        assert len(found["untaught nouns"][0]) == 0
        figures.append(found["nouns"][0].mean())
    assert figures[0] < 0.4
    assert figures[1] > 0.9


def made_up(cells: Path, tests: Sequence[str], best: str, *others: str) -> None:
    """Cells of seed 0 with two phrases a test, of which the second is found better by the `best`."""
    cells.mkdir()
    for head in (best, *others):
        found = {"iou": [0.5, 0.75 if head == best else 0.25], "scene": [0, 0]}
        (cells / f"{head}-0.json").write_text(json.dumps({"values": dict.fromkeys(tests, found)}))


def test_usefulness(run: Run, tmp_path: Path) -> None:
    """One cell is made; those that are there are read, and their differences are of the same phrases."""
    cells, options = tmp_path / "cells", ("--seeds", "0", "--steps", "2", "--labels", "4", "--scenes", "1")
    options = (*options, "--cells", str(cells), "--work", str(tmp_path), "--json", str(tmp_path / "rows.json"))
    tests = ("known words", "untaught colours", "untaught nouns", "other renderings")
    made_up(cells, tests, "taps", "no-taps", "untrained-taps")
    run("usefulness", *options)
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert rows["taps - no taps"]["known words"] == [0.25, 0.25, 0.25]
    (cells / "taps-0.json").unlink()
    with pytest.raises(ValueError, match="length"):  # another number of phrases than those that were made up
        run("usefulness", *options)
    fresh = json.loads((cells / "taps-0.json").read_text())
    assert fresh["steps"] == 2
    assert len(fresh["values"]["known words"]["iou"]) == len(fresh["values"]["other renderings"]["iou"]) > 2
    assert fresh["values"]["untaught nouns"]["scene"] == [0] * len(fresh["values"]["untaught nouns"]["iou"])


def test_heads(run: Run, tmp_path: Path) -> None:
    """One cell is made, of the head that learns from pixels; those that are there are read."""
    tests = ("things", "stuff", "untaught colours", "untaught nouns", "other renderings")
    cells, options = tmp_path / "cells", ("--seeds", "0", "--steps", "1", "--labels", "2", "--scenes", "1")
    options = (*options, "--cells", str(cells), "--work", str(tmp_path), "--json", str(tmp_path / "rows.json"))
    made_up(cells, tests, "LD-ZNet", "rank-16", "ZNet")
    run("heads", *options, "--only", "ZNet", "LD-ZNet", "rank 16")
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert rows["LD-ZNet"]["stuff"] == [0.625] * 3
    assert rows["rank 16 - LD-ZNet"]["things"] == [-0.25] * 3
    assert rows["LD-ZNet - ZNet"]["things"] == [0.25] * 3
    assert "LD-ZNet, best blocks - ZNet" not in rows
    with pytest.raises(ValueError, match="length"):  # another number of phrases than those that were made up
        run("heads", *options, "--only", "RGBNet", "ZNet")
    fresh = json.loads((cells / "RGBNet-0.json").read_text())
    assert fresh["steps"] == 1
    assert len(fresh["values"]["things"]["iou"]) == len(fresh["values"]["other renderings"]["iou"]) > 0
    assert len(fresh["values"]["stuff"]["iou"]) > 0
    assert set(fresh["values"]["cost of wrong taps"]["iou"]) == {0}  # it has none


def test_wrong_taps_cost_a_head_that_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script, head, host = runpy.run_path(str(BENCHMARKS / "heads.py")), load_head("tiny-light"), TinyHost.load()
    found = reading(head, host, script["drawn"]("T0", 3), mistakes=["taps of another scene"])
    own = found.ious["its own taps"]
    monkeypatch.setitem(script["ASKED"], "things", ("T0", lambda phrase, thing: thing))
    cost = script["cost_of_wrong_taps"](head, host, 3, own.tolist())
    assert np.mean(cost) == pytest.approx(found.cost("taps of another scene")[0], abs=1e-4)
    assert np.mean(cost) > 0.1


def test_shrinking_at_full_size(run: Run, tmp_path: Path) -> None:
    """At a tenth of it: the made-up change of rank 16 comes back, and three quarters of one do not fit into rank 4."""
    run(
        "shrinking",
        "--full",
        str(tmp_path),
        "--channels",
        "32",
        "--ranks",
        "16",
        "4",
        "--json",
        str(tmp_path / "rows.json"),
    )
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert rows["rank 16"]["largest error"] < 1e-3
    assert rows["rank 16"]["energy"] == pytest.approx(1, abs=1e-6)
    assert 0.2 < rows["rank 4"]["energy"] < 0.6
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]


def test_edges(run: Run) -> None:
    out = run("edges", "--scenes", "1", "--side", "32")
    assert len(figures(out, "(?<!in )mIoU")) == 3 * 2 * 3  # sources, kinds, methods
    assert out.count("s for a mask of 32 x 32") == 3


def test_truncation(run: Run, tmp_path: Path) -> None:
    options = ("--pairs", "7", "--size", "64", "--channels", "32")
    out = run("truncation", *options, "--json", str(tmp_path / "times.json"))
    median, low, high = json.loads((tmp_path / "times.json").read_text())["ratio"]["median (range)"]
    assert low <= median <= high
    assert f"{median:.3f} ({low:.3f} .. {high:.3f})" in out


def test_ways_to_convolve(run: Run) -> None:
    out = run("convolving", "--pairs", "1", "--shrink", "32")
    rows = [line for line in out.splitlines() if line.startswith("| 1,") or line.startswith("| 4,")]
    assert len(rows) == 10
    assert all(float(row.split("|")[7]) < 1e-4 for row in rows)


@pytest.mark.skipif("LDZNET_LONG" not in os.environ, reason="$LDZNET_LONG is not set: two full-size networks")
def test_beside_other_systems(tmp_path: Path) -> None:
    file = tmp_path / "peers.json"
    out = with_comfyui("peers", "--pairs", "1", "--cold", "--only", "clipseg", "--json", str(file))
    (row,) = json.loads(file.read_text()).values()
    assert 0 < row["time"][0] < 1
    assert 0.5 < row["peak GB"] < 3
    assert row["new M"] == row["parameters M"]  # no host has it
    assert f"{row['parameters M']:.3f}" in out


def test_growth_is_drawn(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = pytest.importorskip("matplotlib.figure")
    rows, drawn = {name: {"time": [0.1, 0.1, 0.1]} for name in ("light", "clipseg")}, []
    rows |= {"light, 8 phrases": {"time": [0.4, 0.3, 0.6]}, "captured, 768 px": {"time": [5.0, 5.0, 5.0]}}
    (tmp_path / "rows.json").write_text(json.dumps({"figures": rows}))
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *rest, **named: drawn.append(self))
    run("peers", "--figures", str(tmp_path / "rows.json"), "--picture", "growth.png")
    left, right = drawn[0].axes
    assert left.lines[0].get_xydata().tolist() == [[1, 0.1], [8, 0.4]]  # those with one point have no line
    assert right.lines[0].get_xydata().tolist() == [[384, 1], [768, 5]]
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["light, captured taps"]


@pytest.mark.skipif("LDZNET_REFERENCE" not in os.environ, reason="$LDZNET_REFERENCE, the published code, is not set")
def test_beside_the_published_code(run: Run) -> None:
    small = ("--size", "64", "--channels", "32", "--vae-channels", "32", "--pairs", "1")
    out = run("reference", os.environ["LDZNET_REFERENCE"], *small)
    for name in ("image", "latent", "captured"):
        assert re.search(rf"{name}: \d\.\d+ of the published code's time", out)
    apart, spread = map(float, re.findall(r"at most (\S+) apart, of a spread of (\S+)", out)[0])
    assert apart < 1e-3 * spread


def with_comfyui(name: str, *options: str, python: str = sys.executable) -> str:
    """What a script prints that needs a ComfyUI."""
    command = [python, str(BENCHMARKS / f"{name}.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.host
@pytest.mark.skipif(host.reason_to_skip() is not None, reason=str(host.reason_to_skip()))
@pytest.mark.parametrize(("family", "channels", "count"), [("sd15", "64", 2), ("flux", "256", 1)])
def test_a_capture_s_cost(family: str, channels: str, count: int) -> None:
    comfyui = host.folder()
    assert comfyui is not None
    options = ("--comfyui", str(comfyui), "--size", "64", "--steps", "2", "--family", family, "--channels", channels)
    out = with_comfyui("capture_cost", *options, python=str(host.interpreter(comfyui)))
    assert len(re.findall(r"% of it \(target: 3\) [\d.]+", out)) == count


@pytest.mark.host
@pytest.mark.skipif(host.reason_to_skip() is not None, reason=str(host.reason_to_skip()))
def test_inpainting() -> None:
    out = with_comfyui("inpaint", "--pictures", "1", "--renders", "8")
    assert "1 pictures in which it was found" in out
    assert "outside of the mask bit-equal: True" in out


@pytest.mark.host
@pytest.mark.skipif(host.reason_to_skip() is not None, reason=str(host.reason_to_skip()))
def test_steering() -> None:
    out = with_comfyui("steering", "--seeds", "1", "--steps", "4", "--way", "cross-attention")
    assert re.search(r"^cross-attention +seeds 1  found 1  asked thing in the region [01]\.000 ", out), out


def test_frames(run: Run) -> None:
    out = run("frames", "--scenes", "1", "--frames", "2", "--speed", "4")
    assert len(figures(out, "neighbours")) == len(figures(out, "truth")) == 5


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the script defines."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return runpy.run_path(str(BENCHMARKS / "coarse.py"))


def test_coarse_masks(run: Run) -> None:
    """The head that was trained on labels is best at telling pixels apart."""
    found = figures(run("coarse", "labels", "--scenes", "1"), "pixels")
    assert len(found) == 4
    assert found[3] == max(found) > 0.8


def test_pieces_are_matched_to_regions_one_to_one(coarse: dict[str, Any]) -> None:
    """Three stripes of three colours, and pieces of theirs under other numbers, one a column too wide."""
    truths = np.zeros((3, 8, 12), bool)
    for i in range(3):
        truths[i, :, 4 * i : 4 * i + 4] = True
    pieces = (truths.argmax(0) + 1) % 3
    pieces[:, 7] = 0
    assert coarse["matched"](pieces, truths) == pytest.approx([32 / 33, 24 / 33, 32 / 41])
    assert (coarse["renamed"](pieces, truths)[:, :4] == 0).all()
    features = torch.nn.functional.one_hot(torch.from_numpy(truths.argmax(0)), 3).movedim(-1, 0).float()
    found = coarse["clusters"](features, 3).numpy()
    assert coarse["matched"](found, np.repeat(np.repeat(truths, 16, 1), 128 // 12 + 1, 2)[:, :, :128]).mean() > 0.8


def test_words_of_the_caption_are_found_in_its_own_pass(coarse: dict[str, Any]) -> None:
    host, item = coarse["TinyHost"].load(), coarse["drawn"]("T0", 1, 1, one_each=True)[0]
    prompt = coarse["said_in"](host, item)
    assert prompt.text == item.captions[0]
    words = item.captions[0].replace(",", " ,").split()
    for phrase, tokens in zip(prompt.phrases, prompt.phrase_tokens, strict=True):
        assert " ".join(words[token - 1] for token in tokens) == phrase.removeprefix("an ").removeprefix("a ")


PAGES = Path(__file__).parents[1] / "docs"


def test_pages_quote_the_figures_that_are_there(run: Run, tmp_path: Path) -> None:
    """`figures.py --render` changes nothing; of every block there is a job."""
    for path in (*PAGES.glob("*.md"), *(PAGES / "figures").glob("*.json")):
        copy = tmp_path / path.relative_to(PAGES)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    run("figures", "--render", "--docs", str(tmp_path))
    names = set()
    for path in PAGES.glob("*.md"):
        assert (tmp_path / path.name).read_text(encoding="utf-8") == path.read_text(encoding="utf-8"), path.name
        names |= set(re.findall(r"<!-- figure ([\w-]+)", path.read_text(encoding="utf-8")))
    jobs = runpy.run_path(str(BENCHMARKS / "figures.py"))["JOBS"]
    assert names <= set(jobs)
    assert {path.stem for path in (PAGES / "figures").glob("*.json")} <= set(jobs)


def test_a_job_s_figures_stand_in_the_page(run: Run, tmp_path: Path) -> None:
    """The job is capture.py."""
    page = tmp_path / "page.md"
    page.write_text("Before\n<!-- figure capture: mIoU, n phrases -->\nold\n<!-- end -->\nAfter\n")
    run("figures", "--only", "capture", "--docs", str(tmp_path), "--scenes", "1")
    said = json.loads((tmp_path / "figures" / "capture.json").read_text())
    assert said["command"] == "python benchmarks/capture.py --scenes 1"
    assert min(row["mIoU"][0] for row in said["figures"].values()) > 0.3
    mean, low, high = said["figures"]["the phrase's own pass"]["mIoU"]
    lines = page.read_text().splitlines()
    assert lines[2:6] == [f"`{said['command']}`", "", "|  | mIoU | n phrases |", "| --- | --- | --- |"]
    assert lines[6].startswith(f"| the phrase's own pass | {mean:.3f} ({low:.3f} .. {high:.3f}) | ")
    assert (lines[0], lines[-1]) == ("Before", "After")


def test_phrases_of_prompts(run: Run) -> None:
    assert min(figures(run("prompt_phrases"), "(?:precision|recall)")) > 0.9
