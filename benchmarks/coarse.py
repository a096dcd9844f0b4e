"""Coarse masks without labels on the tiny world: what the LDM shows by itself. Mechanism only.

    python benchmarks/coarse.py regions --scenes 100     a picture in as many pieces as it has things and stuff
    python benchmarks/coarse.py phrases --scenes 100     where a phrase changes noise, taps or attention
    python benchmarks/coarse.py noises --scenes 100      the same over 1, 2, 4 and 8 noises
    python benchmarks/coarse.py labels --scenes 100      phrases that compete for pixels; --picture FILE shows three
    python benchmarks/coarse.py captured --scenes 100    attention of the caption's own pass

Photo scenes from 0 on, which no training saw; the timestep of `phrases` was chosen on scenes from 500,000 on
(`--choose`). IoU is at 128 x 128 pixels; intervals are over images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from helpers import CHOOSE, TEST, Figure, Row, drawn, iou, mean, parser, pixels_of, report, untrained
from PIL import Image, ImageDraw
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ldznet import Predictor, drawing, load_head
from ldznet.attention import CONFIGS, Presence
from ldznet.attention.finding import found_in
from ldznet.attention.head import attend
from ldznet.attention.prompts import Prompt, prompts_of, spoken
from ldznet.attention.reading import reading_attention
from ldznet.clustering import settled
from ldznet.config import PUBLISHED_BLOCKS
from ldznet.data.items import Item
from ldznet.data.tinyworld import with_phrases
from ldznet.evaluate.benchmark import Segment, arrays, figures, intervals, run, whole_image
from ldznet.hosts.tiny import TinyHost
from ldznet.images import resize
from ldznet.schedule import seeded_noise

T, NOISES = 200, 4
FULL = ("input.1", "input.2", "output.9", "output.10", "output.11")  # blocks at the latents' own size
EARLY, LATE = ("input.2", "input.4", "input.5"), ("output.7", "output.8", "output.9", "output.10", "output.11")
TIMESTEPS = (50, 100, 200, 300, 400, 500, 600, 700, 800)
ATTENTION = dataclasses.replace(CONFIGS["tiny"], presence=Presence())
SIDE = 128
WHOLE = "the whole image"
SHOWN = (1, 6, 10)  # scenes of the picture
CELL, GAP = 160, 8  # pixels of the picture
HUES = (drawing.colours(8) * 255).byte().numpy()
Maps = Callable[[Tensor, Sequence[str]], Tensor]
"""Of latents 1 4 h w and phrases: maps p h w, higher where the phrase is."""


def noised(host: TinyHost, latents: Tensor, timestep: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Latents at a timestep, and that timestep, of one noise."""
    steps = torch.full((len(latents),), timestep)
    noise = seeded_noise((1, *latents.shape[1:]), seed).expand_as(latents)
    return host.add_noise(latents, noise, steps), steps


# Pieces without words


def taps_of(blocks: Sequence[str]) -> Callable[[TinyHost, Item], Tensor]:
    """The taps of blocks under no prompt, each channel as it is, together c h w."""

    def features(host: TinyHost, item: Item) -> Tensor:
        latents = host.encode_image(pixels_of(item.image))
        noisy, steps = noised(host, latents, T)
        taps = host.extract(noisy, steps, host.encode_text([""]), blocks)
        size = (latents.shape[2], latents.shape[3])
        return torch.cat([resize(_normed(tap), size) for tap in taps.values()], dim=1)[0]

    return features


def _normed(tap: Tensor) -> Tensor:
    """Each channel without its mean over the picture; blocks weigh alike."""
    tap = tap - tap.mean((2, 3), keepdim=True)
    return tap / tap.norm(dim=1).mean().clamp(min=1e-6)


def links_of(host: TinyHost, item: Item) -> Tensor:
    """The self-attention of the blocks at full size, under no prompt: where each pixel looks, n h w."""
    latents = host.encode_image(pixels_of(item.image))
    noisy, steps = noised(host, latents, T)
    size = (latents.shape[2], latents.shape[3])
    found = host.observe(
        noisy, steps, host.condition([""]), lambda unet: reading_attention(unet, (), FULL, host.specs, size)
    )
    rows = torch.stack(list(found.self_attention.values())).mean(0)[0]
    return _normed(rows.sqrt().T.unflatten(1, size)[None])[0]


def pixels(host: TinyHost, item: Item) -> Tensor:
    """Mean colours of cells of 8 x 8 pixels."""
    return _normed(F.avg_pool2d(pixels_of(item.image), 8))[0]


def latents_of(host: TinyHost, item: Item) -> Tensor:
    return _normed(host.encode_image(pixels_of(item.image)))[0]


FEATURES: dict[str, Callable[[TinyHost, Item], Tensor]] = {
    "pixels": pixels,
    "latents": latents_of,
    "self-attention at full size": links_of,
    "taps: published blocks": taps_of(PUBLISHED_BLOCKS),
    "taps: input.2, .4, .5": taps_of(EARLY),
    "taps: output.7 to .11": taps_of(LATE),
}


def clusters(features: Tensor, count: int, tries: int = 4) -> Tensor:
    """k-means over the positions of `features` c h w, the best of some starts: labels 128 x 128, by the nearest centre
    of the features brought to that size."""
    points, best = features.flatten(1).T, (torch.inf, torch.empty(0))
    for seed in range(tries):
        centres = settled(points, _spread_out(points, count, np.random.default_rng(seed)))
        loss = float(torch.cdist(points, centres).amin(1).square().sum())
        best = min(best, (loss, centres), key=lambda pair: pair[0])
    fine = resize(features[None], (SIDE, SIDE))[0].flatten(1).T
    return torch.cdist(fine, best[1]).argmin(1).reshape(SIDE, SIDE)


def _spread_out(points: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """The starts of k-means++ (Arthur & Vassilvitskii 2007)."""
    chosen = [int(rng.integers(len(points)))]
    while len(chosen) < count:
        far = torch.cdist(points, points[chosen]).amin(1).square().double().numpy() + 1e-12
        chosen.append(int(rng.choice(len(points), p=far / far.sum())))
    return points[chosen]


def matched(labels: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """IoU of each true region with the piece that it gets when all are matched for the highest sum."""
    pieces = np.stack([labels == i for i in range(len(truths))])
    table = np.stack([iou(np.broadcast_to(piece, truths.shape), truths) for piece in pieces])
    rows, columns = linear_sum_assignment(-table)
    return table[rows[np.argsort(columns)], np.sort(columns)]


def regions(count: int) -> Iterator[tuple[str, Row]]:
    """Pieces of each picture by each kind of feature: as many as there are things and stuff in it."""
    trained, items = TinyHost.load(), drawn("T0", count, one_each=True)
    fresh = untrained(trained)
    ways = {name: (trained, feature) for name, feature in FEATURES.items()}
    ways |= {f"{name}, UNet untrained": (fresh, FEATURES[name]) for name in list(FEATURES)[2:]}
    for name, (host, feature) in ways.items():
        found = [matched(clusters(feature(host, item), len(item.masks)).numpy(), item.masks) for item in items]
        yield name, by_kind(np.concatenate(found), items)


def by_kind(values: np.ndarray, items: Sequence[Item]) -> Row:
    """Means of one value a phrase, of things and of stuff."""
    kinds = np.array([kind for item in items for kind in item.kinds])
    images = np.repeat(np.arange(len(items)), [len(item.kinds) for item in items])
    row: dict[str, Figure] = {}
    for kind, title in {"thing": "things", "stuff": "stuff"}.items():
        row |= {title: mean(values[kinds == kind], images[kinds == kind]), f"n {title}": int((kinds == kind).sum())}
    return {**row, "images": len(items)}


# Where a phrase makes a difference


def noise_change(host: TinyHost, timestep: int, noises: int = NOISES) -> Maps:
    """|eps(phrase) - eps(nothing)|, the mean over channels and noises."""

    def maps(latents: Tensor, phrases: Sequence[str]) -> Tensor:
        context = host.encode_text(["", *phrases])
        total = torch.zeros(len(phrases), *latents.shape[2:])
        for seed in range(noises):
            noisy, steps = noised(host, latents.expand(len(context), -1, -1, -1), timestep, seed)
            eps = host.models.unet(noisy, steps, context)
            total += (eps[1:] - eps[:1]).abs().mean(1)
        return total / noises

    return maps


def tap_change(host: TinyHost, blocks: Sequence[str], timestep: int = T, noises: int = NOISES) -> Maps:
    """|tap(phrase) - tap(nothing)|, the mean over channels, blocks (weighing alike) and noises."""

    def maps(latents: Tensor, phrases: Sequence[str]) -> Tensor:
        context, size = host.encode_text(["", *phrases]), (latents.shape[2], latents.shape[3])
        total = torch.zeros(len(phrases), *size)
        for seed in range(noises):
            noisy, steps = noised(host, latents.expand(len(context), -1, -1, -1), timestep, seed)
            for tap in host.extract(noisy, steps, context, blocks).values():
                change = (tap[1:] - tap[:1]).abs().mean(1, keepdim=True)
                total += resize(change / change.mean().clamp(min=1e-9), size)[:, 0]
        return total

    return maps


def attention_alone(host: TinyHost) -> Maps:
    """Cross-attention of the phrase's words, each phrase in a pass of its own, as the head without labels has it."""

    def maps(latents: Tensor, phrases: Sequence[str]) -> Tensor:
        return torch.cat([attention_maps(host, latents, prompts_of([p], ATTENTION, host.tokenize)[0]) for p in phrases])

    return maps


def attention_together(host: TinyHost) -> Maps:
    """All phrases in one pass."""

    def maps(latents: Tensor, phrases: Sequence[str]) -> Tensor:
        prompts = prompts_of(phrases, ATTENTION, host.tokenize)
        return torch.cat([attention_maps(host, latents, prompt) for prompt in prompts])

    return maps


def attention_maps(host: TinyHost, latents: Tensor, prompt: Prompt) -> Tensor:
    """Maps p h w of a prompt's phrases, each from 0 to 1."""
    noisy, steps = noised(host, latents, ATTENTION.timestep)
    attention = attend(host, noisy, steps, prompt, ATTENTION)
    return found_in(attention, prompt, ATTENTION, host.specs, (latents.shape[2], latents.shape[3])).maps[0]


def stretched(host: TinyHost, maps: Maps) -> Segment:
    """Maps as soft masks: each from 0 to 1, at the picture's size."""

    @torch.no_grad()
    def segment(item: Item, phrases: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        found = maps(host.encode_image(pixels_of(item.image)), phrases)
        low, high = found.amin((1, 2), keepdim=True), found.amax((1, 2), keepdim=True)
        soft = resize(((found - low) / (high - low).clamp(min=1e-9))[None], item.image.shape[:2])[0].clamp(0, 1)
        return soft.numpy(), np.ones(len(phrases), np.float32)

    return segment


def row(segment: Segment, items: Sequence[Item]) -> Row:
    """mIoU at the best common threshold of things and of stuff, and AP of all."""
    outcome, found = run(segment, items), dict[str, Figure]()
    for title, rows in {"things": outcome.things, "stuff": ~outcome.things}.items():
        of_kind = figures(outcome, rows)
        found[title] = [of_kind.miou_best, *intervals(outcome, rows)["miou_best"]]
        found |= {f"{title} at": of_kind.best, f"n {title}": of_kind.phrases}
    every = outcome.things | True
    return {**found, "AP": [figures(outcome, every).ap, *intervals(outcome, every)["ap"]], "images": len(items)}


def phrases(count: int, choose: bool) -> Iterator[tuple[str, Row]]:
    """What shows a phrase's place best; with `choose`, the noise's change at several timesteps, on other scenes."""
    host = TinyHost.load()
    items = drawn("T0", count, CHOOSE if choose else TEST, one_each=True)
    ways: dict[str, Maps] = {f"noise, t = {t}": noise_change(host, t, 1) for t in TIMESTEPS}
    if not choose:
        ways = {
            f"noise, t = {BEST_T}": noise_change(host, BEST_T),
            "taps: published blocks": tap_change(host, PUBLISHED_BLOCKS),
            "taps: input.2, .4, .5": tap_change(host, EARLY),
            "taps: output.7 to .11": tap_change(host, LATE),
            "cross-attention, a phrase a pass": attention_alone(host),
            "cross-attention, phrases together": attention_together(host),
        }
    for name, maps in ways.items():
        yield name, row(stretched(host, maps), items)
    yield WHOLE, row(whole_image, items)


BEST_T = 500  # of the noise's change: `phrases --choose`


def noises(count: int) -> Iterator[tuple[str, Row]]:
    """The noise's change over several noises."""
    host, items = TinyHost.load(), drawn("T0", count, one_each=True)
    for number in (1, 2, 4, 8):
        name = f"{number} noise{'s' if number > 1 else ''}"
        yield name, row(stretched(host, noise_change(host, BEST_T, number)), items)


# Phrases that compete for pixels


def contest(host: TinyHost, maps: Maps) -> Callable[[Item], np.ndarray]:
    """Which phrase of an item has each pixel, h w: the highest of maps that have one mean each."""

    @torch.no_grad()
    def labels(item: Item) -> np.ndarray:
        found = maps(host.encode_image(pixels_of(item.image)), item.phrases)
        scaled = found / found.mean((1, 2), keepdim=True).clamp(min=1e-9)
        return resize(scaled[None], item.image.shape[:2])[0].argmax(0).numpy()

    return labels


def of_head(host: TinyHost, name: str) -> Callable[[Item], np.ndarray]:
    """The same by the probabilities of a trained head."""
    predictor = Predictor(host, load_head(name))

    def labels(item: Item) -> np.ndarray:
        predictor.set_image(item.image)
        return arrays(predictor.predict(item.phrases))[0].argmax(0)

    return labels


def label_ways(host: TinyHost) -> dict[str, Callable[[Item], np.ndarray]]:
    return {
        "noise": contest(host, noise_change(host, BEST_T)),
        "taps: input.2, .4, .5": contest(host, tap_change(host, EARLY)),
        "cross-attention": contest(host, attention_together(host)),
        "LD-ZNet, trained on labels": of_head(host, "tiny"),
    }


def labels(count: int) -> Iterator[tuple[str, Row]]:
    """IoU of each region of a label map, and the share of pixels that have the right label."""
    host, items = TinyHost.load(), drawn("T0", count, one_each=True)
    for name, way in label_ways(host).items():
        found = [way(item) for item in items]
        pairs = list(zip(found, items, strict=True))
        ious = [iou(np.stack([x == i for i in range(len(item.masks))]), item.masks) for x, item in pairs]
        right = [float(np.take_along_axis(item.masks, x[None], 0).mean()) for x, item in pairs]
        yield name, {"pixels": mean(np.array(right), np.arange(count)), **by_kind(np.concatenate(ious), items)}


def picture(path: Path, seeds: Sequence[int]) -> None:
    """A row for each scene: the picture, its true regions, pieces without words, and label maps, in the colours of the
    phrases."""
    host = TinyHost.load()
    titles = ["picture", "truth", "pieces of taps", *label_ways(host)]
    page = Image.new("RGB", (GAP + len(titles) * (CELL + GAP), 28 + len(seeds) * (CELL + 30)), "white")
    pen = ImageDraw.Draw(page)
    for column, title in enumerate(titles):
        pen.text((GAP + column * (CELL + GAP), 8), title, "black")
    for line, seed in enumerate(seeds):
        item, top = drawn("T0", 1, seed, one_each=True)[0], 28 + line * (CELL + 30)
        pieces = clusters(FEATURES["taps: input.2, .4, .5"](host, item), len(item.masks)).numpy()
        maps = [item.masks.argmax(0), renamed(pieces, item.masks), *(way(item) for way in label_ways(host).values())]
        for column, cell in enumerate([item.image, *(HUES[x] for x in maps)]):
            enlarged = Image.fromarray(cell).resize((CELL, CELL), Image.Resampling.NEAREST)
            page.paste(enlarged, (GAP + column * (CELL + GAP), top))
        left = GAP
        for hue, phrase in zip(HUES, item.phrases, strict=False):
            pen.text((left, top + CELL + 4), phrase, tuple(int(c) for c in hue))
            left += 16 + int(pen.textlength(phrase))
    page.save(path)


def renamed(pieces: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """The pieces with the numbers of the regions that they match best."""
    table = np.stack([iou(np.broadcast_to(pieces == i, truths.shape), truths) for i in range(len(truths))])
    return linear_sum_assignment(-table)[1][pieces]


# Attention of a pass that somebody else made


def captured(count: int) -> Iterator[tuple[str, Row]]:
    """Cross-attention of words of the caption in the caption's own pass, as a sampler makes it, beside passes of the
    head's own, for the same phrases."""
    host = TinyHost.load()
    items = [with_those(item, said_in(host, item).phrases) for item in drawn("T0", count, one_each=True)]
    ways: dict[str, Segment] = {
        "a phrase a pass": stretched(host, attention_alone(host)),
        "phrases together": stretched(host, attention_together(host)),
        "the caption's own pass": by_caption(host),
    }
    first: np.ndarray | None = None
    for name, segment in ways.items():
        outcome = run(segment, items)
        ious = outcome.counts.iou()[:, outcome.counts.miou().argmax()]
        first = ious if first is None else first
        less = {} if first is ious else {"over a phrase a pass": mean(ious - first, outcome.images)}
        found = figures(outcome, outcome.things | True)
        yield name, {"mIoU": mean(ious, outcome.images), **less, "n phrases": found.phrases, "images": found.images}


def said_in(host: TinyHost, item: Item) -> Prompt:
    """The item's caption as a prompt, with those of its phrases that it says."""
    ids = [-1, *host.tokenize(item.captions[0])]
    return spoken(ids, item.phrases, host.tokenize)._replace(text=item.captions[0])


def with_those(item: Item, kept: Sequence[str]) -> Item:
    return with_phrases(dataclasses.replace(item, absent=()), set(kept).__contains__)


def by_caption(host: TinyHost) -> Segment:
    def segment(item: Item, phrases: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return stretched(host, lambda latents, _: attention_maps(host, latents, said_in(host, item)))(item, phrases)

    return segment


def main() -> None:
    made = parser(__doc__)
    made.add_argument("what", choices=("regions", "phrases", "noises", "labels", "captured"))
    made.add_argument("--scenes", type=int, default=100)
    made.add_argument("--choose", action="store_true", help="of phrases: timesteps, on the scenes for choosing")
    made.add_argument("--picture", type=Path, help="of labels: draw three scenes here, and measure nothing")
    given = made.parse_args()
    if given.picture:
        picture(given.picture, SHOWN)
        return
    with torch.no_grad():
        found = {
            "regions": lambda: regions(given.scenes),
            "phrases": lambda: phrases(given.scenes, given.choose),
            "noises": lambda: noises(given.scenes),
            "labels": lambda: labels(given.scenes),
            "captured": lambda: captured(given.scenes),
        }[given.what]()
        report(found, given.json)


if __name__ == "__main__":
    main()
