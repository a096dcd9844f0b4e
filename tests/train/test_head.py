"""Training a head: what a batch holds, what the loss is made of, what it starts from, and that it learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ldznet.data import TinyWorldDataset
from ldznet.data.cache import Cache, add_latents, draw
from ldznet.errors import InputError
from ldznet.hosts.tiny import TinyHost
from ldznet.models import build_head
from ldznet.phrases import fill
from ldznet.tinyworld import world
from ldznet.train.engine import Run, TrainConfig
from ldznet.train.head import (
    ABSENT_SHARE,
    DICE_WEIGHT,
    INPUT_DROP,
    PRESENCE_WEIGHT,
    STUFF_WEIGHT,
    WORDS_WEIGHT,
    HeadTask,
    Segmenting,
    commonest_words,
    soft_dice,
    start_from,
)

SIZE = 64


@pytest.fixture(scope="module")
def host() -> TinyHost:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        models = world.fresh()
    for model in models[:3]:
        model.eval().requires_grad_(False)
    return TinyHost(models)


@pytest.fixture(scope="module")
def cache(host: TinyHost, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    drawn = draw(TinyWorldDataset(4, size=SIZE), tmp_path_factory.mktemp("cache"))
    return add_latents(drawn, host.encode_image)


def head(network: str = "znet") -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return build_head(world.head_config(network))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(task: HeadTask, index: int, count: int) -> list[tuple[str, np.ndarray, bool]]:
    """Phrases of one image, their masks, and whether they are there."""
    texts, planes, present = task._phrases(torch.full((count,), index), generator())
    masks = (task._masks(planes) * present[:, None, None]).numpy() > 0
    names = list(task.rows)
    return [(names[t], mask, p > 0) for t, mask, p in zip(texts.tolist(), masks, present.tolist(), strict=True)]


def test_a_share_of_the_phrases_is_absent_and_has_no_mask(host: TinyHost, cache: Cache) -> None:
    task = HeadTask(head(), host, cache)
    found = [(i, *one) for i in range(4) for one in drawn(task, i, 500)]
    absent = [(i, phrase, mask) for i, phrase, mask, there in found if not there]
    assert len(absent) / len(found) == pytest.approx(ABSENT_SHARE, abs=0.03)
    assert not any(mask.any() for _, _, mask in absent)
    assert all(phrase in cache.records[i]["absent"] for i, phrase, _ in absent)
    for i, phrase, mask, there in found:
        if there:
            assert np.array_equal(mask, cache.mask(i, cache.records[i]["phrases"].index(phrase)))
    assert {p for i, p, *_ in found if i == 0} == {*cache.records[0]["phrases"], *cache.records[0]["absent"]}


def test_an_image_without_absent_phrases_or_without_others_has_what_it_has(host: TinyHost, cache: Cache) -> None:
    some = Cache(cache.folder)
    some.records = [{**cache.records[0], "absent": []}, {**cache.records[1], "phrases": [], "kinds": []}]
    some.latents = cache.latents[:2]
    task = HeadTask(head(), host, some)
    assert all(there for *_, there in drawn(task, 0, 50))
    assert not any(there for *_, there in drawn(task, 1, 50))


def test_words_that_are_not_named_are_in_no_phrase(host: TinyHost, cache: Cache) -> None:
    hidden = cache.records[0]["phrases"][0].split()[-1]
    task = HeadTask(head(), host, cache, {hidden})
    assert hidden not in task.columns
    assert not any(hidden in phrase.split() for phrase in task.rows)
    assert not any(hidden in phrase.split() for phrase, *_ in drawn(task, 0, 200))


def test_several_caches_are_one(host: TinyHost, cache: Cache) -> None:
    task = HeadTask(head(), host, [cache, cache])
    for phrase, mask, there in drawn(task, 4 + 1, 60):
        if there:
            assert np.array_equal(mask, cache.mask(1, cache.records[1]["phrases"].index(phrase)))


@pytest.mark.parametrize(("network", "blind"), [("ldznet", False), ("light", False), ("light", True), ("znet", False)])
def test_a_quarter_of_the_rows_lacks_latents_and_another_taps(
    network: str, blind: bool, host: TinyHost, cache: Cache
) -> None:
    kept = HeadTask(head(network), host, cache, blind=blind)._kept(4000, generator())
    shares = kept.mean(dim=0).tolist()
    reads = network != "znet" and not blind
    assert shares == (pytest.approx([1 - INPUT_DROP, 1 - INPUT_DROP], abs=0.03) if reads else [1, 0])
    assert kept.sum(dim=1).min() == 1


@pytest.mark.parametrize("network", ["znet", "ldznet", "light"])
def test_a_batch_is_what_the_predictor_gives(network: str, host: TinyHost, cache: Cache) -> None:
    task = HeadTask(head(network), host, cache)
    latents, context, taps, masks, words, kept, _ = task.batch(0, 6, generator())
    assert latents.shape == (6, 4, SIZE // 8, SIZE // 8)
    assert masks.shape == (6, 1, SIZE, SIZE)
    assert set(masks.unique().tolist()) <= {0, 1}
    assert list(taps) == list(task.config.tap_specs)
    texts = [fill(task.config.template, phrase) for phrase in task.rows]
    torch.testing.assert_close(task.text.context, host.encode_text(texts), atol=1e-5, rtol=0)
    assert context.shape == (6, 77, 64)
    assert all(task.module(latents, context, taps, masks, words, kept)[0].isfinite().flatten())


def test_the_reading_of_words_disturbs_no_head_at_the_start(host: TinyHost, cache: Cache) -> None:
    task = HeadTask(head("znet"), host, cache)
    latents, context, taps, masks, words, kept, _ = task.batch(0, 2, generator())
    gradients = []
    for said in (words, 1 - words):
        task.module.zero_grad()
        task.module(latents, context, taps, masks, said, kept)[0].backward()
        gradients.append([p.grad.clone() for p in task.module.head.parameters() if p.grad is not None])
        assert task.module.words.weight.grad.abs().max() > 0
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_stuff_is_asked_for_less_often_than_things(host: TinyHost, cache: Cache) -> None:
    some = Cache(cache.folder)
    some.records[0] = record = {**cache.records[0], "absent": []}
    phrases = [phrase for phrase, *_ in drawn(HeadTask(head(), host, some), 0, 600)]
    things, stuff = (
        np.mean([phrases.count(p) for p, k in zip(record["phrases"], record["kinds"], strict=True) if k == kind])
        for kind in ("thing", "stuff")
    )
    assert stuff / things == pytest.approx(STUFF_WEIGHT, abs=0.12)


def test_text_mask_and_latents_belong_together(host: TinyHost, cache: Cache) -> None:
    some = Cache(cache.folder)
    first = [{name: record[name][:1] for name in ("phrases", "kinds")} for record in cache.records]
    some.records = [{**record, **one, "absent": []} for record, one in zip(cache.records, first, strict=True)]
    latents, context, _, masks, *_ = HeadTask(head(), host, some).batch(0, 12, generator())
    for row in range(12):
        (item,) = (i for i in range(4) if torch.equal(cache.latents[i].float(), latents[row]))
        said = host.encode_text(some.records[item]["phrases"])[0]
        torch.testing.assert_close(context[row], said, atol=1e-5, rtol=0)
        assert np.array_equal(masks[row, 0].numpy() > 0, cache.mask(item, 0))


def test_word_maps_say_where_each_word_is(host: TinyHost, cache: Cache) -> None:
    task = HeadTask(head(), host, cache)
    assert "a" not in task.columns
    maps = task.batch(0, 12, generator())[4]
    latents = task.batch(0, 12, generator())[0]
    assert maps.shape == (12, len(task.columns), SIZE // 8, SIZE // 8)
    for row in range(12):
        (item,) = (i for i in range(4) if torch.equal(cache.latents[i].float(), latents[row]))
        phrases = cache.records[item]["phrases"]
        for column, word in enumerate(task.columns):
            holding = [cache.mask(item, i) for i, phrase in enumerate(phrases) if word in phrase.split()]
            where = np.any(holding, axis=0) if holding else np.zeros((SIZE, SIZE), bool)
            cells = where.reshape(SIZE // 8, 8, SIZE // 8, 8).any(axis=(1, 3))
            assert np.array_equal(maps[row, column].numpy() > 0, cells), word


def test_the_commonest_words_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    phrases = ["the dog", "a Red dog", "an old dog", "the red cat"]
    monkeypatch.setattr("ldznet.train.head.MOST_WORDS", 2)
    assert commonest_words(phrases) == ["dog", "red"]
    assert commonest_words(phrases, {"dog"}) == ["red", "old"]


def test_a_batch_follows_its_generator(host: TinyHost, cache: Cache) -> None:
    task = HeadTask(head("ldznet"), host, cache)
    one, two, other = (task.batch(0, 3, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(one[3], two[3])
    assert all(torch.equal(one[2][block], two[2][block]) for block in one[2])
    assert not torch.equal(one[2]["middle.0"], other[2]["middle.0"])


def test_images_without_phrases_are_left_out(host: TinyHost, cache: Cache, tmp_path: Path) -> None:
    some = Cache(cache.folder)
    some.records = [{**record, "phrases": [], "absent": []} for record in cache.records[:3]] + cache.records[3:]
    latents = HeadTask(head(), host, some).batch(0, 8, generator())[0]
    assert all(torch.equal(row, cache.latents[3].float()) for row in latents)
    some.records = some.records[:3]
    with pytest.raises(InputError, match="images with phrases"):
        HeadTask(head(), host, some)


def test_latents_are_needed(host: TinyHost, cache: Cache) -> None:
    without = Cache(cache.folder)
    without.latents = None
    with pytest.raises(ValueError, match="add_latents"):
        HeadTask(head(), host, without)


BIG = 30.0  # a logit whose sigmoid is 1 in float32


@pytest.mark.parametrize(
    ("logits", "mask", "expected"),
    [
        ([BIG, BIG, -BIG, -BIG], [1, 1, 0, 0], 0),
        ([BIG, BIG, -BIG, -BIG], [1, 0, 0, 0], 1 - 3 / 4),  # shares 1 of 2 and 1: (2 + 1) / (2 + 1 + 1)
        ([0, 0, 0, 0], [1, 1, 0, 0], 1 - 3 / 4),  # shares 1/2 + 1/2 of 4/4 and 2: (2 + 1) / (1 + 2 + 1)
        ([-BIG, -BIG, -BIG, -BIG], [1, 1, 1, 0], 1 - 1 / 4),
    ],
)
def test_dice_by_hand(logits: list[float], mask: list[int], expected: float) -> None:
    maps = torch.tensor([logits, [-BIG] * 4]).view(2, 1, 2, 2), torch.tensor([mask, [0] * 4]).view(2, 1, 2, 2)
    assert soft_dice(*maps).tolist() == pytest.approx([expected, 0], abs=1e-5)


class Fixed(nn.Module):
    """A head with an answer of its own."""

    def __init__(self, logits: Tensor, presence: Tensor | None) -> None:
        super().__init__()
        self.answer = logits, presence
        self.head_config = world.head_config("znet")

    def features(self, latents: Tensor, *inputs: object) -> Tensor:
        return torch.zeros(len(latents), self.head_config.unet.model_channels, *latents.shape[2:])

    def read(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.answer


def test_the_loss_by_hand() -> None:
    logits = torch.tensor([[BIG, BIG, -BIG, -BIG], [0.0, 0, 0, 0]]).view(2, 1, 2, 2)
    masks = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]]).view(2, 1, 2, 2)
    latents = torch.zeros(2, 4, 1, 1)
    words = torch.ones(2, 3, 1, 1)  # of three words, each everywhere
    module = Segmenting(Fixed(logits, None), 3, None)  # no host is asked
    nn.init.zeros_(module.words.bias)
    loss, figures = module(latents, latents[..., 0], {}, masks, words)
    pixels = (BIG + 4 * np.log(2)) / 8
    assert figures["pixels"].item() == pytest.approx(pixels, abs=1e-5)
    assert figures["dice"].item() == pytest.approx(1 / 4, abs=1e-5)  # of the present phrase alone
    assert figures["words"].item() == pytest.approx(3 * np.log(2), abs=1e-5)  # features of zeros know nothing
    assert loss.item() == pytest.approx(pixels + DICE_WEIGHT / 4 + WORDS_WEIGHT * 3 * np.log(2), abs=1e-5)
    module.head.answer = logits, torch.zeros(2)
    with_presence, figures = module(latents, latents[..., 0], {}, masks, words)
    assert figures["presence"].item() == pytest.approx(np.log(2), abs=1e-6)
    assert (with_presence - loss).item() == pytest.approx(PRESENCE_WEIGHT * np.log(2), abs=1e-5)


@pytest.mark.parametrize("network", ["znet", "ldznet"])
def test_a_head_starts_from_the_unet(network: str, host: TinyHost) -> None:
    fresh, started = head(network).state_dict(), head(network)
    unet = host.models.unet.state_dict()
    shared = {name for name in unet if not name.startswith("out.")}
    shared |= {name for name in ("out.2.weight", "out.2.bias") if fresh[name].shape == unet[name].shape}
    shared |= {"out.0.weight", "out.0.bias"}
    assert start_from(started, host.models.unet) == len(shared)
    for name, tensor in started.state_dict().items():
        assert torch.equal(tensor, unet[name] if name in shared else fresh[name]), name


def test_a_head_starts_from_another_head() -> None:
    znet, ldznet = head("znet"), head("ldznet")
    nn.init.constant_(znet.final[0].weight, 0.5)
    assert start_from(ldznet, znet) == len(znet.state_dict())
    assert torch.equal(ldznet.final[0].weight, znet.final[0].weight)


def test_it_learns_and_the_host_does_not(host: TinyHost, cache: Cache, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("ldznet.train.engine.write_log", lambda rows, folder: None)
    before = {name: tensor.clone() for name, tensor in host.models.unet.state_dict().items()}
    task = HeadTask(head("ldznet"), host, cache)
    held = task.batch(0, 8, generator(5))
    with torch.no_grad():
        first = task.module(*held)[0]
    Run(task, TrainConfig(steps=16, batch=4, learning_rate=2e-3, warmup=4, log_every=8), tmp_path).train()
    with torch.no_grad():
        assert task.module(*held)[0] < 0.8 * first
    assert all(torch.equal(tensor, before[name]) for name, tensor in host.models.unet.state_dict().items())
