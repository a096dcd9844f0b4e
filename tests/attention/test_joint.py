"""Reading transformers that hold text and picture in one sequence: on a small one that hands its attention on as
ComfyUI does. ComfyUI's own classes are in tests/joint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldznet.attention.config import GUESS, joint_config
from ldznet.attention.joint import OVERRIDE, PICTURES, Call, Layout, joint_probabilities, reading_joint
from ldznet.contracts import TapSpec
from ldznet.errors import TapError

HEADS, WIDTH, TEXT = 2, 8, 5
LAYOUT = Layout({"joint": "blocks"}, multiple="pads_to")


def kernel(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None, **named: Any) -> Tensor:
    """An attention function as ComfyUI wraps it: what stands under the key is called in its place."""
    options = named.get("transformer_options") or {}
    if OVERRIDE in options and not named.pop("inside", False):
        return options[OVERRIDE](kernel, query, key, value, heads, mask, **named, inside=True)
    by_head = [part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (query, key, value)]
    return torch.nn.functional.scaled_dot_product_attention(*by_head, attn_mask=mask).transpose(1, 2).flatten(2)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, rows: Tensor, mask: Tensor | None, transformer_options: Any = None) -> Tensor:
        query, key, value = self.qkv(rows).chunk(3, dim=2)
        self.seen = [(query, key)]
        found = kernel(query, key, value, HEADS, mask, transformer_options=transformer_options)
        kernel(query[:, 8:], key[:, 8:], value[:, 8:], HEADS, transformer_options=transformer_options)  # its own alone
        return rows + found


class Network(nn.Module):
    """Text padded to a multiple of 8 rows, then a picture of patches 2 x 2; `hands_on`: options reach blocks."""

    patch_size, pads_to = 2, 8

    def __init__(self, hands_on: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(4 * 4, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block(), Block()])
        self.hands_on = hands_on

    def forward(self, x: Tensor, t: Tensor, context: Tensor, transformer_options: Any = None, **named: Any) -> Tensor:
        x = x if x.ndim == 4 else x[:, :, 0]
        x = torch.nn.functional.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        patches = x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        context = x.new_zeros(len(x), 0, WIDTH) if context is None else context
        padding = context.new_zeros(len(x), -context.shape[1] % self.pads_to, WIDTH)
        rows = torch.cat([context, padding, self.first(patches)], dim=1)
        options: dict[str, Any] = {"transformer_options": transformer_options} if self.hands_on else {}
        for block in self.blocks:
            rows = block(rows, named.get("mask"), **options)
        return rows


class HandedBlock(Block):
    """As HiDream-O1's: it is given its kernel, and no options; the first 8 rows, whose keys were kept, ask nothing."""

    def forward(self, rows: Tensor, mask: Tensor | None, attend: Any = None, **options: Any) -> Tensor:
        query, key, value = self.qkv(rows).chunk(3, dim=2)
        self.seen = [(query, key)]
        return torch.cat([rows[:, :8], rows[:, 8:] + attend(query[:, 8:], key, value, HEADS)], dim=1)


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network().requires_grad_(False)


def test_where_text_and_picture_stand() -> None:
    network = SimpleNamespace(register_tokens=torch.zeros(1, 8, 2), pads_to=32, patch=(1, 2, 2), side=16)
    assert Layout({}).spans(network, 5, 12) == (slice(0, 5), slice(5, 17))
    assert Layout({}, text_first=False).spans(network, 5, 12) == (slice(12, 17), slice(0, 12))
    assert Layout({}, registers="register_tokens").spans(network, 5, 12) == (slice(8, 13), slice(13, 25))
    assert Layout({}, multiple="pads_to").spans(network, 33, 12) == (slice(0, 33), slice(64, 76))
    network.blocks = [SimpleNamespace(flipped_img_txt=True)]
    assert Layout({"joint": "blocks"}).spans(network, 5, 12) == (slice(12, 17), slice(0, 12))
    assert Layout({}).spans(network, 5, 12, glyphs=3) == (slice(0, 5), slice(8, 20))
    assert [Layout({}, patch=name).side(network) for name in ("patch", "side", 4)] == [2, 16, 4]


def read(
    network: Network, size: tuple[int, int] = (4, 6), options: Any = None, blocks: Any = ("joint.1",), **named: Any
) -> tuple[Any, Tensor | None]:
    """What is read of a pass over two pictures, and what the network gave, if it came to its end."""
    generator = torch.Generator().manual_seed(1)
    frames = named.pop("frames", ())
    x = torch.randn(2, 4, *frames, *size, generator=generator)
    context = named.pop("text", 3 * torch.randn(2, TEXT, WIDTH, generator=generator))
    given = {name: named.pop(name) for name in ("mask", "ref_latents", *PICTURES) if name in named}
    layout = named.pop("layout", LAYOUT)
    specs = {name: TapSpec(name, 0, 2) for name in layout.modules(network)}
    out = None
    with reading_joint(layout, network, blocks, blocks[:1], specs, size, **named) as found:
        out = network(x, torch.zeros(2), context=context, transformer_options=options or {}, **given)
    return found, out


def explicit(block: Any, mask: Tensor | None = None) -> Tensor:
    """Head means of the softmax over all keys, b rows rows."""
    query, key = (part.double().unflatten(2, (HEADS, -1)).transpose(1, 2) for part in block.seen[0])
    scores = query @ key.transpose(2, 3) * (WIDTH // HEADS) ** -0.5
    return (scores if mask is None else scores + mask).softmax(-1).mean(1)


def test_maps_are_those_of_all_keys(network: Network) -> None:
    found, out = read(network)
    assert out is None  # the pass ended after the last block that was asked for
    every = explicit(network.blocks[1])
    torch.testing.assert_close(found.cross["joint.1"].flatten(2).mT.double(), every[:, 8:, :TEXT], atol=1e-6, rtol=0)
    torch.testing.assert_close(found.self_attention["joint.1"].double(), every[:, 8:, 8:], atol=1e-6, rtol=0)
    assert found.cross["joint.1"].shape == (2, TEXT, 2, 3)


def test_attention_that_a_block_is_handed_is_read(network: Network) -> None:
    torch.manual_seed(1)
    network.model = nn.Module()
    network.model.layers = nn.ModuleList([HandedBlock() for _ in range(2)]).requires_grad_(False)
    network.blocks = nn.ModuleList(network.model.layers)
    for block in network.blocks:
        block.register_forward_pre_hook(lambda _, args, named: (args, {**named, "attend": kernel}), with_kwargs=True)
    layout = dataclasses.replace(LAYOUT, stages={"joint": "model.layers"}, handed="attend")
    network.hands_on = False
    found, _ = read(network, layout=layout, end_early=False)
    every = explicit(network.blocks[1])
    torch.testing.assert_close(found.cross["joint.1"].flatten(2).mT.double(), every[:, 8:, :TEXT], atol=1e-6, rtol=0)
    torch.testing.assert_close(found.self_attention["joint.1"].double(), every[:, 8:, 8:], atol=1e-6, rtol=0)


def test_a_mask_is_heeded(network: Network) -> None:
    mask = torch.zeros(1, 1, 1, 14)
    mask[..., 1] = float("-inf")
    found, _ = read(network, mask=mask)
    every = explicit(network.blocks[1], mask)
    assert found.cross["joint.1"][:, 1].abs().max() == 0
    torch.testing.assert_close(found.cross["joint.1"].flatten(2).mT.double(), every[:, 8:, :TEXT], atol=1e-6, rtol=0)


def test_rows_in_chunks_are_the_same() -> None:
    query, key = torch.randn(2, 3, 20, 4), torch.randn(2, 3, 20, 4)
    call = Call(query, key, torch.randn(1, 3, 20, 20), 0.5)
    whole = joint_probabilities(call, slice(0, 6), slice(6, 18), True)
    assert call.mask is not None
    every = (query @ key.transpose(2, 3) * 0.5 + call.mask).softmax(-1).mean(1)
    torch.testing.assert_close(whole[0], every[:, 6:18, :6])
    for most in (100, 600, 1000):  # some rows of a head, one head, two
        parts = joint_probabilities(call, slice(0, 6), slice(6, 18), True, most_scores=most)
        for one, other in zip(whole, parts, strict=True):
            assert one is not None
            assert other is not None
            torch.testing.assert_close(one, other)
    torch.testing.assert_close(joint_probabilities(call, slice(0, 6), slice(6, 18), most_scores=100)[0], whole[0])


def test_grouped_queries_and_chosen_rows() -> None:
    query, key = torch.randn(4, 6, 32), torch.randn(4, 2, 6, 8)
    call = Call.of(lambda rows: rows[2:], (query, key, key, 4), {"mask": torch.zeros(4, 1, 6), "scale": 0.25})
    assert call.query.shape == (2, 4, 6, 8)
    assert torch.equal(call.key[:, 0], key[2:, 0])
    assert torch.equal(call.key[:, 1], key[2:, 0])
    assert call.mask is not None
    assert call.mask.shape == (2, 1, 1, 6)
    assert call.scale == 0.25


def test_somebody_else_s_pass_is_left_as_it_is(network: Network) -> None:
    calls: list[Callable[..., Any]] = []

    def other(function: Callable[..., Tensor], *args: Any, **named: Any) -> Tensor:
        calls.append(function)
        return function(*args, **named)

    options = {OVERRIDE: other}
    _, plain = read(network, options=options, blocks=())
    found, out = read(network, options=options, end_early=False)
    assert plain is not None
    assert out is not None
    assert torch.equal(plain, out)
    assert len(calls) == 12
    assert set(found.cross) == {"joint.1"}
    assert options == {OVERRIDE: other}
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in network.modules())


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({"frames": (3,)}, "one frame was expected, and 3 came"),
        ({"ref_latents": [torch.zeros(1)]}, "without reference pictures"),
        ({"image_cond": torch.zeros(1)}, "without reference pictures"),
        ({"time_dim_replace": torch.zeros(1)}, "without reference pictures"),
        ({"ref_patches": torch.zeros(1)}, "without reference pictures"),
        ({"text": None}, "with a text was expected"),
        ({"blocks": ("joint.7",)}, "Expected blocks of joint.0, joint.1, joint.2, got joint.7"),
    ],
)
def test_what_is_no_picture_of_the_family_is_refused(network: Network, changed: Any, wanted: str) -> None:
    with pytest.raises(TapError, match=wanted):
        read(network, **changed)
    if "blocks" not in changed:
        assert read(network, end_early=False, **changed)[0].cross == {}


def test_a_host_that_hands_nothing_on_is_told(network: Network) -> None:
    network.hands_on = False
    with pytest.raises(TapError, match="no attention call reached transformer_options"):
        read(network)


def test_what_fills_up_patches_does_not_shift_a_map(network: Network) -> None:
    """Latents 5 wide have 3 patches, the last half empty: a map over them covers 5 latent pixels, not 6."""
    found, _ = read(network, size=(4, 5))
    maps = explicit(network.blocks[1])[:, 8:, :TEXT].mT.unflatten(2, (2, 3)).float()
    whole = torch.nn.functional.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)
    expected = torch.nn.functional.adaptive_avg_pool2d(whole[..., :5], (2, 3))
    torch.testing.assert_close(found.cross["joint.1"], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("family", "depth", "blocks", "source"),
    [
        ("flux", 19, (15, 16, 17, 18), "published: ConceptAttention"),
        ("flux", 9, (3, 4, 5), GUESS),
        ("sd3", 24, (9,), "published: Seg4Diff"),
        ("flux2", 8, (5, 6, 7), "published: ConceptAttention"),
        ("qwen", 60, tuple(range(20, 40)), GUESS),
        ("pixart", 28, tuple(range(9, 19)), "t published with the code of GoCA, arXiv 2603.06178; blocks a guess"),
        ("hydit", 40, tuple(range(20, 30)), "published with the code of GoCA"),
    ],
)
def test_studied_blocks_are_read_at_the_studied_depth(family: str, depth: int, blocks: Any, source: str) -> None:
    specs = {f"joint.{i}": TapSpec(f"joint.{i}", 0, 2) for i in range(depth)}
    host: Any = SimpleNamespace(family=family, specs=specs, latent_channels=16, pixels_per_latent=8)
    config = joint_config(host)
    assert config.coarse == tuple(f"2/joint.{i}" for i in blocks)
    assert config.source.startswith(source)
    assert config.latent_grid == (128, 128)
