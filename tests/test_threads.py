"""Several threads on one loaded model, as a server or a page with two users has them: nobody sees another's pass."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn

import ldznet
from ldznet.attention import CONFIGS, AttentionHead, Presence
from ldznet.hosts.encoders import evaluating
from ldznet.hosts.tiny import TinyHost
from ldznet.taps import exclusively, extract_taps

THREADS, ROUNDS = 4, 3
PHRASES = (["a purple cat", "grass"], ["a red star"], ["snow - a cat", "sky"], ["water"])
PATIENCE = 60  # seconds


@pytest.fixture(autouse=True)
def one_core() -> Iterator[None]:
    """Each pass in its own thread alone: sums in the same order whoever else runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def jobs(host: Any, head: Any) -> list[Callable[[], torch.Tensor]]:
    """Predictions on one host and one head, each of other latents and phrases."""

    def job(number: int) -> Callable[[], torch.Tensor]:
        latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(number))

        def predict() -> torch.Tensor:
            predictor = ldznet.Predictor(host, head, seed=number)
            predictor.set_latents(latents)
            return predictor.predict(PHRASES[number]).logits

        return predict

    return [job(number) for number in range(THREADS)]


HEADS = {  # attention without presence, which would be thirty passes more
    "tiny": lambda: ldznet.load_head("tiny"),
    "attention": lambda: AttentionHead(dataclasses.replace(CONFIGS["tiny"], presence=Presence())),
}


@pytest.mark.parametrize("name", HEADS)
def test_predictions_in_threads_are_those_of_one_after_the_other(name: str) -> None:
    host, head = TinyHost.load(), HEADS[name]()
    work = jobs(host, head)
    alone = [job() for job in work]
    with ThreadPoolExecutor(THREADS) as pool:
        together = [list(pool.map(lambda job: job(), work)) for _ in range(ROUNDS)]
    for found in together:
        for one, other in zip(alone, found, strict=True):
            assert torch.equal(one, other)


def test_somebody_else_s_pass_is_neither_read_nor_stopped() -> None:
    """A generation in another thread runs through while taps are read: they are not of it, and it is whole."""
    host = TinyHost.load()
    unet, t = host.models.unet, torch.tensor([200])
    context = host.encode_text(["grass"])
    mine, theirs = torch.zeros(1, 4, 16, 16), torch.ones(1, 4, 16, 16)
    with torch.no_grad():
        expected, whole = extract_taps(unet, ["input.8"], lambda: unet(mine, t, context)), unet(theirs, t, context)

    def run() -> None:
        with ThreadPoolExecutor(1) as pool, torch.no_grad():
            found = pool.submit(torch.no_grad()(unet), theirs, t, context).result(PATIENCE)
        assert torch.equal(found, whole)
        unet(mine, t, context)

    taps = extract_taps(unet, ["input.8"], run)
    assert torch.equal(taps["input.8"], expected["input.8"])


def test_whoever_reads_a_module_lets_others_wait() -> None:
    module, reached, inside = nn.Linear(1, 1), threading.Event(), threading.Event()

    def other() -> None:
        reached.set()
        with exclusively(module):
            inside.set()

    with ThreadPoolExecutor(1) as pool:
        with exclusively(module), exclusively(module):  # the same thread may twice
            later = pool.submit(other)
            assert reached.wait(PATIENCE)
            assert not inside.wait(0.3)
        later.result(PATIENCE)
    assert inside.is_set()


def test_evaluation_mode_lasts_though_another_thread_ends_its_own() -> None:
    """Without waiting, the first to leave would put the module into training under the second."""
    module, first_is_in, first_is_out = nn.Sequential(nn.Dropout()).train(), threading.Event(), threading.Event()

    def first() -> None:
        with evaluating(module):
            first_is_in.set()
            first_is_out.wait(0.3)  # long enough for the second to come in, where it may
        first_is_out.set()

    def second() -> bool:
        first_is_in.wait(PATIENCE)
        with evaluating(module):
            first_is_out.wait(PATIENCE)
            return module[0].training

    with ThreadPoolExecutor(2) as pool:
        pool.submit(first)
        assert pool.submit(second).result(PATIENCE) is False
    assert module[0].training


def test_the_same_call_gives_the_same_bits_and_other_chunks_or_threads_nearly_so() -> None:
    """What the predictor promises, and what it does not."""
    host, head = TinyHost.load(), ldznet.load_head("tiny")
    scene = ldznet.tinyworld.scene(22, "photo")

    def logits(chunk: int, threads: int) -> torch.Tensor:
        torch.set_num_threads(threads)
        predictor = ldznet.Predictor(host, head, chunk=chunk)
        predictor.set_image(scene.image)
        return predictor.predict(["a purple cat", "grass", "a car", "sky", "a red star"]).logits

    known = logits(8, 1)
    assert torch.equal(logits(8, 1), known)
    for chunk, threads in ((1, 1), (2, 1), (8, 2)):
        torch.testing.assert_close(logits(chunk, threads), known, atol=1e-4, rtol=0)
