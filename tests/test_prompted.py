"""The phrases of a prompt: what is one, what is left away, and how near a person's reading of them it is."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from ldznet.phrases import Phrase
from ldznet.prompted import phrases_of

BENCHMARK = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "prompt_phrases.py"))


@pytest.mark.parametrize(
    ("prompt", "phrases"),
    [
        ("a photo of a red star on grass", ["red star", "grass"]),
        ("a (red star:1.3), ((grass)), [[night sky]]", ["red star", "grass", "night sky"]),
        ("<lora:x:0.8> a cat, embedding:bad-hands-5", ["cat"]),
        (r"a cat \(toy\) in a box", ["cat toy", "box"]),
        ("a cat wearing a hat", ["cat", "hat"]),
        (
            "a burning house, two running horses, a big glowing orb",
            ["burning house", "two running horses", "big glowing orb"],
        ),
        ("children building a castle, a brick building", ["children", "castle", "brick building"]),
        ("a vase of roses next to a window", ["vase of roses", "window"]),
        ("trees without leaves, a street with no cars", ["trees", "street"]),
        ("a dog, the dog, A Dog", ["dog"]),
        ("a man sleeping by the fire, by Greg Rutkowski", ["man", "fire"]),
        ("a beach at night, night", ["beach", "night"]),
        ("masterpiece, best quality, 8k, oil painting, soft light, background", []),
        ("a cat - a dog BREAK a bird", ["cat", "dog", "bird"]),
        ("", []),
    ],
)
def test_what_is_to_be_seen(prompt: str, phrases: list[str]) -> None:
    assert phrases_of(prompt) == phrases


def test_precision_and_recall() -> None:
    """Of the prompts that the rules were not made on, and of all; every phrase is one that can be asked for."""
    pairs = BENCHMARK["read"]()
    assert len(pairs) == 100
    for part in (pairs[1::2], pairs):
        right, found, written = BENCHMARK["counted"](part).sum(0)
        assert right / found > 0.95
        assert right / written > 0.95
    for prompt, _ in pairs:
        for phrase in phrases_of(prompt):
            Phrase.parse(phrase)
