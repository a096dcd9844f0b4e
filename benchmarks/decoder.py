"""What a small decoder reads where a straight line reads best: the six best cells of `heatmap.py`.

    python benchmarks/decoder.py --scenes 100

A cell is a tap at a timestep; the six are those with the highest mean over nouns and colours, taught and untaught, in
docs/figures/heatmap.json. Over each, over the clean latents, and over the same taps of a UNet that has learned nothing,
a decoder of two 3 x 3 convolutions and a 1 x 1 is fitted to what the ridge regression is fitted to: the text states of
the thing at each place, on photo scenes whose labels never name the held-out words. Both are asked on photo scenes from
600,000 on, which chose no cell; the gain is that of the decoder over the line, word by word.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from heatmap import (
    CELLS,
    FIGURES,
    KINDS,
    LATENTS,
    Places,
    by_lines,
    features,
    of_unit_variance,
    places,
    precisions,
    states,
    targets,
)
from helpers import CHOOSE, Row, mean, parser, report, untrained
from torch import Tensor, nn

from ldznet.hosts.tiny import TinyHost
from ldznet.train.recipe import seeded

FRESH = 600_000  # first scene that no cell was chosen on
WIDTH, BATCH, RATE, DECAY = 64, 32, 2e-3, 1e-2


def best_cells(count: int) -> list[tuple[str, int]]:
    """The taps and timesteps that a straight line reads best."""
    rows = json.loads(FIGURES.read_text(encoding="utf-8"))["figures"]
    cells = [name for name in rows if LATENTS not in name and "untrained" not in name]
    order = sorted(cells, key=lambda name: -sum(rows[name][kind][0] for kind in KINDS))
    return [(site, int(t)) for site, t in (name.split(", t = ") for name in order[:count])]


@torch.enable_grad()
def by_decoder(taught: Tensor, asked: Tensor, labels: Places, words: Mapping[str, Tensor], steps: int) -> list[Tensor]:
    """What a small decoder reads of nouns and of colours, s n d, from features of unit variance."""
    wanted = [targets(labels, words, kind) for kind in range(2)]
    width = wanted[0][0].shape[-1]
    with seeded(0):
        decoder = nn.Sequential(
            nn.Conv2d(taught.shape[-1], WIDTH, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(WIDTH, 2 * width, 1),
        )

    def read(places: Tensor) -> tuple[Tensor, ...]:
        grid = places.transpose(1, 2).unflatten(2, (CELLS, CELLS))
        return decoder(grid).flatten(2).transpose(1, 2).split(width, dim=-1)

    optimizer = torch.optim.AdamW(decoder.parameters(), lr=RATE, weight_decay=DECAY)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(len(taught), (BATCH,), generator=generator)
        pairs = zip(read(taught[rows]), wanted, strict=True)
        losses = [F.mse_loss(r[k[rows]], w[rows][k[rows]]) for r, (w, k) in pairs]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
        falling.step()
    with torch.no_grad():
        return list(read(asked))


def rows(labels: int, scenes: int, steps: int, cells: int) -> Iterator[tuple[str, Row]]:
    """AP of the decoder, and its gain over the line, at the clean latents and at each cell, trained and untrained."""
    trained = TinyHost.load()
    taught, asked, words = places(CHOOSE, labels), places(FRESH, scenes), states(trained)
    best = best_cells(cells)
    for host, sites, note in ((trained, [(LATENTS, 0), *best], ""), (untrained(trained), best, ", UNet untrained")):
        for site, t in sites:
            known, new = (
                features(host, part.latents, t, [] if site == LATENTS else [site])[site] for part in (taught, asked)
            )
            known, new = of_unit_variance(known, new)
            lines = precisions(by_lines(known, new, taught, words), asked, words)
            found = precisions(by_decoder(known, new, taught, words, steps), asked, words)
            row: dict[str, object] = {}
            for kind, (values, images, _) in found.items():
                row[kind] = mean(values, images)
                row[f"gain in {kind}"] = mean(values - lines[kind][0], images)
                row[f"n {kind}"] = len(values)
            yield f"{site}, t = {t}{note}", {**row, "images": scenes}


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--scenes", type=int, default=100, help="of the test")
    made.add_argument("--labels", type=int, default=256, help="scenes that line and decoder are fitted on")
    made.add_argument("--steps", type=int, default=300)
    made.add_argument("--cells", type=int, default=6)
    given = made.parse_args()
    with torch.no_grad():
        report(rows(given.labels, given.scenes, given.steps, given.cells), given.json)


if __name__ == "__main__":
    main()
