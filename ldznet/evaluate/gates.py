"""The gates of the tiny world: before any head is judged, the models below it must know what they show.

1. The VAE keeps what matters: PSNR, and a probe that names the thing from its latents. 2. The LDM draws what it is
told: a classifier finds the captioned category. 3. It knows where: a noun's cross-attention peaks on its thing.
`naming` measures what no LDM here reaches yet: a noun's attention is strongest on the one of three things it names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.reading import reading_attention
from ..checkpoints import load_weights
from ..data import TinyWorldDataset
from ..data.cache import images_to_pixels
from ..data.items import Item
from ..errors import CheckpointError
from ..hosts.tiny import TinyHost
from ..schedule import seeded_noise
from ..tinyworld.namer import Namer, labels_of
from ..tinyworld.words import PREFIXES
from .metrics import bootstrap

Progress = Callable[[int, int], None]
TEST_SEED = 600_000  # nothing was trained on seeds below 1,000,000
BATCH = 50
ATTENTION_TIMESTEP, ATTENTION_STRIDE = 200, 2  # 8 x 8 of 16 x 16 latents
NAMED, CHOOSING_SEED = 3, 650_000  # things to tell apart; scenes that choose the block and the timestep
NAMING_TIMESTEPS = (50, 100, 200, 300)


@dataclass(frozen=True)
class Gate:
    """One figure and what it must reach; `note` says what stands beside it."""

    name: str
    figure: float
    needed: float
    note: str = ""
    interval: tuple[float, float] | None = None  # 95 % over scenes; None for a share, of which it follows

    @property
    def passed(self) -> bool:
        return self.figure >= self.needed


def gates(host: TinyHost, weights: Path, count: int, progress: Progress) -> list[Gate]:
    """All gates over `count` scenes or captions each; the judges' weights lie in `weights`."""
    classifier, probe = (_judge(weights, name).to(host.device) for name in ("classifier", "probe"))
    scenes = TinyWorldDataset(count, start=TEST_SEED, things=1)
    items = [scenes[i] for i in range(count)]
    reached = [*(psnr_gate(host, domain, count) for domain in ("photo", "cartoon"))]
    with torch.no_grad():
        reached.append(probe_gate(host, probe, items))
        reached.append(classifier_gate(classifier, items))
        reached.append(sampling_gate(host, classifier, items, progress))
        reached.append(attention_gate(host, items))
    return reached


def share_interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `count` (Wilson 1927)."""
    middle, room = share + 1.96**2 / (2 * count), 1.96 * (share * (1 - share) / count + 1.96**2 / (4 * count**2)) ** 0.5
    whole = 1 + 1.96**2 / count
    return (middle - room) / whole, (middle + room) / whole


def psnr_gate(host: TinyHost, domain: str, count: int) -> Gate:
    """Mean PSNR in dB, range [-1, 1], of unseen scenes of one domain."""
    dataset = TinyWorldDataset(count, start=TEST_SEED, domain=domain)
    found = []
    for pixels in _batches([dataset[i] for i in range(count)]):
        mse = ((host.decode_latents(host.encode_image(pixels)).cpu() - pixels) ** 2).mean(dim=(1, 2, 3))
        found.append(10 * torch.log10(4 / mse))
    mean, *interval = bootstrap(torch.cat(found).double().numpy(), np.arange(count))
    return Gate(f"VAE, PSNR on {domain} (dB)", mean, 22.0, interval=(interval[0], interval[1]))


def probe_gate(host: TinyHost, probe: Namer, items: Sequence[Item]) -> Gate:
    """Share of scenes whose category and colour a probe on the latents both names."""
    latents = torch.cat([host.encode_image(pixels) for pixels in _batches(items)])
    category, colour = _right(probe, latents, items)
    note = f"category {category.mean():.1%}, colour {colour.mean():.1%}"
    return Gate("VAE, a probe on the latents names both", float((category & colour).mean()), 0.90, note)


def classifier_gate(classifier: Namer, items: Sequence[Item]) -> Gate:
    """Share of rendered scenes whose category the classifier names: is the judge fit to judge?"""
    device = next(classifier.parameters()).device
    category, colour = _right(classifier, torch.cat(list(_batches(items))).to(device), items)
    return Gate("classifier on renders", float(category.mean()), 0.97, f"colour {colour.mean():.1%}")


def sampling_gate(host: TinyHost, classifier: Namer, items: Sequence[Item], progress: Progress) -> Gate:
    """Share of captions (CFG 5, 30 steps) in whose pictures the classifier finds the captioned category."""
    pictures = []
    for start in range(0, len(items), BATCH):
        captions = [item.captions[0] for item in items[start : start + BATCH]]
        pictures.append(host.decode_latents(host.generate(captions, seed=start)))
        progress(min(start + BATCH, len(items)), len(items))
    category, colour = _right(classifier, torch.cat(pictures), items)
    by_domain = ", ".join(f"{name} {share:.0%}" for name, share in _by_domain(category, items).items())
    note = f"colour {colour.mean():.1%}; {by_domain}"
    return Gate("LDM, captioned category found", float(category.mean()), 0.70, note)


def attention_gate(host: TinyHost, items: Sequence[Item]) -> Gate:
    """Share of scenes in which the noun's cross-attention at 8 x 8 peaks within its mask grown by one cell."""
    hits, chances = [], []
    for start in range(0, len(items), BATCH):
        part = items[start : start + BATCH]
        peaks = noun_attention(host, part).flatten(1).argmax(dim=1)
        for item, peak in zip(part, peaks.tolist(), strict=True):
            grown = _grown(torch.from_numpy(item.masks[0]))
            hits.append(bool(grown.flatten()[peak]))
            chances.append(float(grown.float().mean()))
    return Gate("LDM, noun attention on its thing", float(np.mean(hits)), 0.60, f"chance {np.mean(chances):.1%}")


def noun_attention(host: TinyHost, items: Sequence[Item]) -> Tensor:
    """Softmaxed cross-attention of each caption's noun, b 8 8: mean over heads and the 8 x 8 blocks, at t = 200."""
    latents = torch.cat(list(map(host.encode_image, _batches(items))))
    captions = [item.captions[0] for item in items]
    nouns = [item.phrases[0].split()[-1] for item in items]
    of_words = [caption.split().index(noun) + 1 for caption, noun in zip(captions, nouns, strict=True)]
    places = torch.tensor(of_words, dtype=torch.int64, device="cpu")
    blocks = [spec.block for spec in host.specs.values() if spec.stride == ATTENTION_STRIDE]
    cross = _cross_attention(host, latents, captions, ATTENTION_TIMESTEP, blocks)
    return torch.stack(list(cross.values())).mean(0)[range(len(items)), places]


@torch.no_grad()
def naming(host: TinyHost, count: int) -> Gate:
    """Share of nouns, alone in a prompt, whose mean attention over three things is largest on the one that they name.

    Of `count` photo scenes; the block and the timestep are those that do best on half as many others.
    """
    choosing = _namings(max(1, count // 2), CHOOSING_SEED)
    shares = {t: {b: r.mean() for b, r in named_right(host, choosing, t).items()} for t in NAMING_TIMESTEPS}
    timestep, block = max(((t, b) for t, of in shares.items() for b in of), key=lambda tb: shares[tb[0]][tb[1]])
    right = named_right(host, _namings(count, TEST_SEED), timestep)[block]
    note = f"{block} at t = {timestep}; {len(right)} nouns, chance {1 / NAMED:.1%}"
    share, low, high = bootstrap(right.astype(float), np.repeat(np.arange(len(right) // NAMED), NAMED))
    return Gate("LDM, a noun picks its thing of three", share, 0.60, note, (low, high))


Naming = tuple[Item, tuple[int, ...]]


def _namings(count: int, start: int) -> list[Naming]:
    """`count` photo scenes of three things of different kinds; the places of the phrases that name each kind alone."""
    dataset, found = TinyWorldDataset(10 * count, start=start, domain="photo", things=NAMED), []
    for item in (dataset[i] for i in range(len(dataset))):
        kinds = [i for i, phrase in enumerate(item.phrases) if item.kinds[i] == "thing" and len(phrase.split()) == 2]
        if len(kinds) == NAMED:
            found.append((item, tuple(kinds)))
        if len(found) == count:
            break
    return found


def named_right(host: TinyHost, namings: Sequence[Naming], timestep: int) -> dict[str, np.ndarray]:
    """By block, for each noun of each scene in turn, whether it attends most to what it names."""
    blocks = list(host.specs)
    right: dict[str, list[Tensor]] = {block: [] for block in blocks}
    for start in range(0, len(namings), BATCH):
        part = namings[start : start + BATCH]
        latents = torch.cat(list(map(host.encode_image, _batches([item for item, _ in part]))))
        prompts = [item.phrases[which] for item, kinds in part for which in kinds]
        cross = _cross_attention(host, latents.repeat_interleave(NAMED, dim=0), prompts, timestep, blocks)
        masks = torch.from_numpy(np.stack([item.masks[list(kinds)] for item, kinds in part])).float()
        masks = masks.repeat_interleave(NAMED, dim=0).to(latents.device)
        meant = torch.arange(NAMED, dtype=torch.int64, device=latents.device).repeat(len(part))
        for block, maps in cross.items():
            cells = F.adaptive_avg_pool2d(masks, (maps.shape[2], maps.shape[3]))
            noun = maps[:, 2:3]  # after the start and an article
            strength = (noun * cells).sum(dim=(2, 3)) / cells.sum(dim=(2, 3)).clamp(min=1e-6)
            right[block].append(strength.argmax(dim=1) == meant)
    return {block: torch.cat(found).cpu().numpy() for block, found in right.items()}


def _cross_attention(
    host: TinyHost, latents: Tensor, prompts: Sequence[str], timestep: int, blocks: Sequence[str]
) -> dict[str, Tensor]:
    """Softmaxed cross-attention by block, b n h w: mean over heads, latents noised by one field."""
    timesteps = torch.full((len(latents),), timestep, dtype=torch.int64, device="cpu")
    noise = seeded_noise((1, *latents.shape[1:]), 0).to(latents).expand_as(latents)
    size = (latents.shape[2], latents.shape[3])
    attention = host.observe(
        host.add_noise(latents, noise, timesteps),
        timesteps,
        host.condition(prompts),
        lambda unet: reading_attention(unet, blocks, (), host.specs, size),
    )
    return attention.cross


def _grown(mask: Tensor) -> Tensor:
    """A mask h w at 8 x 8 cells (a cell counts where any of its pixels does), grown by one cell."""
    cells = F.adaptive_max_pool2d(mask[None, None].float(), 8)
    return F.max_pool2d(cells, 3, stride=1, padding=1)[0, 0] > 0


def _right(namer: Namer, x: Tensor, items: Sequence[Item]) -> tuple[np.ndarray, np.ndarray]:
    """Whether the category and the colour of each item's thing are named, two arrays n."""
    truth = torch.tensor([labels_of(item.phrases[1]) for item in items], dtype=torch.int64, device="cpu")
    found = [torch.stack([y.argmax(1) for y in namer(part)], dim=1) for part in x.split(BATCH)]
    right = (torch.cat(found).cpu() == truth).numpy()
    return right[:, 0], right[:, 1]


def _by_domain(right: np.ndarray, items: Sequence[Item]) -> dict[str, float]:
    """Share of right ones per domain that the caption names; "none" where it names no domain."""
    names = {prefix: domain for domain, prefix in PREFIXES.items()}
    domains = [next((d for p, d in names.items() if item.captions[0].startswith(p)), "none") for item in items]
    return {name: float(right[np.array(domains) == name].mean()) for name in sorted(set(domains))}


def _batches(items: Sequence[Item]) -> list[Tensor]:
    images = [item.image for item in items]
    return [images_to_pixels(np.stack(images[i : i + BATCH])) for i in range(0, len(images), BATCH)]


def _judge(weights: Path, name: str) -> Namer:
    path = weights / f"{name}.safetensors"
    if not path.exists():
        raise CheckpointError(f"Expected a judge's weights at {path}, found none. Run `ldznet train {name}`.")
    return load_weights(Namer("pixels" if name == "classifier" else "latents"), path)
