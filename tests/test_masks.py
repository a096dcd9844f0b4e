"""Operations on masks, against definitions written out pixel by pixel."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from ldznet import masks
from ldznet.errors import InputError


def square(side: int = 40, low: int = 10, high: int = 30) -> torch.Tensor:
    mask = torch.zeros(1, side, side)
    mask[:, low:high, low:high] = 1
    return mask


@pytest.mark.parametrize("pixels", [0, 1, 2, 7])
def test_growth_is_in_true_pixels(pixels: int) -> None:
    grown = masks.grow(square(), pixels)
    y, x = torch.meshgrid(torch.arange(40), torch.arange(40), indexing="ij")
    dy, dx = (torch.clamp(torch.maximum(10 - c, c - 29), min=0) for c in (y, x))
    assert torch.equal(grown[0] > 0, dy**2 + dx**2 <= pixels**2)


def test_shrinking_undoes_growth_of_a_square_and_spares_the_edge() -> None:
    assert torch.equal(masks.grow(masks.grow(square(), 4), -4), square())
    assert torch.equal(masks.grow(torch.ones(1, 9, 9), -3), torch.ones(1, 9, 9))


def dilated(mask: torch.Tensor, pixels: int) -> torch.Tensor:
    """The highest value within a disc, pixel by pixel."""
    grown = torch.zeros_like(mask)
    _, height, width = mask.shape
    for y in range(height):
        for x in range(width):
            for v in range(max(0, y - pixels), min(height, y + pixels + 1)):
                for u in range(max(0, x - pixels), min(width, x + pixels + 1)):
                    if (y - v) ** 2 + (x - u) ** 2 <= pixels**2:
                        grown[:, y, x] = grown[:, y, x].maximum(mask[:, v, u])
    return grown


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("pixels", [0, 1, 2, 3, 5, 8, 30])
@pytest.mark.parametrize("shape", [(2, 9, 13), (1, 14, 3), (1, 1, 1)])
def test_growth_is_the_highest_value_within_a_disc(pixels: int, shape: tuple[int, int, int]) -> None:
    """Of soft masks too, and where the disc is larger than the picture."""
    soft = noise(*shape) ** 4
    assert torch.equal(masks.grow(soft, pixels), dilated(soft, pixels))
    assert torch.allclose(masks.grow(soft, -pixels), 1 - dilated(1 - soft, pixels), atol=1e-6)
    assert torch.isin(masks.grow(soft, -pixels), soft).all()


@pytest.mark.parametrize("pixels", range(0, 140, 7))
def test_growth_of_a_hard_mask_is_all_within_a_distance(pixels: int) -> None:
    hard = (noise(1, 150, 131, seed=pixels) > 0.9995).float()
    hard[:, 0, 0] = 1
    distance = ndimage.distance_transform_edt(1 - hard[0].numpy())
    assert np.array_equal(masks.grow(hard, pixels)[0].numpy() > 0, distance <= pixels)


@pytest.mark.parametrize("pixels", [-6, 4])
def test_a_soft_mask_cut_and_grown_is_that_grown_and_cut(pixels: int) -> None:
    soft = noise(1, 40, 40)
    for threshold in (0.1, 0.5, 0.9):
        cut = (soft > threshold).float()
        assert torch.equal((masks.grow(soft, pixels) > threshold).float(), masks.grow(cut, pixels))


def test_feather_keeps_flat_parts_and_the_middle_of_an_edge() -> None:
    half = torch.zeros(1, 40, 40)
    half[:, :, 20:] = 1
    soft = masks.feather(half, 6)
    assert soft[0, 20, 19:21].sum() == pytest.approx(1, abs=1e-5)
    assert torch.equal(soft[:, :, :11], torch.zeros(1, 40, 11))
    assert torch.equal(soft[:, :, 29:], torch.ones(1, 40, 11))
    assert torch.equal(masks.feather(half, 0), half)


@pytest.mark.parametrize("pixels", [1, 4, 7.5])
def test_feather_is_a_gaussian_of_half_its_length(pixels: float) -> None:
    """Of one pixel: the Gaussian itself, cut off at three deviations."""
    alone = torch.zeros(1, 41, 41)
    alone[:, 20, 20] = 1
    steps = torch.arange(-20, 21)
    curve = torch.exp(-0.5 * (steps / (pixels / 2)) ** 2) * (steps.abs() < 1.5 * pixels + 1)
    expected = curve[:, None] * curve / curve.sum() ** 2
    assert torch.allclose(masks.feather(alone, pixels)[0], expected, atol=1e-6)
    assert masks.feather(alone, pixels)[0, 20, 20 + int(1.5 * pixels)] > 0


def test_holes_are_filled_and_bays_are_not() -> None:
    mask = square()
    mask[:, 15:20, 15:20] = 0  # a hole
    mask[:, 25:30, 20:22] = 0  # a bay, open to the outside
    filled = masks.fill_holes(mask)
    assert filled[0, 17, 17] == 1
    assert filled[0, 27, 21] == 0
    assert filled[0, 0, 0] == 0


def test_specks_go_by_area() -> None:
    mask = square()
    mask[:, 2:4, 2:4] = 1
    assert torch.equal(masks.drop_specks(mask, 5), square())
    assert torch.equal(masks.drop_specks(mask, 4), mask)


def test_what_a_soft_mask_has_around_a_speck_goes_with_it() -> None:
    soft = masks.feather(square(), 2)
    speck = torch.zeros(1, 40, 40)
    speck[:, 3:5, 3:5] = 1
    together = soft.maximum(0.9 * masks.feather(speck, 1))
    assert torch.equal(masks.drop_specks(together, 20), soft)
    assert torch.equal(masks.drop_specks(together, 1), together)


def test_the_ends_of_a_soft_mask_are_0_and_1() -> None:
    soft = torch.tensor([0.0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.95, 0.98, 1.0])
    expected = torch.tensor([0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1])
    pulled = masks.ends_pulled(soft[None, None])[0, 0]
    assert torch.allclose(pulled, expected, atol=1e-6)
    assert torch.equal(pulled[[0, 1, 2, 6, 7, 8]], expected[[0, 1, 2, 6, 7, 8]])


def flood(inside: torch.Tensor) -> int:
    """The number of 4-connected pieces, by a plain flood fill."""
    left = {(int(y), int(x)) for y, x in inside.nonzero()}
    pieces = 0
    while left:
        pieces += 1
        stack = [left.pop()]
        while stack:
            y, x = stack.pop()
            for near in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if near in left:
                    left.remove(near)
                    stack.append(near)
    return pieces


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 12))
def test_components_are_those_of_a_flood_fill(seed: int, height: int, width: int) -> None:
    inside = torch.rand(1, height, width, generator=torch.Generator().manual_seed(seed)) > 0.45
    labels = masks.components(inside)
    assert torch.equal(labels > 0, inside)
    assert labels.unique().tolist()[-1] == flood(inside[0])
    same = inside[:, :, 1:] & inside[:, :, :-1]
    assert torch.equal(labels[:, :, 1:][same], labels[:, :, :-1][same])


@pytest.mark.parametrize("refine", [masks.guided_filter, masks.pamr])
def test_refining_moves_a_coarse_edge_to_the_picture_s(refine) -> None:
    picture = torch.full((1, 3, 64, 64), 0.2)
    picture[:, 0, :, 30:] = 0.9
    truth = torch.zeros(1, 64, 64)
    truth[:, :, 30:] = 1
    coarse = masks.feather(torch.roll(truth, 2, dims=2), 6)
    coarse[:, :, :8] = 0
    before = ((coarse > 0.5) != (truth > 0.5)).sum()
    after = ((refine(coarse, picture) > 0.5) != (truth > 0.5)).sum()
    assert after < before


@pytest.mark.parametrize("refine", [masks.guided_filter, masks.pamr])
def test_refining_leaves_flat_masks_and_wants_the_right_picture(refine) -> None:
    picture = torch.rand(2, 3, 16, 20, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(refine(torch.ones(2, 16, 20), picture), torch.ones(2, 16, 20), atol=1e-3)
    with pytest.raises(InputError, match="Expected a picture"):
        refine(torch.ones(2, 16, 16), picture)


def by_definition(target: torch.Tensor, picture: torch.Tensor, radius: int, smoothness: float) -> torch.Tensor:
    """He, Sun, Tang 2013, equations 19 to 21, window by window."""
    height, width = target.shape
    windows = {}
    for y in range(height):
        for x in range(width):
            rows, columns = slice(max(0, y - radius), y + radius + 1), slice(max(0, x - radius), x + radius + 1)
            colours = picture[:, rows, columns].flatten(1).double()
            values = target[rows, columns].flatten().double()
            variance = torch.cov(colours, correction=0) + smoothness * torch.eye(3)
            covariance = (colours * values).mean(1) - colours.mean(1) * values.mean()
            a = torch.linalg.solve(variance, covariance)
            windows[y, x] = (a, values.mean() - a @ colours.mean(1))
    out = torch.zeros(height, width)
    for y in range(height):
        for x in range(width):
            near = [(v, u) for v, u in windows if abs(v - y) <= radius and abs(u - x) <= radius]
            a, b = (torch.stack([windows[place][i] for place in near]).mean(0) for i in (0, 1))
            out[y, x] = a @ picture[:, y, x].double() + b
    return out.clamp(0, 1)


@pytest.mark.parametrize("grey", [True, False])
def test_the_guided_filter_is_the_paper_s(grey: bool) -> None:
    target, picture = noise(1, 13, 11), noise(1, 3, 13, 11, seed=1)
    picture = picture[:, :1].expand(-1, 3, -1, -1) if grey else picture  # three like channels: a variance of rank 1
    expected = by_definition(target[0], picture[0], 3, 1e-4)
    assert (masks.guided_filter(target, picture, 3)[0] - expected).abs().max() < 1e-3


def test_pamr_is_the_paper_s() -> None:
    """Araslanov and Roth 2020, equations 1 to 3, at one pixel."""
    target, picture, y, x = noise(1, 60, 60), noise(1, 3, 60, 60, seed=1), 7, 50
    places = [(y, x)]
    for step in masks.PAMR_DILATIONS:
        around = [(y + dy * step, x + dx * step) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
        places += [(min(max(v, 0), 59), min(max(u, 0), 59)) for v, u in around]
    colours = torch.stack([picture[0, :, v, u] for v, u in places], dim=1)
    contrast = (colours[:, 1:] - colours[:, :1]).abs() / (0.1 * colours.std(dim=1, keepdim=True) + 1e-8)
    weights = (-contrast.mean(dim=0)).softmax(dim=0)
    expected = sum(w * target[0, v, u] for w, (v, u) in zip(weights, places[1:], strict=True))
    assert masks.pamr(target, picture, iterations=1)[0, y, x] == pytest.approx(float(expected), abs=1e-5)


def test_no_images_give_none() -> None:
    none, picture = torch.zeros(0, 8, 9), torch.zeros(0, 3, 8, 9)
    results = [masks.grow(none, 2), masks.feather(none, 2), masks.drop_specks(none, 2), masks.fill_holes(none)]
    results += [masks.guided_filter(none, picture), masks.pamr(none, picture), masks.components(none > 0)]
    assert all(result.shape == none.shape for result in results)


@pytest.mark.parametrize("refine", [masks.guided_filter, masks.pamr])
def test_tiles_do_not_show(refine, monkeypatch: pytest.MonkeyPatch) -> None:
    target, picture = noise(2, 90, 70), noise(2, 3, 90, 70, seed=1)
    settings = {"iterations": 1} if refine is masks.pamr else {"radius": 5}
    whole = refine(target, picture, **settings)
    monkeypatch.setattr(masks, "TILE", 32)
    assert torch.allclose(refine(target, picture, **settings), whole, atol=1e-5)


BOUNDS = {  # seconds of one processor's time, and MB beyond a process that holds the inputs
    "grow(disc, 512)": (1024, 3, 200),
    "grow(soft, -200)": (1024, 3, 200),
    "feather(disc, 512)": (1024, 5, 300),
    "guided_filter(soft, picture)": (2048, 4, 700),
    "pamr(soft, picture)": (1024, 4, 600),
    "drop_specks(snake, 9)": (1024, 2, 300),
    "fill_holes(snake)": (1024, 2, 300),
}
MEASURED = """
import resource, time, torch
from ldznet.masks import *
torch.set_num_threads(1)
side = {side}
soft, picture = torch.rand(1, side, side), torch.rand(1, 3, side, side)
y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
disc = ((y - side / 2) ** 2 + (x - side / 2) ** 2 < side**2 / 16).float()[None]
snake = torch.ones(1, side, side)
snake[:, 1::4, :-1] = 0
snake[:, 3::4, 1:] = 0
held, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
{call}
print(time.process_time() - start, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit elsewhere, or is not there")
@pytest.mark.parametrize("call", BOUNDS)
def test_time_and_memory_are_bounded(call: str) -> None:
    side, most_seconds, most_mb = BOUNDS[call]
    script = MEASURED.format(side=side, call=call)
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    seconds, mb = map(float, out.split())
    assert seconds < most_seconds
    assert mb < most_mb


LONG: dict[str, Callable[[torch.Tensor, Callable[[], None]], torch.Tensor]] = {
    "grow": lambda mask, check: masks.grow(mask, 300, check),
    "shrink": lambda mask, check: masks.grow(mask, -300, check),
    "feather": lambda mask, check: masks.feather(mask, 300, check),
    "guided filter": lambda mask, check: masks.guided_filter(mask, mask[:, None].expand(-1, 3, -1, -1), check=check),
    "PAMR": lambda mask, check: masks.pamr(mask, mask[:, None].expand(-1, 3, -1, -1), check=check),
}


@pytest.mark.parametrize("name", LONG)
def test_what_takes_long_can_be_ended(name: str) -> None:
    """`check` is called at the start and every second at least; what it raises goes through."""
    times = [time.process_time()]
    LONG[name](noise(2, 1024, 1024), lambda: times.append(time.process_time()))
    gaps = np.diff([*times, time.process_time()])
    assert len(gaps) > 2
    assert gaps.max() < 1

    def cancel() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LONG[name](noise(1, 16, 16), cancel)


def test_label_map_takes_the_likeliest_over_the_background() -> None:
    probabilities = torch.tensor([[0.6, 0.2, 0.4], [0.7, 0.1, 0.9]])[None, :, None]
    assert masks.label_map(probabilities).tolist() == [[[2, 0, 2]]]
    with pytest.raises(InputError, match="at least one phrase"):
        masks.label_map(probabilities[:, :0])


@pytest.mark.parametrize("side", range(4))
def test_what_is_open_to_any_side_is_no_hole(side: int) -> None:
    mask = torch.ones(1, 9, 9)
    mask[:, 4, 4:] = 0  # a bay, open to the right
    mask[:, 2, 2] = 0  # a hole
    closed = torch.ones(1, 9, 9)
    closed[:, 4, 4:] = 0
    turned, wanted = (torch.rot90(part, side, (1, 2)) for part in (mask, closed))
    assert torch.equal(masks.fill_holes(turned), wanted)


def test_a_label_is_for_what_is_over_the_background() -> None:
    assert masks.label_map(torch.tensor([0.5, 0.51]).view(1, 1, 1, 2), 0.5).tolist() == [[[0, 1]]]
