"""Masks do not depend on what else a process has set in torch: default dtype, default device."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import ldznet

ROOT = Path(__file__).parents[1]
FACTORIES = {"arange", "empty", "eye", "full", "linspace", "ones", "rand", "randn", "tensor", "zeros"}
FILES = [*(ROOT / "ldznet").rglob("*.py"), *(ROOT / "nodes").rglob("*.py")]
MADE_IN_PLACE = ("nn.Parameter", "drawn")  # what these get is made where its module is, on the meta device too
TRAINING = ROOT / "ldznet" / "train"  # a program of its own, which nothing else runs in


def masks() -> Iterator[torch.Tensor]:
    """All that a trained head and the attention head make of a known scene."""
    host = ldznet.open_host("tiny")
    for name in ("tiny", "attention"):
        predictor = ldznet.Predictor(host, ldznet.load_head(name), ensemble=2)
        predictor.set_image(ldznet.tinyworld.scene(22, "photo").image)
        result = predictor.predict(["a purple cat", "a car - a purple cat", "background"])
        yield from (result.logits, result.scores, result.probabilities, result.masks())


@pytest.fixture(scope="module")
def before() -> list[torch.Tensor]:
    """What `masks` are under torch's own defaults."""
    return list(masks())


@pytest.fixture
def restored() -> Iterator[None]:
    """torch's defaults as they were, afterwards."""
    yield
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "change",
    [lambda: torch.set_default_dtype(torch.float64), lambda: torch.set_default_device("meta")],
    ids=["dtype", "device"],
)
@pytest.mark.usefixtures("restored")
def test_masks_are_the_same_under_other_defaults(change: Callable[[], None], before: list[torch.Tensor]) -> None:
    change()
    after = list(masks())
    torch.set_default_device(None)
    for left, right in zip(before, after, strict=True):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)


def unnamed(source: str) -> list[int]:
    """Lines of a file that make a tensor and leave dtype or device to torch's defaults. Parameters are left out: they
    are made where their module is."""
    tree = ast.parse(source)
    parameters = {id(inner) for node in ast.walk(tree) if _called(node) in MADE_IN_PLACE for inner in ast.walk(node)}
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and id(node) not in parameters
        if (name := _called(node)) and name.startswith("torch.") and name.removeprefix("torch.") in FACTORIES
        if not {"dtype", "device"} <= {keyword.arg for keyword in node.keywords}
    ]


def _called(node: ast.AST) -> str:
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_tensor_is_made_with_a_dtype_and_a_device(path: Path) -> None:
    if TRAINING not in path.parents:
        assert unnamed(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("call", ["torch.zeros(3)", "torch.full((2,), 1, device=x.device)", "f(torch.eye(3, dtype=y))"])
def test_a_tensor_of_the_defaults_is_seen(call: str) -> None:
    assert unnamed(f"import torch\n{call}") == [2]
