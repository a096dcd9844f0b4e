"""Where in the LDM, and under how much noise, can a straight line read what a place shows? The paper's second figure.

    python benchmarks/heatmap.py --scenes 100             every tap at every timestep
    python benchmarks/heatmap.py --picture FILE           docs/figures/heatmap.json as heat-maps

One ridge regression a cell takes a tap's channels, place by place, to the text states of the nouns and colours of the
thing that is there; a word's map is then the scalar product with that word's state. It is fitted on `--labels` photo
scenes from 500,000 on, whose labels never name the held-out colours and categories, and asked on photo scenes from 0
on. A figure is the average precision over a scene's 16 x 16 places, the mean over words and scenes, under no prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from helpers import CHOOSE, TEST, UNTAUGHT, Row, mean, parser, pixels_of, report, untrained
from torch import Tensor

from ldznet import schedule
from ldznet.hosts.tiny import TinyHost
from ldznet.images import resize
from ldznet.schedule import seeded_noise
from ldznet.tinyworld import scene
from ldznet.tinyworld.shapes import CATEGORIES
from ldznet.tinyworld.surfaces import COLOURS

FIGURES = Path(__file__).parent.parent / "docs/figures/heatmap.json"
TIMESTEPS = (0, 100, 200, 400, 600, 800, 999)
LATENTS, CELLS, BATCH = "latents", 16, 32
RIDGE = 0.01  # of the number of places, beside channels of unit variance
KINDS = ("nouns", "colours", "untaught nouns", "untaught colours")


@dataclass(frozen=True)
class Places:
    """Scenes in 16 x 16 places; `shown` says of each thing its noun and colour, and how much of each place it fills."""

    latents: Tensor
    shown: Sequence[Sequence[tuple[tuple[str, str], Tensor]]]


def places(first: int, count: int) -> Places:
    """`count` photo scenes from `first` on."""
    scenes = [scene(first + i, "photo") for i in range(count)]
    host = TinyHost.load()
    latents = torch.cat([host.encode_image(pixels_of(s.image)) for s in scenes])
    shown = [
        [
            ((t.category, t.colour), F.avg_pool2d(torch.from_numpy(t.mask)[None].float(), 8)[0].flatten())
            for t in s.things
        ]
        for s in scenes
    ]
    return Places(latents, shown)


def states(host: TinyHost) -> dict[str, Tensor]:
    """The text encoder's state of each noun and colour, without the mean over those of its kind that labels teach."""
    found: dict[str, Tensor] = {}
    for words in (CATEGORIES, tuple(COLOURS)):
        rows = {word: host.encode_text([word])[0, 1] for word in words}
        middle = torch.stack([rows[word] for word in words if word not in UNTAUGHT]).mean(0)
        found |= {word: state - middle for word, state in rows.items()}
    return found


def features(host: TinyHost, latents: Tensor, timestep: int, blocks: Sequence[str]) -> dict[str, Tensor]:
    """Of the noised latents and of each tap: what each place holds, s n c, under no prompt."""
    noise = torch.cat([seeded_noise((1, *latents.shape[1:]), seed) for seed in range(len(latents))])
    steps = torch.full((len(latents),), timestep)
    noisy = host.add_noise(latents, noise, steps)
    empty, parts = host.encode_text([""]), []
    for rows, t in zip(noisy.split(BATCH), steps.split(BATCH), strict=True):
        taps = host.extract(rows, t, empty.expand(len(rows), -1, -1), blocks)
        parts.append({LATENTS: rows, **{name: resize(tap, (CELLS, CELLS)) for name, tap in taps.items()}})
    return {name: torch.cat([part[name] for part in parts]).flatten(2).transpose(1, 2) for name in parts[0]}


def targets(shown: Places, words: Mapping[str, Tensor], kind: int) -> tuple[Tensor, Tensor]:
    """The states that each place should give for words of a kind (0: nouns, 1: colours), s n d, and which places labels
    speak of, s n: not those of things whose word is never named."""
    width, count = next(iter(words.values())).numel(), CELLS * CELLS
    wanted, known = torch.zeros(len(shown.shown), count, width), torch.ones(len(shown.shown), count, dtype=torch.bool)
    for row, things in enumerate(shown.shown):
        for names, share in things:
            if names[kind] in UNTAUGHT:
                known[row] &= share == 0
            else:
                wanted[row] += share[:, None] * words[names[kind]]
    return wanted, known


def ridge(inputs: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Weights c d and bias d of the ridge regression from `inputs` m c, of unit variance, to `wanted` m d."""
    x, y = inputs.double(), wanted.double()
    centre = y.mean(0)
    gram = x.T @ x + RIDGE * len(x) * torch.eye(x.shape[1], dtype=torch.float64)
    return torch.linalg.solve(gram, x.T @ (y - centre)).float(), centre.float()


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Of the places of one scene: the mean, over true places, of the precision among all that score no lower."""
    order = np.argsort(-scores, kind="stable")
    hits = truth[order]
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())


def of_unit_variance(taught: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
    """Features s n c of the labelled scenes and of the test's, both by the mean and spread of the labelled."""
    middle, spread = taught.flatten(0, 1).mean(0), taught.flatten(0, 1).std(0).clamp(min=1e-6)
    return (taught - middle) / spread, (asked - middle) / spread


def precisions(
    given: Sequence[Tensor], test: Places, words: Mapping[str, Tensor]
) -> dict[str, tuple[np.ndarray, list[int], list[float]]]:
    """Of each of `KINDS`: the average precision of each word in each scene that shows it, the scene's number, and the
    share of its places. `given` are the states s n d that were read for nouns and for colours."""
    found: dict[str, list[tuple[float, int, float]]] = {kind: [] for kind in KINDS}
    for kind, maps in enumerate(given):
        for image, things in enumerate(test.shown):
            for word in sorted({names[kind] for names, _ in things}):
                truth = sum(share for names, share in things if names[kind] == word) > 0.5
                if truth.any():
                    value = average_precision((maps[image] @ words[word]).numpy(), truth.numpy())
                    found[KINDS[kind + 2 * (word in UNTAUGHT)]].append((value, image, float(truth.float().mean())))
    return {
        kind: (np.array([r[0] for r in rows]), [r[1] for r in rows], [r[2] for r in rows])
        for kind, rows in found.items()
    }


def by_lines(taught: Tensor, asked: Tensor, labels: Places, words: Mapping[str, Tensor]) -> list[Tensor]:
    """What a straight line reads of nouns and of colours, s n d, from features of unit variance."""
    read = []
    for kind in range(2):
        wanted, known = targets(labels, words, kind)
        weight, bias = ridge(taught[known], wanted[known])
        read.append(asked @ weight + bias)
    return read


def readout(taught: Tensor, asked: Tensor, labels: Places, test: Places, words: Mapping[str, Tensor]) -> Row:
    """The figures of one tap at one timestep, from features s n c of the labelled scenes and of the test's."""
    taught, asked = of_unit_variance(taught, asked)
    found = precisions(by_lines(taught, asked, labels, words), test, words)
    return {
        **{kind: mean(values, images) for kind, (values, images, _) in found.items()},
        **{f"n {kind}": len(values) for kind, (values, _, _) in found.items()},
        "chance": float(np.mean([share for _, _, shares in found.values() for share in shares])),
    }


def heatmap(labels: int, scenes: int, timesteps: Sequence[int]) -> Iterator[tuple[str, Row]]:
    """Rows "site, t = ..." of the trained UNet at all timesteps, then of an untrained one at 200."""
    trained = TinyHost.load()
    taught, asked, words = places(CHOOSE, labels), places(TEST, scenes), states(trained)
    blocks = tuple(trained.specs)
    for host, ts, note in ((trained, timesteps, ""), (untrained(trained), (200,), ", UNet untrained")):
        for t in ts:
            known, new = (features(host, part.latents, t, blocks) for part in (taught, asked))
            for site in known:
                if note and site == LATENTS:
                    continue
                row = readout(known[site], new[site], taught, asked, words)
                yield f"{site}, t = {t}{note}", {**row, "images": scenes}


def drawing(rows: Mapping[str, Row], path: Path) -> None:
    """Above, nouns and colours by tap and timestep; below, the best taps over the logarithm of signal-to-noise."""
    import matplotlib.pyplot as plt

    sites = list(dict.fromkeys(name.split(",")[0] for name in rows))
    timesteps = sorted({int(name.rpartition(" = ")[2]) for name in rows if "untrained" not in name})
    figure, axes = plt.subplots(2, len(KINDS), figsize=(15, 9), height_ratios=(3, 2), layout="constrained")
    levels = schedule.alphas_cumprod()[timesteps]
    over = np.log10((levels / (1 - levels)).numpy())
    for kind, above, below in zip(KINDS, axes[0], axes[1], strict=True):
        values = np.array([[rows[f"{site}, t = {t}"][kind][0] for t in timesteps] for site in sites])  # type: ignore[index]
        above.imshow(values, vmin=0, vmax=0.9, aspect="auto")
        above.set(
            title=f"{kind}: average precision", xlabel="timestep", xticks=range(len(timesteps)), xticklabels=timesteps
        )
        above.set_yticks(range(len(sites)), sites if above is axes[0][0] else [""] * len(sites))
        for (y, x), value in np.ndenumerate(values):
            above.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color="w" if value < 0.6 else "k")
        best = sorted(range(1, len(sites)), key=lambda i: -values[i].max())[:3]
        for i in (0, *best):
            below.plot(over, values[i], marker="o", ms=3, ls="--" if i == 0 else "-", label=sites[i])
        below.set(xlabel="log10 of signal-to-noise", ylim=(0, 0.95))
        below.invert_xaxis()
        below.legend(fontsize=7)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    made = parser(__doc__)
    made.add_argument("--scenes", type=int, default=100, help="of the test")
    made.add_argument("--labels", type=int, default=256, help="scenes that the readout is fitted on")
    made.add_argument("--timesteps", type=int, nargs="+", default=TIMESTEPS)
    made.add_argument("--picture", type=Path, help="measure nothing; draw what is measured into this file")
    made.add_argument(
        "--figures", type=Path, default=FIGURES, help="what is drawn (default: docs/figures/heatmap.json)"
    )
    given = made.parse_args()
    torch.set_grad_enabled(False)
    if given.picture:
        drawing(json.loads(given.figures.read_text(encoding="utf-8"))["figures"], given.picture)
    else:
        report(heatmap(given.labels, given.scenes, given.timesteps), given.json)
