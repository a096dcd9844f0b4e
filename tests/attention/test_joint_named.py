"""Reading transformers whose code calls its kernel by a name and hands it no options: on a small one with true
cross-attention, as ComfyUI's PixArt has it. ComfyUI's own classes are in tests/joint."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldznet.attention.joint import Layout, reading_joint
from ldznet.attention.joint_named import NamedReader
from ldznet.contracts import TapSpec
from ldznet.errors import TapError

HEADS, WIDTH, TEXT, SIZE = 2, 8, 5, (4, 6)
LAYOUT = Layout({"joint": "blocks"}, inner="cross", function="attend")
CODE: Any = sys.modules[__name__]


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """An attention function as it stands in a module of a host."""
    by_head = [part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (query, key, value)]
    return torch.nn.functional.scaled_dot_product_attention(*by_head).transpose(1, 2).flatten(2)


class Cross(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.seen: list[Tensor] = []

    def forward(self, rows: Tensor, text: Tensor) -> Tensor:
        key, value = self.kv(text).chunk(2, dim=2)
        self.seen = [self.q(rows).sin(), key]  # what a hook on a projection would not see
        return attend(*self.seen, value, HEADS, mask=None)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cross = Cross()

    def forward(self, rows: Tensor, text: Tensor) -> Tensor:
        rows = rows + attend(rows, rows, rows, HEADS)
        return rows + self.cross(rows, text)


class Network(nn.Module):
    patch_size = 2

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4 * 4, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block(), Block()])

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        rows = self.first(x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2))
        for block in self.blocks:
            rows = block(rows, context)
        return rows


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network().requires_grad_(False)


@pytest.fixture(autouse=True)
def kernel() -> Iterator[Callable[..., Tensor]]:
    """What stands at the name, which every test leaves there."""
    there = CODE.attend
    yield there
    left, CODE.attend = CODE.attend, there
    assert left is there


def reading(network: Network, **named: Any) -> Any:
    specs = {name: TapSpec(name, 0, 2) for name in LAYOUT.modules(network)}
    return reading_joint(LAYOUT, network, ("joint.1",), (), specs, SIZE, reader=NamedReader, **named)


def run(network: Network) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shapes = (2, 4, *SIZE), (2, TEXT, WIDTH)
    x, context = (3 * torch.randn(*shape, generator=generator) for shape in shapes)
    return network(x, torch.zeros(2), context=context)


def explicit(network: Any) -> Tensor:
    """Head means of the softmax over the text, b t h w."""
    parts = (part.double().unflatten(2, (HEADS, -1)).transpose(1, 2) for part in network.blocks[1].cross.seen)
    query, key = parts
    maps = (query @ key.transpose(2, 3) * (WIDTH // HEADS) ** -0.5).softmax(-1).mean(1)
    return maps.mT.unflatten(2, (SIZE[0] // 2, SIZE[1] // 2)).float()


def test_maps_are_those_of_what_the_function_is_given(network: Network) -> None:
    with reading(network) as found:
        run(network)
        raise AssertionError("the pass ends after the last block that was asked for")
    torch.testing.assert_close(found.cross["joint.1"], explicit(network), atol=1e-6, rtol=0)


def test_another_pack_s_function_is_called_as_it_was_and_the_picture_stays(
    network: Network, kernel: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, dict[str, Any]]] = []

    def other(*args: Any, **named: Any) -> Tensor:
        calls.append((len(args), named))
        return kernel(*args, **named) * 2

    monkeypatch.setattr(CODE, "attend", other)
    plain, expected = run(network), list(calls)
    calls.clear()
    with reading(network, end_early=False) as found:
        out = run(network)
    assert torch.equal(plain, out)
    assert calls == expected == [(4, {}), (4, {"mask": None})] * 3
    assert set(found.cross) == {"joint.1"}
    assert CODE.attend is other
    monkeypatch.undo()


def test_the_name_is_given_back_when_a_pass_fails(network: Network, kernel: Callable[..., Tensor]) -> None:
    network.blocks[1].cross.kv = nn.Linear(WIDTH + 1, WIDTH)
    with pytest.raises(RuntimeError), reading(network):
        run(network)
    assert CODE.attend is kernel
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in network.modules())


def test_what_is_put_there_meanwhile_stays_and_is_not_looked_at_later(
    network: Network, kernel: Callable[..., Tensor]
) -> None:
    plain = run(network)
    with reading(network, end_early=False) as found:
        ours = CODE.attend
        assert ours is not kernel
        CODE.attend = other = lambda *args, **named: ours(*args, **named)
        run(network)
    kept = dict(found.cross)
    assert CODE.attend is other
    try:
        assert torch.equal(run(network), plain)
    finally:
        CODE.attend = kernel
    assert set(kept) == {"joint.1"}
    assert found.cross["joint.1"] is kept["joint.1"]


def test_other_threads_calls_are_not_looked_at(network: Network) -> None:
    other, outputs = Network().requires_grad_(False), []
    plain = run(other)

    def meanwhile() -> None:
        thread = threading.Thread(target=lambda: outputs.append(run(other)))
        thread.start()
        thread.join()

    network.blocks[1].cross.q.register_forward_hook(lambda *_: meanwhile())
    with reading(network) as found:
        run(network)
    torch.testing.assert_close(found.cross["joint.1"], explicit(network), atol=1e-6, rtol=0)
    assert torch.equal(outputs[0], plain)


def test_two_threads_that_read_take_turns(network: Network, kernel: Callable[..., Tensor]) -> None:
    other, entered, leave = Network().requires_grad_(False), threading.Event(), threading.Event()
    expected, found = explicit_of(other), []

    def read() -> None:
        with reading(other, end_early=False) as maps:
            entered.set()
            leave.wait(10)
            run(other)
        found.append(maps.cross["joint.1"])

    thread = threading.Thread(target=read)
    with reading(network, end_early=False):
        thread.start()
        assert not entered.wait(0.2)
        run(network)
    assert entered.wait(10)
    leave.set()
    thread.join()
    assert CODE.attend is kernel
    torch.testing.assert_close(found[0], expected, atol=1e-6, rtol=0)


def explicit_of(network: Network) -> Tensor:
    run(network)
    return explicit(network)


def test_a_host_without_that_name_is_told(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout({"joint": "blocks"}, inner="cross", function="attention")
    monkeypatch.setattr(CODE, "LAYOUT", layout)
    with pytest.raises(TapError, match="no attention call went by its name"), reading(network):
        run(network)
    with reading(network, end_early=False) as found:
        run(network)
    assert found.cross == {}
