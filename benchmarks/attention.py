"""The training-free head on the tiny world: ablations, presence, and itself beside trained heads. Mechanism only.

    python benchmarks/attention.py ablate --scenes 60
    python benchmarks/attention.py presence --scenes 150
    python benchmarks/attention.py compare --scenes 150 --json attention.json

Constants are chosen and scores calibrated on photo scenes from 500,000 on; `compare`, and the last line of `presence`,
take scenes from 0 on. No training saw either.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldznet import Predictor, load_head
from ldznet.attention import CONFIGS, AttentionConfig, AttentionHead, Presence
from ldznet.attention.denoising import gains
from ldznet.attention.head import Found, read_prompt
from ldznet.attention.presence import GAIN, MEASURES, agreement
from ldznet.attention.prompts import prompts_of
from ldznet.data import TinyWorldDataset
from ldznet.data.items import Item
from ldznet.evaluate.benchmark import (
    Outcome,
    Segment,
    arrays,
    figures,
    is_near_miss,
    nearest_colour,
    presence,
    run,
    segment_with,
    whole_image,
)
from ldznet.evaluate.metrics import auroc
from ldznet.hosts.tiny import TinyHost
from ldznet.schedule import seeded_noise
from ldznet.tinyworld import STUFF, world

CHOOSE, TEST = 500_000, 0
TINY = CONFIGS["tiny"]
OTHER_T = 300  # of the second pass that agreement is measured with
OWN = ("coarse", "fine", "weights", "timestep", "rescaling", "steps", "threshold")  # on the tiny world, for itself
SELVES = ("1/input.1", "1/output.0", "1/output.1", "1/output.2", "1/output")
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "as published for SD": {name: getattr(CONFIGS["sd1"], name) for name in OWN},
    "cross-attention at 4 alone": {"coarse": ("4/input", "4/output"), "weights": (1.0, 0.0)},
    "at 2 alone": {"coarse": ("2/input", "2/output"), "weights": (1.0, 0.0)},
    "at 1 alone": {"coarse": ("1/input", "1/output"), "weights": (1.0, 0.0)},
    "at 4 and 2": {"coarse": ("4/input", "4/output"), "fine": ("2/input", "2/output"), "weights": (0.7, 0.3)},
    "at 2 and 1": {"coarse": ("2/input", "2/output"), "fine": ("1/input", "1/output"), "weights": (0.7, 0.3)},
    "at 2 and 1, output alone": {"coarse": ("2/output",), "fine": ("1/output",), "weights": (0.7, 0.3)},
    **{f"2 steps along {place}": {"steps": 2, "selves": (place,)} for place in SELVES},
    **{f"t {t}": {"timestep": t} for t in (10, 50, 100, 200, 300, 500, 700)},
    **{f"{n} steps": {"steps": n} for n in (0, 1, 2, 4, 8, 16)},
    **{f"2 steps, sharpening {x}": {"steps": 2, "sharpening": x} for x in (0.0, 0.015, 0.05, 0.15)},
    **{f"rescaling {x}": {"rescaling": x} for x in (1.0, 1.3, 1.6, 2.0)},
    "no division at each pixel": {"per_pixel": False},
    "no background words": {"background": ()},
    "one common scale": {"scale": "common"},
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The training-free head on the tiny world.")
    parser.add_argument("what", choices=("ablate", "presence", "compare"))
    parser.add_argument("--scenes", type=int, default=100, help="of each kind (default: 100)")
    parser.add_argument("--weights", type=Path, default=world.WEIGHTS, help="folder of the tiny world's models")
    parser.add_argument("--only", default="", help="variants whose name contains this")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    if given.scenes < 1:
        parser.error(f"expected at least one scene, got {given.scenes}")
    return given


class Kept:
    """Items drawn once; `one_each` keeps one phrase a thing (its colour and noun), stuff, and nothing absent."""

    def __init__(self, dataset: TinyWorldDataset, one_each: bool = False) -> None:
        items = [dataset[i] for i in range(len(dataset))]
        self.items = [_one_each(item) for item in items] if one_each else items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Item:
        return self.items[index]


def _one_each(item: Item) -> Item:
    rows = [i for i, kind in enumerate(item.kinds) if kind == "stuff" or len(item.phrases[i].split()) == 3]
    return dataclasses.replace(
        item,
        phrases=tuple(item.phrases[i] for i in rows),
        masks=item.masks[rows],
        kinds=tuple(item.kinds[i] for i in rows),
        absent=(),
        distracted=tuple(item.distracted[i] for i in rows),
    )


def alone(predictor: Predictor) -> Segment:
    """Each phrase in a pass of its own."""

    def segment(item: Item, phrases: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        predictor.set_image(item.image)
        parts = [arrays(predictor.predict([phrase])) for phrase in phrases]
        return np.concatenate([soft for soft, _ in parts]), np.concatenate([scores for _, scores in parts])

    return segment


def summary(outcome: Outcome) -> dict[str, float]:
    """mIoU of things at 0.5 and at the best threshold, that of stuff, AP of all, and presence where it was asked."""
    things, stuff, every = (figures(outcome, rows) for rows in (outcome.things, ~outcome.things, outcome.things | True))
    found = {
        "things 0.5": things.miou_50,
        "things best": things.miou_best,
        "at": things.best,
        "stuff 0.5": stuff.miou_50,
        "stuff best": stuff.miou_best,
        "all 0.5": every.miou_50,
        "AP": every.ap,
    }
    if len(outcome.absent_scores):
        found["AUROC"], found["near misses"] = presence(outcome)
    return found


def ablate(host: TinyHost, count: int, only: str) -> Iterator[tuple[str, dict[str, float]]]:
    """One constant changed at a time; all phrases of a picture in one pass, and once each in a pass of its own."""
    items = Kept(TinyWorldDataset(count, start=CHOOSE, domain="photo"), one_each=True)
    for name, change in VARIANTS.items():
        if only in name:
            predictor = Predictor(host, AttentionHead(dataclasses.replace(TINY, **change)))
            together = summary(run(segment_with(predictor), items))
            by_one = {} if name != "as it is" else summary(run(alone(predictor), items))
            yield name, {**together, **({"alone, all 0.5": by_one["all 0.5"]} if by_one else {})}


def measures(host: TinyHost, latents: torch.Tensor, config: AttentionConfig, phrase: str) -> dict[str, float]:
    """Every measure of presence that attention alone gives, of one phrase in a pass of its own."""
    (prompt,) = prompts_of([phrase], config, host.tokenize)

    def found(seed: int, timestep: int) -> Found:
        steps = torch.tensor([timestep])
        noisy = host.add_noise(latents, seeded_noise(tuple(latents.shape), seed), steps)
        return read_prompt(host, noisy, steps, prompt, config)

    first = found(0, config.timestep)
    values = {name: float(measure(first.evidence)) for name, measure in MEASURES.items()}
    shares = first.evidence.filled
    values["agreement of noises"] = float(agreement([shares, found(1, config.timestep).evidence.filled]))
    values["agreement of timesteps"] = float(agreement([shares, found(0, OTHER_T).evidence.filled]))
    return values


def tabulate(host: TinyHost, items: Kept) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Measures by name, whether each phrase is there, and its kind: "noun", "stuff", or "coloured"."""
    rows, there, kinds = [], [], []
    for item in items.items:
        pixels = torch.from_numpy(item.image).permute(2, 0, 1)[None].float() / 127.5 - 1
        latents, phrases = host.encode_image(pixels), (*item.phrases, *item.absent)
        gained = gains(host, latents, TINY.opening, phrases, Presence().timesteps, 0)[0].tolist()
        for phrase, gain in zip(phrases, gained, strict=True):
            rows.append({GAIN: gain, **measures(host, latents, TINY, phrase)})
            there.append(phrase in item.phrases)
            kinds.append("coloured" if is_near_miss(phrase) else "stuff" if phrase in STUFF else "noun")
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}, np.array(there), np.array(kinds)


def by_kind(values: np.ndarray, there: np.ndarray, kinds: np.ndarray) -> dict[str, float]:
    """AUROC over all phrases, and among those of one kind (the absent coloured ones are near misses)."""
    found = {"all": auroc(values[there], values[~there])}
    for kind in ("noun", "stuff", "coloured"):
        of_kind = kinds == kind
        found[kind] = auroc(values[there & of_kind], values[~there & of_kind])
    return found


def logistic(values: np.ndarray, there: np.ndarray) -> tuple[float, float]:
    """Middle and slope of sigmoid(slope * (x - middle)), both kinds weighing the same (Newton's method)."""
    centre, spread = values.mean(), values.std() + 1e-12
    x = np.stack([(values - centre) / spread, np.ones_like(values)], axis=1)
    weight = np.where(there, 0.5 / there.mean(), 0.5 / (1 - there.mean()))
    beta = np.zeros(2)
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ beta))
        hessian = (x * (weight * p * (1 - p))[:, None]).T @ x + 1e-6 * np.eye(2)
        beta = beta + np.linalg.solve(hessian, x.T @ (weight * (there - p)))
    return float(centre - beta[1] / beta[0] * spread), float(beta[0] / spread)


def measure_presence(host: TinyHost, count: int) -> Iterator[tuple[str, dict[str, float]]]:
    """AUROC of every measure on the scenes that constants are chosen on and on the test's; the first's logistic fit."""
    sets = [Kept(TinyWorldDataset(count, start=start, domain="photo")) for start in (CHOOSE, TEST)]
    (chosen, there, kinds), (tested, test_there, test_kinds) = (tabulate(host, items) for items in sets)
    for name, values in chosen.items():
        middle, slope = logistic(values, there)
        right = (slope * (tested[name] - middle) > 0) == test_there
        accuracy = float((right[test_there].mean() + right[~test_there].mean()) / 2)
        test = {f"test {kind}": value for kind, value in by_kind(tested[name], test_there, test_kinds).items()}
        fit = {"middle": middle, "slope": slope, "test balanced accuracy": accuracy}
        yield name, {**by_kind(values, there, kinds), **test, **fit}


def compare(host: TinyHost, count: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Photo scenes (T0) and the other domains (T3): the head, the trained heads, and what never looks."""
    head = Predictor(host, load_head("attention"))
    ways: dict[str, Callable[[], Segment]] = {
        "attention, a phrase a pass": lambda: alone(head),
        "attention, together": lambda: segment_with(head),
        "ZNet": lambda: segment_with(Predictor(host, load_head("tiny-znet"))),
        "LD-ZNet": lambda: segment_with(Predictor(host, load_head("tiny"))),
        "the nearest colour": lambda: nearest_colour,
        "the whole image": lambda: whole_image,
    }
    for test, domains in {"T0": ("photo",), "T3": ("cartoon", "lines", "painting", "mosaic")}.items():
        each = max(1, count // len(domains))
        parts = [Kept(TinyWorldDataset(each, start=TEST, domain=domain)) for domain in domains]
        items = parts[0]
        items.items = [item for part in parts for item in part.items]
        for name, way in ways.items():
            yield f"{test}: {name}", summary(run(way(), items))


def main() -> None:
    given = arguments()
    host = TinyHost.load(weights=given.weights)
    rows = {
        "ablate": lambda: ablate(host, given.scenes, given.only),
        "presence": lambda: measure_presence(host, given.scenes),
        "compare": lambda: compare(host, given.scenes),
    }[given.what]()
    found = {}
    for name, row in rows:
        found[name] = row
        print(f"{name:32}", "  ".join(f"{key} {value:.3f}" for key, value in row.items()), flush=True)
    if given.json:
        given.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
