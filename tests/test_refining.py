"""The guided filter and PAMR against their papers' equations, pixel by pixel in numpy; the feather against its kernel;
and resizing by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ldznet import masks
from ldznet.images import resize

HEIGHT, WIDTH = 9, 11
PIXELS = [(y, x) for y in range(HEIGHT) for x in range(WIDTH)]


@pytest.fixture
def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    """A soft mask and a picture with an edge and a little noise."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(1, HEIGHT, WIDTH, generator=generator)
    guide = torch.rand(1, 3, HEIGHT, WIDTH, generator=generator) * 0.2
    guide[:, 0, :, 5:] += 0.6
    return mask, guide


def test_the_guided_filter_is_that_of_its_paper(pictures: tuple[torch.Tensor, torch.Tensor]) -> None:
    """He, Sun, Tang 2013, equations 19 to 21, in windows cut off at the picture's edge."""
    radius, smoothness = 2, 1e-3
    p, guide = pictures[0][0].double().numpy(), pictures[1][0].double().numpy()

    def window(y: int, x: int) -> tuple[slice, slice]:
        return slice(max(0, y - radius), y + radius + 1), slice(max(0, x - radius), x + radius + 1)

    a, b = np.zeros((HEIGHT, WIDTH, 3)), np.zeros((HEIGHT, WIDTH))
    for y, x in PIXELS:
        colours, values = guide[(slice(None), *window(y, x))].reshape(3, -1), p[window(y, x)].reshape(-1)
        variance = np.cov(colours, bias=True) + smoothness * np.eye(3)
        covariance = (colours * values).mean(1) - colours.mean(1) * values.mean()
        a[y, x] = np.linalg.solve(variance, covariance)
        b[y, x] = values.mean() - a[y, x] @ colours.mean(1)
    expected = np.zeros((HEIGHT, WIDTH))
    for y, x in PIXELS:
        expected[y, x] = a[window(y, x)].reshape(-1, 3).mean(0) @ guide[:, y, x] + b[window(y, x)].mean()
    found = masks.guided_filter(*pictures, radius=radius, smoothness=smoothness)
    np.testing.assert_allclose(found[0].numpy(), expected.clip(0, 1), atol=2e-3)
    assert np.abs(expected.clip(0, 1) - p).max() > 0.2


def test_pamr_is_that_of_its_paper(pictures: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Araslanov and Roth 2020, equations 1 to 3: 8 neighbours at six dilations, twice."""
    m, guide = pictures[0][0].double().numpy(), pictures[1][0].double().numpy()
    offsets = [(dy * d, dx * d) for d in (1, 2, 4, 8, 12, 24) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]

    def near(y: int, x: int) -> list[tuple[int, int]]:
        return [(min(max(y + dy, 0), HEIGHT - 1), min(max(x + dx, 0), WIDTH - 1)) for dy, dx in offsets]

    for _ in range(2):
        after = np.zeros_like(m)
        for y, x in PIXELS:
            here, there = guide[:, y, x], np.stack([guide[:, i, j] for i, j in near(y, x)])
            deviation = np.concatenate([there, here[None]]).std(0, ddof=1)
            kernel = -(np.abs(there - here) / (0.1 * deviation + 1e-8)).mean(1)
            weights = np.exp(kernel - kernel.max())
            after[y, x] = (weights / weights.sum()) @ np.array([m[i, j] for i, j in near(y, x)])
        m = after
    found = masks.pamr(*pictures, iterations=2)
    np.testing.assert_allclose(found[0].numpy(), m, atol=2e-3)


@pytest.mark.parametrize("pixels", [1, 3, 7.5])
def test_a_feather_is_a_gaussian_of_half_its_length(pixels: float) -> None:
    """A single pixel becomes the kernel, cut off at three deviations."""
    point = torch.zeros(1, 51, 51)
    point[0, 25, 25] = 1
    reach = np.ceil(1.5 * pixels)
    apart = np.arange(-25, 26)
    kernel = np.exp(-(apart**2) / (2 * (pixels / 2) ** 2)) * (np.abs(apart) <= reach)
    kernel /= kernel.sum()
    np.testing.assert_allclose(masks.feather(point, pixels)[0].numpy(), np.outer(kernel, kernel), atol=1e-5)


def test_a_picture_made_smaller_is_averaged() -> None:
    """Stripes of one pixel, four times narrower, are an even grey inside; their mean stays."""
    stripes = (torch.arange(64) % 2).float().expand(1, 3, 8, 64)
    small = resize(stripes, (2, 16))
    assert (small[..., 2:-2] - 0.5).abs().max() < 0.02
    assert small.mean() == pytest.approx(0.5, abs=0.01)


def test_a_picture_made_larger_keeps_its_corners_in_place() -> None:
    """Twice as large, a ramp lies a quarter of a pixel to either side of each of its values."""
    ramp = torch.arange(12.0).expand(1, 1, 4, 12)
    large = resize(ramp, (8, 24))
    inside = torch.arange(24.0) / 2 - 0.25
    torch.testing.assert_close(large[0, 0, 3, 6:18], inside[6:18], atol=1e-4, rtol=0)
