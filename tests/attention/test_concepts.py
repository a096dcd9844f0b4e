"""Concept attention, on a small transformer of two streams that hands its attention on as ComfyUI does; the same in
ComfyUI's own Flux and Chroma is in tests/joint, in diffusers' in tests/hosts."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from attention.test_joint import kernel
from torch import Tensor, nn

from ldznet.attention import AttentionHead
from ldznet.attention.concepts import attended_apart, concepts_of, numbered, with_concepts
from ldznet.attention.config import SD, concept_config
from ldznet.attention.finding import Found, logits_of
from ldznet.attention.joint import Layout, reading_joint
from ldznet.attention.presence import Evidence
from ldznet.attention.prompts import prompts_of
from ldznet.checkpoints import load_head
from ldznet.checkpoints.load import head_info
from ldznet.contracts import TapSpec
from ldznet.errors import HostError, InputError
from ldznet.hosts.tiny import TinyHost

HEADS, WIDTH, TEXT, CONCEPTS = 2, 8, 5, 3
SIZE, PIXELS = (4, 6), 6
LAYOUT = Layout({"joint": "blocks"}, patch=2)


class Stream(nn.Module):
    """What a block does to the rows of one kind: queries, keys and values, and what becomes of what they read."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.after = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.text, self.picture = Stream(), Stream()

    def forward(self, text: Tensor, picture: Tensor, transformer_options: Any = None) -> tuple[Tensor, Tensor]:
        both = _joined(_parts(self.text, text), _parts(self.picture, picture))
        read = kernel(*both, HEADS, None, transformer_options=transformer_options)
        rows = text.shape[1]
        return text + self.text.after(read[:, :rows]), picture + self.picture.after(read[:, rows:])


class Network(nn.Module):
    """Two streams; `seen`: what the picture's rows are in the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block(), Block()])

    def patches(self, x: Tensor) -> Tensor:
        return self.first(x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2))

    def forward(self, x: Tensor, t: Tensor, context: Tensor, transformer_options: Any = None) -> Tensor:
        text, picture = context, self.patches(x)
        for block in self.blocks:
            text, picture = block(text, picture, transformer_options=transformer_options)
        return picture


def _parts(stream: Any, rows: Tensor) -> tuple[Tensor, ...]:
    return stream.qkv(rows).chunk(3, dim=2)


def _joined(*streams: Any) -> list[Tensor]:
    """Queries, keys and values of several streams, one after the other."""
    return [torch.cat(parts, dim=1) for parts in zip(*streams, strict=True)]


def _read(parts: Any, keys: Any) -> Tensor:
    """The attention output of the queries of `parts` over the keys and values of `keys`."""
    query, key, value = (part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in (parts[0], keys[1], keys[2]))
    weights = (query @ key.transpose(2, 3) * (WIDTH // HEADS) ** -0.5).softmax(-1)
    return (weights @ value).transpose(1, 2).flatten(2)


def explicit(network: Any, x: Tensor, text: Tensor, concepts: Tensor, wrong: str = "") -> list[Tensor]:
    """The maps of each block, b p c, with concepts as a stream of their own, as the paper has them."""
    picture, found = network.patches(x), []
    for block in network.blocks:
        t, p, c = _parts(block.text, text), _parts(block.picture, picture), _parts(block.text, concepts)
        both = _joined(t, p)
        seen = {
            "the prompt is read": _joined(t, c, p),
            "concepts do not read each other": p,
        }.get(wrong, _joined(c, p))
        with_concepts = _joined(both, c)
        own = _read(both, with_concepts if wrong == "concepts are read" else both)
        read, shown = _read(c, seen), own[:, text.shape[1] :]
        if wrong == "queries and keys":
            found.append((p[0] @ c[1].transpose(1, 2)).softmax(-1))
        else:
            found.append((shown @ read.transpose(1, 2)).softmax(-1))
        text = text + block.text.after(own[:, : text.shape[1]])
        picture = picture + block.picture.after(shown)
        concepts = concepts + block.text.after(read)
    return found


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network().requires_grad_(False)


def inputs(batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = (batch, 4, *SIZE), (batch, TEXT, WIDTH), (batch, CONCEPTS, WIDTH)
    x, text, concepts = (3 * torch.randn(*shape, generator=generator) for shape in shapes)
    return x, text, concepts


def test_maps_are_the_paper_s(network: Network) -> None:
    x, text, concepts = inputs()
    specs = {name: TapSpec(name, 0, 2) for name in LAYOUT.modules(network)}
    with reading_joint(LAYOUT, network, ["joint.2"], [], specs, SIZE, concepts=CONCEPTS) as found:
        network(x, torch.zeros(2), context=torch.cat([text, concepts], dim=1), transformer_options={})
    ours = found.cross["joint.2"]
    assert ours.shape == (2, CONCEPTS, 2, 3)
    theirs = explicit(network, x, text, concepts)
    torch.testing.assert_close(ours.flatten(2).mT, theirs[2], atol=1e-5, rtol=0)
    assert (ours.flatten(2).mT - theirs[1]).abs().max() > 1e-2
    for wrong in ("the prompt is read", "concepts do not read each other", "concepts are read", "queries and keys"):
        assert (ours.flatten(2).mT - explicit(network, x, text, concepts, wrong)[2]).abs().max() > 1e-3, wrong


def test_the_picture_goes_on_as_if_there_were_none(network: Network) -> None:
    x, text, concepts = inputs()
    specs = {name: TapSpec(name, 0, 2) for name in LAYOUT.modules(network)}
    plain = network(x, torch.zeros(2), context=text, transformer_options={})
    with reading_joint(LAYOUT, network, ["joint.2"], [], specs, SIZE, end_early=False, concepts=CONCEPTS):
        beside = network(x, torch.zeros(2), context=torch.cat([text, concepts], dim=1), transformer_options={})
    torch.testing.assert_close(beside, plain, atol=1e-6, rtol=0)
    read = network(x, torch.zeros(2), context=torch.cat([text, concepts], dim=1), transformer_options={})
    assert (read - plain).abs().max() > 1e-2


def test_a_mask_is_cut_to_what_is_read() -> None:
    """Rows by head or side by side, a mask for every query or for none apart."""
    generator = torch.Generator().manual_seed(2)
    parts = torch.randn(3, 2, HEADS, 12, 4, generator=generator)
    mask = torch.randn(2, 1, 12, 12, generator=generator)
    concepts, picture = slice(5, 8), slice(8, 12)
    given: list[Tensor | None] = []

    def run(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        given.append(mask)
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    output, maps = attended_apart(run, list(parts), mask, concepts, picture)
    others = [*range(5), *range(8, 12)]
    torch.testing.assert_close(given[0], mask[:, :, others][..., others])
    torch.testing.assert_close(given[1], mask[:, :, 5:8, 5:])
    own = run(*parts[..., others, :], given[0])
    torch.testing.assert_close(output[:, :, others], own)
    assert output.shape == parts[0].shape
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 4))
    attended_apart(run, list(parts), mask[:, :, :1], concepts, picture)
    assert given[-1] is not None
    torch.testing.assert_close(given[-1], mask[:, :, :1, 5:])


def test_a_row_for_each_phrase_and_background_word() -> None:
    host = TinyHost.load()
    config = dataclasses.replace(SD, opening="a photo of", closing="and", background=("sky", "grass"))
    (prompt,) = prompts_of(["a red star", "grass"], config, host.tokenize)
    concepts = concepts_of(prompt, config)
    assert concepts == ("a red star", "grass", "sky")
    rows = numbered(prompt, config)
    assert (rows.phrase_tokens, rows.background_tokens) == (((0,), (1,)), ((2,),))
    before = host.condition([prompt.text])
    found = with_concepts(host, before, concepts, config).context
    assert torch.equal(found[:, : before.context.shape[1]], before.context)
    star = host.condition(["a red star"]).context[0, 2:4].mean(0)  # the start token and "a" are left out
    torch.testing.assert_close(found[0, before.context.shape[1]], star)
    assert found.shape[1] == before.context.shape[1] + 3


def test_the_threshold_is_each_map_s_mean() -> None:
    maps = torch.tensor([0.0, 0.5, 1.0, 0.1]).view(1, 1, 2, 2)
    found = Found(maps, Evidence(maps, maps, maps, maps[:, :0], maps[:, :0]))
    logits = logits_of(found, dataclasses.replace(SD, concepts=True))
    torch.testing.assert_close(logits, 10 * (maps - 0.4))


def test_it_is_refused_where_text_has_places() -> None:
    host = TinyHost.load()
    with pytest.raises(HostError, match=r"Expected Flux\.1 or Chroma for concept attention, got .*tiny"):
        concept_config(host)
    head = load_head("concepts")
    assert isinstance(head, AttentionHead)
    assert head.head_config.concepts
    assert head_info("concepts").config == head.head_config
    with pytest.raises(HostError, match="concept attention"):
        head.fitted_to(host)


def test_a_capture_is_refused() -> None:
    head = AttentionHead(dataclasses.replace(SD, concepts=True))
    with pytest.raises(InputError, match="it takes passes of its own"):
        head.segment(TinyHost.load(), torch.zeros(1, 4, 16, 16), ["a"], timestep=1, seed=0, captured=object())  # type: ignore[arg-type]
