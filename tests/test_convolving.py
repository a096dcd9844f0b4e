"""Convolutions on a CPU in less time: the values of torch's own, and torch's own wherever they are not made for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ldznet
from ldznet import convolving
from ldznet.convolving import quicker_convolutions

TOLERANCE = 5e-5  # of the largest output, as the docstring says
CASES = [  # shape of the input, outputs, stride, and the way that it takes
    ((1, 128, 6, 6), 128, 1, "unfolded"),
    ((3, 128, 4, 7), 160, 1, "unfolded"),
    ((2, 128, 11, 8), 128, 2, "unfolded"),
    ((1, 128, 12, 12), 128, 1, "filtered 2"),
    ((2, 192, 13, 7), 128, 1, "filtered 2"),
    ((1, 128, 32, 32), 128, 1, "filtered 4"),
    ((2, 128, 23, 30), 130, 1, "filtered 4"),
]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer(shape: tuple[int, ...], outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    """An input, weights, and a bias large enough to be seen."""
    return numbers(*shape), numbers(outputs, shape[1], 3, 3, seed=1) / 30, numbers(outputs, seed=2)


def way(*args: Any, **kwargs: Any) -> str:
    found = convolving._way(*args, **kwargs)
    if found is None:
        return "torch"
    name = found.func.__name__  # type: ignore[attr-defined]
    return f"filtered {found.args[3]}" if name == "filtered" else name  # type: ignore[attr-defined]


@pytest.mark.parametrize(("shape", "outputs", "stride", "expected"), CASES)
@pytest.mark.parametrize("small_buffers", [False, True])
def test_values_are_those_of_an_exact_convolution(
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, ...],
    outputs: int,
    stride: int,
    expected: str,
    small_buffers: bool,
) -> None:
    if small_buffers:  # several bands of rows, and several parts of the outputs
        monkeypatch.setattr(convolving, "BUFFER", 36 * 128 * 50)
    x, weight, bias = layer(shape, outputs)
    assert way(x, weight, bias, stride, 1) == expected
    for b in (bias, None):
        exact = F.conv2d(x.double(), weight.double(), None if b is None else b.double(), stride, 1)
        with torch.no_grad(), quicker_convolutions():
            found = F.conv2d(x, weight, b, stride=stride, padding=(1, 1))
        assert found.shape == exact.shape
        assert found.is_contiguous()
        assert (found - exact).abs().max() <= TOLERANCE * exact.abs().max()


class Tagged(Tensor):
    """A subclass, as quantised weights are."""


X, WEIGHT, BIAS = layer((1, 128, 6, 6), 128)
REFUSED: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "kernel of 1": ((X, WEIGHT[:, :, :1, :1].contiguous(), BIAS, 1, 1), {}),
    "no padding": ((X, WEIGHT, BIAS), {}),
    "padding by name": ((X, WEIGHT, BIAS, 1, "same"), {}),
    "dilation": ((X, WEIGHT, BIAS, 1, 1, 2), {}),
    "groups": ((X, WEIGHT[:, :64].contiguous(), BIAS, 1, 1, 1, 2), {}),
    "float64": ((X.double(), WEIGHT.double(), BIAS.double(), 1, 1), {}),
    "bfloat16": ((X.bfloat16(), WEIGHT.bfloat16(), BIAS.bfloat16(), 1, 1), {}),
    "few channels": ((X[:, :64], WEIGHT[:, :64].contiguous(), BIAS, 1, 1), {}),
    "channels last": ((X, WEIGHT.to(memory_format=torch.channels_last), BIAS, 1, 1), {}),
    "no batch": ((numbers(128, 128, 6), WEIGHT, BIAS, 1, 1), {}),
    "no pictures": ((X[:0], WEIGHT, BIAS), {"padding": 1}),
    "a large grid in steps of two": ((numbers(1, 128, 24, 24), WEIGHT, BIAS, 2, 1), {}),
    "another device": ((X.to("meta"), WEIGHT.to("meta"), BIAS.to("meta"), 1, 1), {}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_is_not_made_for_is_left_to_torch(name: str) -> None:
    args, kwargs = REFUSED[name]
    assert way(*args, **kwargs) == "torch"
    with torch.no_grad(), quicker_convolutions():
        found = F.conv2d(*args, **kwargs)
    expected = F.conv2d(*args, **kwargs)
    assert found.shape == expected.shape
    assert found.is_meta or torch.equal(found, expected)


@pytest.fixture
def caught(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the ways that were taken."""
    taken = []

    def noting(name: str) -> Callable[..., Tensor]:
        original = getattr(convolving, name)

        def noted(*args: Any) -> Tensor:
            taken.append(name)
            return original(*args)

        return noted

    for name in ("unfolded", "filtered"):
        monkeypatch.setattr(convolving, name, noting(name))
    return taken


def test_gradients_subclasses_autocast_and_precision_are_torch_s(caught: list[str]) -> None:
    with quicker_convolutions():
        F.conv2d(X, WEIGHT, BIAS, 1, 1)
        with torch.no_grad():
            F.conv2d(X, WEIGHT.as_subclass(Tagged), BIAS, 1, 1)
            with torch.autocast("cpu"):
                assert F.conv2d(X, WEIGHT, BIAS, 1, 1).dtype == torch.bfloat16
            before = torch.get_float32_matmul_precision()
            try:
                torch.set_float32_matmul_precision("medium")
                F.conv2d(X, WEIGHT, BIAS, 1, 1)
            finally:
                torch.set_float32_matmul_precision(before)
            assert caught == []
            F.conv2d(X, WEIGHT, BIAS, 1, 1)
    assert caught == ["unfolded"]


def test_other_threads_and_later_calls_are_torch_s(caught: list[str]) -> None:
    def convolve() -> None:
        with torch.no_grad():
            F.conv2d(X, WEIGHT, BIAS, 1, 1)

    def elsewhere_then_raise() -> None:
        with quicker_convolutions():
            other = threading.Thread(target=convolve)
            other.start()
            other.join()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        elsewhere_then_raise()
    convolve()
    assert caught == []


def test_a_layer_that_a_host_changed_keeps_its_change(caught: list[str]) -> None:
    """As ComfyUI's casting layers and A1111's LoRA do: other weights for the call, a forward of the layer's own."""
    module = nn.Conv2d(128, 128, 3, padding=1)
    weight = module.weight.detach().clone()
    module.forward = lambda x: module._conv_forward(x, weight + WEIGHT, None) * 2  # type: ignore[method-assign]
    module.register_forward_hook(lambda *_: seen.append(1))
    seen: list[int] = []
    with torch.no_grad():
        expected = module(X)
        with quicker_convolutions():
            found = module(X)
    assert caught == ["unfolded"]
    assert seen == [1, 1]
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


def test_masks_of_a_predictor_are_the_same(monkeypatch: pytest.MonkeyPatch, caught: list[str]) -> None:
    """With every convolution that fits: the tiny world's are narrow, and left to torch otherwise."""
    scene, host, results = ldznet.tinyworld.scene(22, "photo"), ldznet.open_host("tiny"), []
    for fewest in (10**9, 1):
        monkeypatch.setattr(convolving, "FEW_WEIGHTS", fewest)
        predictor = ldznet.Predictor(host, ldznet.load_head("tiny"))
        predictor.set_image(scene.image)
        counts = len(caught)
        results.append(predictor.predict(["a purple cat", "grass"]).probabilities)
        assert (counts > 0) == (len(caught) > counts) == (fewest == 1)
    assert {"unfolded", "filtered"} <= {*caught}
    assert (results[0] - results[1]).abs().max() < 1e-3
