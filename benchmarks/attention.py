"""The training-free head on the tiny world: ablations, presence, and itself beside trained heads. Mechanism only.

    python benchmarks/attention.py ablate --scenes 60 --test T3
    python benchmarks/attention.py presence --scenes 150
    python benchmarks/attention.py compare --scenes 150 --json attention.json

Constants are chosen and scores calibrated on photo scenes from 500,000 on; `compare`, and the figures of `presence`,
take scenes from 0 on. No training saw either. `presence` prints what `Presence` in ldznet/attention/config.py takes.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from helpers import CHOOSE, TEST, Figure, Row, alone, drawn, pixels_of, report

from ldznet import Predictor, load_head, masks
from ldznet.attention import CONFIGS, AttentionConfig, AttentionHead, Presence
from ldznet.attention.denoising import least_gain, text_errors, without_each_word
from ldznet.attention.finding import Found, found_in
from ldznet.attention.head import attend
from ldznet.attention.presence import MEASURES, agreement
from ldznet.attention.prompts import Prompt, prompts_of
from ldznet.attention.reading import Attention, probabilities
from ldznet.data.items import Item
from ldznet.evaluate.benchmark import (
    Outcome,
    Segment,
    figures,
    intervals,
    is_near_miss,
    nearest_colour,
    run,
    segment_with,
    whole_image,
)
from ldznet.evaluate.metrics import auroc
from ldznet.hosts.tiny import TinyHost
from ldznet.models.delta import ldm_name
from ldznet.schedule import seeded_noise
from ldznet.tinyworld import STUFF, world

TINY = dataclasses.replace(CONFIGS["tiny"], presence=Presence())  # its passes change no mask
OTHER_T = 300  # of the second pass that agreement is measured with
OWN = ("coarse", "fine", "weights", "timestep", "rescaling", "steps", "threshold")  # on the tiny world, for itself
SELVES = ("1/input.1", "1/output.0", "1/output.1", "1/output.2", "1/output")
EVERY = ("1/input", "2/input", "4/input", "8/middle", "4/output", "2/output", "1/output")
REFERENCE = "output.7"  # the same as GoCA's of SD 1.5: the second of three on the second finest level
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "as published for SD": {name: getattr(CONFIGS["sd1"], name) for name in OWN},
    "cross-attention at 4 alone": {"coarse": ("4/input", "4/output"), "weights": (1.0, 0.0)},
    "at 2 alone": {"coarse": ("2/input", "2/output"), "weights": (1.0, 0.0)},
    "at 1 alone": {"coarse": ("1/input", "1/output"), "weights": (1.0, 0.0)},
    "at 4 and 2": {"coarse": ("4/input", "4/output"), "fine": ("2/input", "2/output"), "weights": (0.7, 0.3)},
    "at 2 and 1": {"coarse": ("2/input", "2/output"), "fine": ("1/input", "1/output"), "weights": (0.7, 0.3)},
    "at 2 and 1, output alone": {"coarse": ("2/output",), "fine": ("1/output",), "weights": (0.7, 0.3)},
    "all blocks": {"coarse": EVERY},
    **{f"2 steps along {place}": {"steps": 2, "self_attention": (place,)} for place in SELVES},
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
    parser.add_argument("--test", choices=TESTS, default="T0", help="of ablate: photo scenes, or the other renderings")
    parser.add_argument("--only", default="", help="variants, or ways of compare, whose name contains this")
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    if given.scenes < 1:
        parser.error(f"expected at least one scene, got {given.scenes}")
    return given


TESTS = ("T0", "T3")
REFINED: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "guided filter": masks.guided_filter,
    "PAMR": masks.pamr,
}


def refined(segment: Segment, refine: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Segment:
    """The same with edges from the picture."""

    def refining(item: Item, phrases: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        soft, scores = segment(item, phrases)
        guide = torch.from_numpy(item.image).permute(2, 0, 1)[None].float() / 255
        return refine(torch.from_numpy(soft), guide.expand(len(soft), -1, -1, -1)).numpy(), scores

    return refining


def summary(outcome: Outcome) -> Row:
    """mIoU of things and of stuff at 0.5 and at the best threshold, AP of all; how many of both.

    Presence has a command of its own: here, what is there stands first in its prompt, and attention follows the place.
    """
    row: dict[str, Figure] = {}
    for kind, rows in {"things": outcome.things, "stuff": ~outcome.things}.items():
        found, spans = figures(outcome, rows), intervals(outcome, rows)
        row |= {
            f"{kind} 0.5": [found.miou_50, *spans["miou_50"]],
            f"{kind} best": [found.miou_best, *spans["miou_best"]],
        }
        row |= {f"n {kind}": found.phrases}
    every = outcome.things | True
    found, spans = figures(outcome, every), intervals(outcome, every)
    return {**row, "all 0.5": found.miou_50, "AP": [found.ap, *spans["ap"]], "images": found.images}


def ablate(host: TinyHost, count: int, test: str, only: str) -> Iterator[tuple[str, Row]]:
    """One thing changed at a time; all phrases of a picture in one pass, and once each in a pass of its own."""
    items = drawn(test, count, CHOOSE, one_each=True)
    plain = Predictor(host, AttentionHead(TINY))
    ways: dict[str, Callable[[], Segment]] = {
        name: lambda change=change: segment_with(Predictor(host, AttentionHead(dataclasses.replace(TINY, **change))))
        for name, change in VARIANTS.items()
    }
    ways |= {name: lambda refine=refine: refined(segment_with(plain), refine) for name, refine in REFINED.items()}
    for name, alike in (("probabilities", True), ("probabilities weighed by self-attention", False)):
        head = Weighed(TINY, alike)
        ways[f"all blocks, {name}"] = lambda head=head: segment_with(Predictor(host, head))
    ways["each phrase in a pass of its own"] = lambda: alone(plain)
    for name, way in ways.items():
        if only in name:
            yield name, summary(run(way(), items))


class Weighed(AttentionHead):
    """The maps of all blocks as probabilities, `alike`, or each weighed as GoCA's code does (arXiv 2603.06178,
    "dot-product similarity"): by the scalar product of its self-attention, brought to the grid of a reference block,
    with the affinity of that block's queries. The heads of a block count alike.
    """

    def __init__(self, config: AttentionConfig, alike: bool) -> None:
        super().__init__(config)
        self.alike = alike

    def fitted_to(self, host: Any) -> Weighed:
        return self

    def _by_passes(
        self, host: Any, latents: torch.Tensor, phrases: Sequence[str], timestep: int, seed: int
    ) -> tuple[list[Found], dict[str, torch.Tensor]]:
        steps, size = torch.full((len(latents),), timestep), (latents.shape[2], latents.shape[3])
        noisy = host.add_noise(latents, seeded_noise(tuple(latents.shape), seed), steps)
        reading = dataclasses.replace(TINY, coarse=EVERY, self_attention=EVERY, steps=1)
        found = []
        for prompt in prompts_of(phrases, TINY, host.tokenize):
            with queries_of(host, REFERENCE) as queries:
                attention = attend(host, noisy, steps, prompt, reading)
            links = attention.self_attention
            weights = {b: 1 / len(links) for b in links} if self.alike else by_affinity(links, queries[0])
            maps = sum(weights[block] * resized(attention.cross[block], size) for block in weights)
            found.append(found_in(Attention({"input.1": maps}, {}), prompt, ONE, host.specs, size))
        return found, {}


ONE = dataclasses.replace(TINY, coarse=("1/input.0",))


@contextlib.contextmanager
def queries_of(host: TinyHost, block: str) -> Iterator[list[torch.Tensor]]:
    """The queries b n c of a block's cross-attention, of each pass inside."""
    found: list[torch.Tensor] = []
    layer = host.unet.get_submodule(f"{ldm_name(block)}.transformer_blocks.0.attn2.to_q")
    handle = layer.register_forward_hook(lambda module, args, output: found.append(output.detach()))
    try:
        yield found
    finally:
        handle.remove()


def by_affinity(links: Mapping[str, torch.Tensor], queries: torch.Tensor) -> dict[str, torch.Tensor]:
    """By block, the share 0..1 of its weight, from self-attention 1 n n and a reference's queries 1 m c."""
    like = probabilities(queries, queries, heads=1)[0]
    side = math.isqrt(len(like))
    weights = {}
    for block, found in links.items():
        own = math.isqrt(found.shape[1])
        keys = resized(found.reshape(1, own * own, own, own), (side, side))  # to every key of the reference's grid
        rows = resized(keys.reshape(1, own, own, side * side).permute(0, 3, 1, 2), (side, side), "nearest")
        weights[block] = (rows.permute(0, 2, 3, 1).reshape(side * side, -1) * like).sum()
    total = sum(weights.values())
    return {block: weight / total for block, weight in weights.items()}


def resized(maps: torch.Tensor, size: tuple[int, int], how: str = "bilinear") -> torch.Tensor:
    return torch.nn.functional.interpolate(maps, size=size, mode=how)


class Asked(NamedTuple):
    """Phrases of many scenes, a row each: `measures` by name, whether it is there, its kind, and its scene."""

    measures: dict[str, np.ndarray]
    there: np.ndarray
    kinds: np.ndarray
    scenes: np.ndarray


def read_together(host: TinyHost, latents: torch.Tensor, phrases: Sequence[str]) -> dict[str, dict[str, float]]:
    """What attention says of each phrase, all asked in the same prompts; and their maps, under "map"."""
    found: dict[str, dict[str, Any]] = {}
    blank = torch.zeros_like(latents)

    def passed(clean: torch.Tensor, seed: int, timestep: int, prompt: Prompt) -> Found:
        steps = torch.tensor([timestep])
        noisy = host.add_noise(clean, seeded_noise(tuple(latents.shape), seed), steps)
        size = (clean.shape[2], clean.shape[3])
        return found_in(attend(host, noisy, steps, prompt, TINY), prompt, TINY, host.specs, size)

    for prompt in prompts_of(phrases, TINY, host.tokenize):
        first = passed(latents, 0, TINY.timestep, prompt)
        noise, later = passed(latents, 1, TINY.timestep, prompt), passed(latents, 0, OTHER_T, prompt)
        of_nothing = passed(blank, 0, OTHER_T, prompt)
        columns = {name: measure(first.evidence) for name, measure in MEASURES.items()}
        columns["agreement of noises"] = agreement([first.evidence.filled, noise.evidence.filled])
        columns["agreement of timesteps"] = agreement([first.evidence.filled, later.evidence.filled])
        columns["attention above that to pure noise"] = MEASURES["attention_mean"](later.evidence) - MEASURES[
            "attention_mean"
        ](of_nothing.evidence)
        for i, phrase in enumerate(prompt.phrases):
            found[phrase] = {name: float(column[0, i]) for name, column in columns.items()}
            found[phrase]["map"] = first.maps[:, i]
    return found


def measures(host: TinyHost, latents: torch.Tensor, phrases: Sequence[str]) -> list[dict[str, float]]:
    """Every measure of presence of some phrases of one picture."""
    read = read_together(host, latents, phrases)
    errors, rows = text_errors(host, latents, TINY.opening, phrases, Presence().timesteps, 0, all_rivals)
    for phrase, (own, (opening, *others)) in zip(phrases, rows, strict=True):
        for name, rivals in {"gain": [opening], "weakest": others}.items():
            read[phrase][name] = float(least_gain(errors, own, rivals))
            read[phrase][f"{name}, in its own map"] = float(least_gain(errors, own, rivals, read[phrase]["map"]))
    return [{name: value for name, value in read[phrase].items() if name != "map"} for phrase in phrases]


def all_rivals(opening: str, phrase: str) -> list[str]:
    """Those of both of the denoising measures, for the price of one."""
    return [opening, *without_each_word(opening, phrase)]


def tabulate(host: TinyHost, items: Sequence[Item]) -> Asked:
    """Present and absent phrases in the same prompts, shuffled: attention depends on a word's place in its prompt."""
    rows, there, kinds, scenes = [], [], [], []
    for number, item in enumerate(items):
        phrases = [str(p) for p in np.random.default_rng(number).permutation([*item.phrases, *item.absent])]
        rows += measures(host, host.encode_image(pixels_of(item.image)), phrases)
        there += [phrase in item.phrases for phrase in phrases]
        kinds += ["coloured" if is_near_miss(p) else "stuff" if p in STUFF else "noun" for p in phrases]
        scenes += [number] * len(phrases)
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return Asked(columns, np.array(there), np.array(kinds), np.array(scenes))


def by_kind(values: np.ndarray, asked: Asked) -> dict[str, Figure]:
    """AUROC over all phrases with its 95 % interval over scenes, and among those of one kind: the absent coloured
    phrases are near misses, a present category in an absent colour or the reverse."""
    low, high = spread(values, asked)
    found: dict[str, Figure] = {"AUROC": [auroc(values[asked.there], values[~asked.there]), low, high]}
    found |= {"n there": int(asked.there.sum()), "n absent": int((~asked.there).sum())}
    for kind in ("noun", "stuff", "coloured"):
        of_kind = asked.kinds == kind
        found[kind] = auroc(values[asked.there & of_kind], values[~asked.there & of_kind])
    return found


def spread(values: np.ndarray, asked: Asked, draws: int = 500) -> tuple[float, float]:
    """The 95 % interval of an AUROC, whole scenes drawn anew."""
    rows = [np.flatnonzero(asked.scenes == scene) for scene in np.unique(asked.scenes)]
    rng, found = np.random.default_rng(0), []
    for _ in range(draws):
        drawn = np.concatenate([rows[i] for i in rng.integers(len(rows), size=len(rows))])
        there, some = asked.there[drawn], values[drawn]
        found.append(auroc(some[there], some[~there]))
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)


def logistic(values: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Weights of a logistic regression of n k measures, the last of a constant, both kinds weighing the same (Newton's
    method, a little ridge)."""
    x = np.concatenate([values, np.ones((len(values), 1))], axis=1)
    weight = np.where(there, 0.5 / there.mean(), 0.5 / (1 - there.mean()))
    beta = np.zeros(x.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ beta))
        hessian = (x * (weight * p * (1 - p))[:, None]).T @ x + np.eye(len(beta))
        beta = beta + np.linalg.solve(hessian, x.T @ (weight * (there - p)) - beta)
    return beta


def combined(chosen: Asked, tested: Asked) -> np.ndarray:
    """All measures in one logistic regression, fitted on `chosen`: its values on `tested`."""
    both = [np.stack(list(asked.measures.values()), axis=1) for asked in (chosen, tested)]
    centre, scale = both[0].mean(axis=0), both[0].std(axis=0) + 1e-12
    fitted = logistic((both[0] - centre) / scale, chosen.there)
    return (both[1] - centre) / scale @ fitted[:-1]


def fit(values: np.ndarray, there: np.ndarray, kept: float = 0.95) -> dict[str, float]:
    """`Presence` of one measure: middle, slope, and the score that `kept` of the present phrases reach."""
    scale = values.std() + 1e-12
    slope, constant = logistic(values[:, None] / scale, there)
    middle, slope = -constant / slope * scale, slope / scale
    scores = 1 / (1 + np.exp(-slope * (values - middle)))
    return {"middle": middle, "slope": slope, "found_from": float(np.quantile(scores[there], 1 - kept))}


def measure_presence(host: TinyHost, count: int) -> Iterator[tuple[str, Row]]:
    """AUROC of every measure on the test's scenes, and its fit on those that constants are chosen on: how much of what
    is absent goes at the threshold that keeps 95 % of what is there."""
    chosen, tested = (tabulate(host, drawn("T0", count, start)) for start in (CHOOSE, TEST))
    for name, values in chosen.measures.items():
        fitted, test = fit(values, chosen.there), tested.measures[name]
        scores = 1 / (1 + np.exp(-fitted["slope"] * (test - fitted["middle"])))
        found = scores >= fitted["found_from"]
        rates = {"kept": found[tested.there].mean(), "absent gone": 1 - found[~tested.there].mean()}
        yield name, {**by_kind(test, tested), **fitted, **rates}
    yield "all in one logistic regression", by_kind(combined(chosen, tested), tested)


def compare(host: TinyHost, count: int, only: str) -> Iterator[tuple[str, Row]]:
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
    together = segment_with(head)
    ways |= {f"attention, {name}": lambda refine=refine: refined(together, refine) for name, refine in REFINED.items()}
    for test in TESTS:
        items = drawn(test, count, TEST)
        for name, way in ways.items():
            if only in name:
                yield f"{test}: {name}", summary(run(way(), items))


def main() -> None:
    given = arguments()
    host = TinyHost.load(weights=given.weights)
    rows = {
        "ablate": lambda: ablate(host, given.scenes, given.test, given.only),
        "presence": lambda: measure_presence(host, given.scenes),
        "compare": lambda: compare(host, given.scenes, given.only),
    }[given.what]()
    report(rows, given.json)


if __name__ == "__main__":
    main()
