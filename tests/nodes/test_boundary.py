"""Layouts, frames and text fields of the nodes, without a host."""

from __future__ import annotations

import dataclasses
import importlib
from types import ModuleType
from typing import Any

import pytest
import torch

from ldznet import capture as capturing
from ldznet.hosts.comfyui_capture import CROPS, NOT_FOUND, NOTHING, UNKNOWN, run_of, taps_of, words_of


@pytest.fixture
def boundary(nodes: ModuleType) -> Any:
    return importlib.import_module(f"{nodes.__name__}._boundary")


@pytest.fixture
def phrases(nodes: ModuleType) -> Any:
    return importlib.import_module(f"{nodes.__name__}._phrases")


def segmented(boundary: Any, nodes: ModuleType, logits: torch.Tensor, size: tuple[int, int], **places: Any) -> Any:
    library = importlib.import_module(f"{nodes.__name__.split('.')[0]}.ldznet.segmentation")
    scores = torch.ones(logits.shape[:2])
    inner = (logits.shape[2], logits.shape[3])
    result = library.Segmentation(logits, tuple("abc")[: logits.shape[1]], inner, scores)
    return boundary.Segmented(result, size, **places)


def test_a_cut_picture_s_mask_lies_on_the_same_pixels(boundary: Any, nodes: ModuleType) -> None:
    logits = torch.full((1, 1, 128, 128), -9.0)
    logits[:, :, 40:60, 50:90] = 9.0
    mask = segmented(boundary, nodes, logits, (133, 130), offset=(2, 1)).masks(0.5)
    assert mask.shape == (1, 1, 133, 130)
    rows, columns = mask[0, 0].any(1).nonzero(), mask[0, 0].any(0).nonzero()
    assert (int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])) == (42, 61, 51, 90)
    logits[:, :, :, :3] = 9.0  # up to the frame's edge, so up to the picture's
    whole = segmented(boundary, nodes, logits, (133, 130), offset=(2, 1)).masks(0.5)
    assert whole[0, 0, :, :4].all()
    assert not whole[0, 0, :, 4].any()


@pytest.mark.parametrize(("own", "share"), [(-1.0, 0.25), (-0.01, 0.25), (0.0, 0.75), (0.4, 0.5), (0.7, 0.25)])
def test_a_threshold_below_0_follows_the_segmenting_node_s(
    boundary: Any, nodes: ModuleType, own: float, share: float
) -> None:
    logits = torch.tensor([-1e9, -0.8, 0.1, 2.0]).view(1, 1, 2, 2)  # probabilities 0, 0.31, 0.52, 0.88
    found = segmented(boundary, nodes, logits, (2, 2), threshold=0.6)
    assert float(found.masks(own).mean()) == share


def test_what_was_cut_off_is_like_the_frame_s_edge(boundary: Any, nodes: ModuleType) -> None:
    logits = torch.full((1, 1, 16, 16), -9.0)
    logits[:, :, :4, 12:] = 9.0  # up to the upper and the right edge
    mask = segmented(boundary, nodes, logits, (21, 23), offset=(2, 3)).masks(0.5)[0, 0]
    expected = torch.zeros(21, 23)
    expected[: 2 + 4, 3 + 12 :] = 1
    assert torch.equal(mask, expected)


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (None, ((128, 128), (128, 128), (0, 0))),
        ((133, 130), ((128, 128), (133, 130), (2, 1))),
        ((135, 128), ((128, 128), (135, 128), (3, 0))),
        ((512, 512), ((512, 512), (512, 512), (0, 0))),
        ((540, 512), ((540, 512), (540, 512), (0, 0))),  # four times 135 x 128
    ],
)
def test_frames(boundary: Any, picture: Any, expected: Any) -> None:
    image = None if picture is None else torch.zeros(1, *picture, 3)
    assert boundary.frame(torch.zeros(2, 4, 16, 16), image) == expected


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        (
            (2, 300, 400, 3),
            r"Expected an image of 128 x 128 \(height x width\) or of that aspect, got 300 x 400\.",
        ),
        ((2, 138, 128, 3), "got 138 x 128"),
        ((3, 128, 128, 3), r"Expected one image or 2, got 3\. Connect the image that the latent was made from\."),
        ((128, 128, 3), "Expected an IMAGE b h w 3"),
    ],
)
def test_a_frame_of_another_aspect_or_number_is_refused(boundary: Any, shape: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=rf"{sentence}.*\(socket: image\)"):
        boundary.frame(torch.zeros(2, 4, 16, 16), torch.zeros(shape))


def test_alpha_is_dropped_and_values_are_cut(boundary: Any) -> None:
    guide = boundary.guide_of(torch.tensor([-0.5, 0.25, 1.5, 9.0]).expand(1, 4, 6, 4))
    assert guide.shape == (1, 3, 4, 6)
    assert guide[0, :, 3, 5].tolist() == [0, 0.25, 1]


def test_lines(phrases: Any) -> None:
    assert phrases.read_phrases("  a star \n\n# no\ncat - dog") == ["a star", "cat - dog"]
    assert phrases.read_regions("a => b => c\n2=>d") == [("a", "b => c"), ("2", "d")]
    assert phrases.pick("", ("a", "b")) == [0, 1]
    assert phrases.pick("2\na", ("a", "b")) == [1, 0]
    assert phrases.pick("(a red star:1.2)\nGRASS - sky.", ("a red star.", "grass − sky")) == [0, 1]
    for bad in ("", "# cat", "cat -", "- cat", "the", "background", "cat - cat"):
        with pytest.raises(ValueError, match="Expected"):
            phrases.read_phrases(bad)
    with pytest.raises(ValueError, match='got "3"'):
        phrases.pick("3", ("a", "b"))
    with pytest.raises(ValueError, match="phrase => prompt"):
        phrases.read_regions("a star")


@pytest.mark.parametrize("refine", ["guided filter", "PAMR"])
def test_edges_are_refined_where_there_is_an_image(nodes: ModuleType, refine: str) -> None:
    mask = importlib.import_module(f"{nodes.__name__}.mask")
    soft = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0))
    assert mask.refined(soft, None, refine) is soft
    assert mask.refined(soft, torch.rand(1, 16, 16, 3), "none") is soft
    assert not torch.equal(mask.refined(soft, torch.rand(1, 16, 16, 3), refine), soft)
    with pytest.raises(ValueError, match=r"as large as the mask.*socket: image"):
        mask.refined(soft, torch.rand(1, 32, 32, 3), refine)


def test_legends_of_a_batch_fit_one_page(boundary: Any, nodes: ModuleType) -> None:
    """Lines that say more are wrapped to more of them; no page is cut off."""
    showing = importlib.import_module(f"{nodes.__name__}._showing")
    logits = torch.full((2, 2, 16, 16), 9.0)
    there = segmented(boundary, nodes, logits, (16, 16))
    result = dataclasses.replace(there.result, phrases=("a " + "very " * 20 + "red star", "b"))
    result.scores[1] = 0.1
    lines = [showing.legend(boundary.Segmented(result, (16, 16)), i, torch.ones(2)) for i in range(2)]
    assert lines[0][1] == "b: found, 100.0 %, score 1.00"
    assert lines[1][1] == "b: not found, score 0.10"
    pages = [showing.drawing.with_legend(torch.zeros(3, 16, 16), part) for part in (lines[0], lines[1][1:])]
    assert pages[0].shape[1] > pages[1].shape[1]
    assert showing.stacked(pages).shape == (2, *pages[0].shape)


class Call:
    """UNet calls as a sampler makes them: a module whose one transformer gives its rows back, times a number."""

    def __init__(self, capture: capturing.Capture) -> None:
        class SpatialTransformer(torch.nn.Identity):
            pass

        self.unet = torch.nn.Module()
        self.unet.middle_block = torch.nn.ModuleList([torch.nn.Identity(), SpatialTransformer()])
        self.capture = capture

    def __call__(self, rows: torch.Tensor, step: float, uuids: list[str], size: tuple[int, int] = (2, 2)) -> Any:
        return self.capture.call(self.unet, size, step, uuids, lambda: self.unet.middle_block[1](rows))


def rows(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None, None, None].expand(-1, 1, 2, 2).clone()


@pytest.fixture
def call() -> Call:
    return Call(capturing.Capture(None, ["middle.0"], 400))


def test_the_nearest_step_s_positive_rows_are_kept(call: Call) -> None:
    run = capturing.Run({"p": 1.0, "q": 3.0}, (2, 2))
    samples = torch.zeros(1, 4, 2, 2)
    with call.capture.running("node", run):
        call(rows(1, 2), 900, ["p", "n"])
        call(rows(5, 6), 410, ["n", "p"])
        call(rows(10), 410, ["q"])  # split off: memory was short
        call(rows(99, 99), 410, ["p", "q"])  # perturbed: the same rows again
        call(rows(7, 7), 300, ["p", "q"])
        run.samples = [samples]
    assert run_of(call.capture, samples) is run
    assert run.step == 410
    assert torch.allclose(run.taps()["middle.0"], rows((6 + 3 * 10) / 4))
    assert taps_of(run, 400).notes == []


def test_crops_are_noted_and_far_steps_too(call: Call) -> None:
    run = capturing.Run({"p": 1.0}, (4, 4))
    with call.capture.running("node", run):
        call(rows(1), 400, ["p"])
    assert_nothing(taps_of(run, 400), CROPS)
    run = capturing.Run({"p": 1.0}, (2, 2))
    with call.capture.running("node", run):
        call(rows(1), 900, ["p"])
    assert "500 from the head's 400" in taps_of(run, 400).notes[0]


def assert_nothing(seen: Any, reason: str) -> None:
    """Nothing spares the head its passes, and the one line says why."""
    assert seen.captured is None
    assert seen.notes == [f"{reason}; all phrases took a pass of the UNet"]


def test_a_run_replaces_its_own_and_a_cancelled_one_leaves_nothing(call: Call) -> None:
    samples = torch.zeros(1, 4, 2, 2)
    assert run_of(call.capture, samples) is None
    for key in ("one", "one", "two"):
        with call.capture.running(key, capturing.Run({}, (2, 2), samples=[samples + (key == "two")])):
            pass
    found = run_of(call.capture, samples)
    assert found is not None
    assert found.samples[0].sum() == 0
    with pytest.raises(KeyboardInterrupt), call.capture.running("one", capturing.Run({}, (2, 2), samples=[samples])):
        raise KeyboardInterrupt
    assert run_of(call.capture, samples) is None
    assert_nothing(taps_of(None, 400), UNKNOWN)


def test_of_runs_with_one_result_the_latest_that_left_something_counts(call: Call) -> None:
    """A second sampler of no steps returns the first one's latent as it is."""
    samples, runs = torch.zeros(1, 4, 2, 2), {}
    for key, steps in (("one", 1), ("two", 1), ("three", 0)):
        runs[key] = capturing.Run({"p": 1.0}, (2, 2), samples=[samples])
        with call.capture.running(key, runs[key]):
            for _ in range(steps):
                call(rows(1), 400, ["p"])
    assert run_of(call.capture, samples) is runs["two"]


def test_outside_of_a_run_nothing_is_read(call: Call) -> None:
    assert torch.equal(call(rows(1), 400, ["p"]), rows(1))


def test_a_unet_that_skips_the_block_still_gives_its_picture(call: Call) -> None:
    run = capturing.Run({"p": 1.0}, (2, 2))
    with call.capture.running("node", run):
        answer = call.capture.call(call.unet, (2, 2), 400, ["p"], lambda: "picture")
    assert answer == "picture"
    assert_nothing(taps_of(run, 400), NOTHING)


def test_a_forgotten_prompt_is_said(call: Call) -> None:
    """Not where nothing was captured in the first place: then a prompt would be of no use."""
    assert_nothing(words_of(call.capture, capturing.Run({}, (2, 2)), [], ["grass"], None), NOTHING)
    seen = words_of(call.capture, capturing.Run({}, (2, 2), means={"p": {}}), [], ["grass"], None)
    assert (seen.captured, seen.notes) == (None, [NOT_FOUND])
