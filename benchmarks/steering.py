"""Do masks steer the run that they come from? Region Prompts While Sampling over seeds, in a real ComfyUI.

    python benchmarks/steering.py --seeds 50

Every seed draws a scene of one thing ("a photo of a red star on grass") and another thing for its place. The same run
is made without and with the line "a red star => a photo of a blue fish on grass". A classifier, the gates' judge, names
what is in the region alone: the rest is painted over in its mean colour. Beside it stands what it says of the same
region without steering, and of pictures that were made with the second prompt from the first step on, seen through the
masks of their own thing: what could be seen at best. Outside of the region the mean difference of the two pictures is
given, in [0, 1]; times are those of the whole prompt, in ComfyUI's own clock.
"""

from __future__ import annotations

import contextlib
import copy
import random
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from helpers import Row, judge, mean, parser, ranged, real_comfyui, report
from inpaint import inside, named
from torch import Tensor

from ldznet import masks
from ldznet.tinyworld.namer import Namer
from ldznet.tinyworld.shapes import CATEGORIES
from ldznet.tinyworld.surfaces import COLOURS, STUFF

SAMPLER = {"cfg": 5.0, "sampler_name": "ddim", "scheduler": "ddim_uniform"}
WAYS = ("cross-attention", "masked conditionings")
HEADS = {"tiny": "tiny (embedded)", "attention": "attention (no download)"}


class Asked(NamedTuple):
    """One seed's wish."""

    seed: int
    phrase: str
    prompt: str
    category: str
    other: str  # the region's prompt

    @classmethod
    def of(cls, seed: int) -> Asked:
        """Two things of different kinds and colours, in front of the same stuff."""
        drawn = random.Random(seed)
        first, second = drawn.sample(list(CATEGORIES), 2)
        colours, stuff = drawn.sample(list(COLOURS), 2), drawn.choice(list(STUFF))
        scenes = [f"a photo of a {c} {k} on {stuff}" for c, k in zip(colours, (first, second), strict=True)]
        return cls(seed, f"a {colours[0]} {first}", scenes[0], second, scenes[1])


class Result(NamedTuple):
    """Pictures h w 3 in [0, 1] without and with steering, and of the other prompt alone; the region h w; the mask of
    the other's thing; seconds without and with steering."""

    before: Tensor
    after: Tensor
    other: Tensor
    region: Tensor
    thing: Tensor
    seconds: tuple[float, float]


def prompts_of(asked: Asked, given: Any, ways: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The prompts without steering, with the other prompt alone, and by each way."""
    from comfyui import graphs

    plain = {**graphs.sampled(seed=asked.seed, steps=given.steps, **SAMPLER)}
    plain["positive"]["inputs"]["text"] = asked.prompt
    plain["head"]["inputs"]["head"] = HEADS[given.head]
    plain["picture"] = graphs.node("VAEDecode", samples=["latent", 0], vae=["world", 2])
    plain["save picture"] = graphs.save(["picture", 0], "picture")
    links = {"model": ["world", 0], "clip": ["world", 1], "head": ["head", 0]}
    settings = {"after": given.after, "refresh": 0, "threshold": 0.5, "grow": given.grow}
    found = {"before": plain, "other": copy.deepcopy(plain)}
    found["other"]["positive"]["inputs"]["text"] = asked.other
    found["other"]["head"]["inputs"]["head"] = HEADS["tiny"]
    found["other"]["segment"] = graphs.segment(asked.other.removeprefix("a photo of ").partition(" on ")[0])
    found["other"]["save mask"] = graphs.save(["segment", 0], "mask")
    for way in ways:
        found[way] = steered = copy.deepcopy(plain)
        lines = f"{asked.phrase} => {asked.other}"
        steered["steer"] = graphs.node("LDZNetSteer", **links, regions=lines, **settings, way=way)
        steered["latent"]["inputs"]["model"] = ["steer", 0]
        steered["found"] = graphs.node("LDZNetSteered", latent=["latent", 0], steering=["steer", 1])
        steered["save mask"] = graphs.save(["found", 0], "mask")
    return found


def ran(server: Any, prompt: dict[str, Any]) -> float:
    """Runs a prompt that must work; the seconds that ComfyUI took."""
    from comfyui import host

    entry = server.run(prompt)
    failed = host.error_of(entry)
    assert failed is None, failed
    times = {kind: data["timestamp"] for kind, data in entry["status"]["messages"]}
    return (times["execution_success"] - times["execution_start"]) / 1000


def results(server: Any, given: Any, ways: Sequence[str]) -> dict[str, list[tuple[Asked, Result]]]:
    """Each seed, by each way; of those so far where the user has had enough (Ctrl-C)."""
    found: dict[str, list[tuple[Asked, Result]]] = {way: [] for way in ways}
    with contextlib.suppress(KeyboardInterrupt):
        fill(found, server, given, ways)
    return found


def fill(found: dict[str, list[tuple[Asked, Result]]], server: Any, given: Any, ways: Sequence[str]) -> None:
    """Appends to `found` what each seed gives."""
    for seed in range(given.first, given.first + given.seeds):
        asked, pictures, regions, seconds = Asked.of(seed), {}, {}, {}
        for name, prompt in prompts_of(asked, given, ways).items():
            seconds[name] = ran(server, prompt)
            pictures[name] = server.saved("picture")[0][0]
            if "save mask" in prompt:
                regions[name] = masks.grow(server.saved("mask")[0], given.grow)[0]
        for way in ways:
            parts = pictures["before"], pictures[way], pictures["other"], regions[way], regions["other"]
            found[way].append((asked, Result(*parts, (seconds["before"], seconds[way]))))


def row(classifier: Namer, found: list[tuple[Asked, Result]]) -> Row:
    """The figures of one way."""
    steered = [(asked, result) for asked, result in found if result.region.any()]
    whole = [(asked, result) for asked, result in found if result.thing.any()]

    def seen(pairs: list[tuple[Asked, Result]], picture: str, mask: str) -> list[float]:
        pictures = [inside(getattr(result, picture), getattr(result, mask)) for _, result in pairs]
        names = named(classifier, pictures) if pictures else []
        return mean([a.category == name for (a, _), name in zip(pairs, names, strict=True)], list(range(len(pairs))))

    outside = [
        float((r.after - r.before).abs().mean(dim=-1)[r.region == 0].mean())
        for _, r in steered
        if (r.region == 0).any()
    ]
    return {
        "seeds": len(found),
        "found": len(steered),
        "asked thing in the region": seen(steered, "after", "region"),
        "without steering": seen(steered, "before", "region"),
        "at best": seen(whole, "other", "thing"),
        "outside": mean(outside, list(range(len(outside)))),
        "region": statistics.mean(float(r.region.mean()) for _, r in steered) if steered else 0.0,
        "times": ranged([r.seconds[1] / r.seconds[0] for _, r in steered]),
    }


def main() -> None:
    """Prints a row for each way."""
    made = parser(__doc__)
    made.add_argument("--seeds", type=int, default=50)
    made.add_argument("--first", type=int, default=0, help="seed (default: 0)")
    made.add_argument("--steps", type=int, default=20)
    made.add_argument("--after", type=float, default=25.0, help="%% of the steps (default: 25)")
    made.add_argument("--grow", type=int, default=16, help="pixels (default: 16)")
    made.add_argument("--head", choices=list(HEADS), default="attention")
    made.add_argument("--way", choices=WAYS, help="this one alone")
    given = made.parse_args()
    with real_comfyui() as server:
        found = results(server, given, [given.way] if given.way else WAYS)
    classifier = judge()
    report(((way, row(classifier, pairs)) for way, pairs in found.items()), given.json)


if __name__ == "__main__":
    main()
