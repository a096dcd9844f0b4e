"""Training the text encoder: what its loss asks for, and that words which say different things come apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ldznet.tinyworld import world
from ldznet.tinyworld.shapes import CATEGORIES
from ldznet.tinyworld.text import TextEncoder
from ldznet.train.engine import Run, TrainConfig
from ldznet.train.text import CLOSENESS, Reading, TextTask

THINGS = ("star", "heart", "cat", "fish")
CAPTIONS = [f"a {colour} {thing} on grass" for colour in ("red", "blue", "pink") for thing in THINGS]


@pytest.fixture
def text() -> TextEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return world.fresh().text


def encode(*captions: str) -> Tensor:
    return torch.tensor([world.tokenizer().encode(caption) for caption in captions])


def test_words_that_were_one_come_apart_and_attributes_reach_the_noun(text: TextEncoder, tmp_path: Path) -> None:
    embedding = text.text_model["embeddings"].token_embedding.weight
    nouns = torch.stack([encode(f"a red {thing}")[0, 3] for thing in THINGS])
    with torch.no_grad():
        embedding[nouns] = embedding[nouns[0]] + 1e-3 * torch.randn(len(THINGS), embedding.shape[1])
    assert nearest(text, "a red {}") < 0.5
    task = TextTask(text, world.tokenizer(), CAPTIONS, goes_on=False)
    run = Run(task, TrainConfig(150, 12, 3e-3, warmup=10, ema=0.0), tmp_path)
    run.train()
    assert nearest(text, "a red {}") > 4
    states = text(encode("a red star", "a blue star", "a pink star"))[:, 3]
    read = task.module.before[0](states).argmax(1)
    assert read.tolist() == [int(encode(f"a {colour}")[0, 2]) for colour in ("red", "blue", "pink")]


def test_the_embedded_encoder_tells_all_things_apart() -> None:
    """An encoder that was trained with the UNet had two of them 0.2 apart, in states of length 6."""
    assert nearest(world.load().text, "a red {}", tuple(CATEGORIES)) > 2


def nearest(text: TextEncoder, caption: str, things: tuple[str, ...] = THINGS) -> float:
    """The smallest distance between the states of two things."""
    with torch.no_grad():
        states = text(encode(*map(caption.format, things)))[:, 3]
    return float(torch.pdist(states).min())


def test_an_encoder_that_goes_on_pays_for_moving(text: TextEncoder) -> None:
    task = TextTask(text, world.tokenizer(), CAPTIONS, goes_on=True)
    ids = task.batch(0, 8, torch.Generator().manual_seed(0))
    _, figures = task.loss(task.module, ids)
    assert figures["moved"].item() == 0
    with torch.no_grad():
        text.text_model["final_layer_norm"].bias += 0.5
    moved, figures = task.loss(task.module, ids)
    assert figures["moved"].item() == pytest.approx(0.25, rel=1e-4)
    free, _ = Reading.forward(_without_former(task.module), ids)
    assert (moved - free).item() == pytest.approx(CLOSENESS * 0.25, rel=1e-4)
    assert all(name.startswith(("text.", "prototypes", "before.")) for name, _ in task.module.named_parameters())


def _without_former(reading: Reading) -> Reading:
    reading.frozen = (None,)
    return reading


def test_padding_asks_for_nothing(text: TextEncoder) -> None:
    """The states behind the end differ between these two, what they are asked for does not: all that is read is."""
    reading = Reading(text, None)
    ids = encode("a star")
    loss, _ = reading(ids)
    with torch.no_grad():
        text.text_model["embeddings"].position_embedding.weight[5:].normal_()
    assert torch.allclose(reading(ids)[0], loss)
    with torch.no_grad():
        text.text_model["embeddings"].position_embedding.weight[3].normal_()
    assert not torch.allclose(reading(ids)[0], loss)
