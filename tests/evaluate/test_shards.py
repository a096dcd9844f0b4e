"""Several processes find what one finds, to the bit, however many they are."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ldznet.data.items import Item
from ldznet.errors import InputError
from ldznet.evaluate import benchmark, shards
from ldznet.evaluate.benchmark import Outcome

SIDE = 16


def items(count: int) -> list[Item]:
    """Of none to three phrases that are there, and as many that are not."""
    rng, made = np.random.default_rng(0), []
    for number in range(count):
        words = tuple(f"{number} {i}" for i in range(number % 4))
        masks = rng.random((len(words), SIDE, SIDE)) > 0.5
        image = rng.integers(256, size=(SIDE, SIDE, 3), dtype=np.uint8)
        made.append(Item(image, ("",), words, masks, ("thing", "stuff", "thing")[: len(words)], words[::-1]))
    return made


def guess(item: Item, phrases: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The picture's brightness, one row after the other."""
    soft = np.stack([np.roll(item.image.mean(axis=2), i, 0) for i in range(len(phrases))]) / 255
    return soft, soft.mean(axis=(1, 2))


def columns(outcome: Outcome) -> dict[str, list]:
    rows = dataclasses.asdict(outcome)
    return {**{k: v.tolist() for k, v in rows.pop("counts").items()}, **{k: v.tolist() for k, v in rows.items()}}


@pytest.mark.parametrize("count", [1, 2, 3, 12])
def test_any_number_of_shards_gives_one_outcome(count: int) -> None:
    made = items(11)
    whole = benchmark.run(guess, made)
    parts = [benchmark.run(guess, made, shard=(k, count)) for k in reversed(range(count))]
    assert columns(benchmark.merged(parts)) == columns(whole)
    assert len(whole.images) == sum(number % 4 for number in range(11))
    assert whole.images.tolist() == sorted(whole.images)


def test_no_phrase_anywhere_is_an_error() -> None:
    with pytest.raises(InputError, match="at least one phrase that is there"):
        benchmark.figures(benchmark.run(guess, items(1)), np.zeros(0, bool))


def test_alone_nothing_is_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    part = benchmark.run(guess, items(3))
    assert shards.shard() == (0, 1)
    assert shards.gathered(part) is part
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r'pip install "ldznet\[train\]"'):
        shards.shard()


TWO = """
import json, os, sys
sys.path[:0] = [{tests!r}, {root!r}]
from evaluate.test_shards import columns, guess, items
from ldznet.evaluate import benchmark, shards
rank = 1 if os.fork() == 0 else 0
os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="{port}",
                   ACCELERATE_USE_CPU="true")
found = columns(shards.gathered(benchmark.run(guess, items(11), shard=shards.shard())))
print(json.dumps([rank, found]) + "\\n", end="", flush=True)
if rank == 0:
    os.wait()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="two processes are made by fork")
def test_two_processes_under_accelerate() -> None:
    pytest.importorskip("accelerate")
    tests = Path(__file__).parents[1]
    script = TWO.format(tests=str(tests), root=str(tests.parent), port=20_000 + os.getpid() % 20_000)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert sorted(rank for rank, _ in found) == [0, 1], done.stderr[-3000:]
    whole = columns(benchmark.run(guess, items(11)))
    assert [outcome for _, outcome in found] == [whole, whole]
