"""Does text-driven inpainting inpaint? Workflow 2 over seeds, in a real ComfyUI, judged by the gate's classifier.

    python benchmarks/inpaint.py --pictures 20

ComfyUI is found as the tests find it. Seeds count up until the named thing was found in that many pictures. Each is
judged inside of the grown mask alone: the rest is painted over in its own mean colour. Beside the figure stand the same
judge's word on the pictures before, on the whole pictures after, and on rendered scenes that were painted over in the
same way: what it could see at best.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from helpers import ROOT, Row, judge, parser, real_comfyui, report
from torch import Tensor

import ldznet
from ldznet import masks
from ldznet.tinyworld.namer import Namer
from ldznet.tinyworld.shapes import CATEGORIES

WORKFLOW = ROOT / "workflows" / "2_inpaint_by_text.json"
SECOND = 1000  # between the seeds of the two samplers
MOST_TRIED = 5  # times as many seeds as pictures
FIRST_SCENE = 600_000  # the gates' scenes


class Result(NamedTuple):
    """One run: pictures h w 3 in [0, 1], and the grown mask h w."""

    before: Tensor
    after: Tensor
    mask: Tensor


def category_in(text: str) -> str:
    """The category that a prompt or a phrase names."""
    return next(word for word in text.split() if word in CATEGORIES)


def of_type(prompt: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """The nodes of a type, in the workflow's order."""
    return [node for _, node in sorted(prompt.items(), key=lambda part: int(part[0])) if node["class_type"] == kind]


def texts_of(prompt: dict[str, Any]) -> tuple[str, str]:
    """The phrase that is masked, and the prompt that is painted there."""
    segment, repaint = of_type(prompt, "LDZNetSegment")[0], of_type(prompt, "KSampler")[1]
    return segment["inputs"]["text"], prompt[repaint["inputs"]["positive"][0]]["inputs"]["text"]


def painted(server: Any, prompt: dict[str, Any], count: int) -> Iterator[Result]:
    """The first `count` runs in which the thing was found."""
    from comfyui import graphs, host

    composite, grown = of_type(prompt, "ImageCompositeMasked")[0], of_type(prompt, "LDZNetMask")[0]
    after = next(key for key, node in prompt.items() if node is composite)
    links = {"before": composite["inputs"]["destination"], "after": [after, 0], "mask": composite["inputs"]["mask"]}
    links["found"] = [next(key for key, node in prompt.items() if node is grown), 1]
    prompt = {**prompt, **{f"save {name}": graphs.save(link, name) for name, link in links.items()}}
    found = 0
    for seed in range(MOST_TRIED * count):
        for i, sampler in enumerate(of_type({k: n for k, n in prompt.items() if k.isdecimal()}, "KSampler")):
            sampler["inputs"]["seed"] = seed + i * SECOND
        failed = host.error_of(server.run(prompt))
        assert failed is None, failed
        if server.saved("found")[0]:
            found += 1
            yield Result(*(server.saved(name)[0][0] for name in Result._fields))
        if found == count:
            return


def inside(picture: Tensor, mask: Tensor) -> Tensor:
    """`picture` h w 3 where `mask` h w is, its own mean colour elsewhere."""
    if mask.all():
        return picture
    return torch.where(mask[..., None] > 0, picture, picture[mask == 0].mean(dim=0))


@torch.no_grad()
def named(classifier: Namer, pictures: list[Tensor]) -> list[str]:
    """The category that the classifier sees in each."""
    pixels = torch.stack(pictures).movedim(-1, 1).float() * 2 - 1
    return [list(CATEGORIES)[i] for i in classifier(pixels)[0].argmax(dim=1).tolist()]


def at_best(classifier: Namer, count: int, grow: int) -> float:
    """Share of rendered scenes of one thing, painted over outside of its mask grown by `grow` pixels, that are named
    rightly."""
    pictures, truth = [], []
    for seed in range(FIRST_SCENE, FIRST_SCENE + count):
        scene = ldznet.tinyworld.scene(seed, things=1)
        mask = masks.grow(torch.from_numpy(scene.things[0].mask)[None].float(), grow)[0]
        pictures.append(inside(torch.from_numpy(scene.image) / 255, mask))
        truth.append(scene.things[0].category)
    return sum(a == b for a, b in zip(named(classifier, pictures), truth, strict=True)) / count


def main() -> None:
    """Prints the shares."""
    made = parser(__doc__)
    made.add_argument("--pictures", type=int, default=20)
    made.add_argument("--renders", type=int, default=500, help="that the judge is judged by (default: 500)")
    given = made.parse_args()
    count, renders = given.pictures, given.renders
    with real_comfyui() as server:
        from comfyui import page

        prompt = page.to_prompt(WORKFLOW, server.get("/object_info"))
        results = list(painted(server, prompt, count))
    classifier = judge()
    phrase, wanted = texts_of(prompt)
    new, old = category_in(wanted), category_in(phrase)
    seen = {
        "after, inside of the mask": named(classifier, [inside(r.after, r.mask) for r in results]),
        "before, inside of the mask": named(classifier, [inside(r.before, r.mask) for r in results]),
        "after, the whole picture": named(classifier, [r.after for r in results]),
    }
    unchanged = all(torch.equal(r.before[r.mask == 0], r.after[r.mask == 0]) for r in results)
    print(f'"{phrase}", then "{wanted}": {len(results)} pictures in which it was found; outside of the mask', end=" ")
    print(f"bit-equal: {unchanged}")
    rows: dict[str, Row] = {
        name: {f"a {new}": categories.count(new), f"a {old}": categories.count(old), "of": len(results)}
        for name, categories in seen.items()
    }
    grow = of_type(prompt, "LDZNetMask")[0]["inputs"]["grow"]
    best = round(at_best(classifier, renders, grow) * renders)
    rows["renders, painted over alike"] = {"named rightly": best, "of": renders}
    report(rows.items(), given.json)


if __name__ == "__main__":
    main()
