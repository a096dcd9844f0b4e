"""Training a head: ZNet or LD-ZNet on latents, phrases and masks, with absent phrases as negatives.

Mean pixel cross-entropy as in the paper, a soft Dice term (small things weigh as much as large ones), cross-entropy
on the presence output, and one more that is thrown away with the training: a linear reading of the last features says
where every word of the data is, whichever phrase was asked for. One phrase names one thing; the words name all that
the image holds, so that telling categories apart is learned in a fraction of the steps. The denoising UNet and the
text encoder are frozen. A head that can do without its taps will: so a quarter of the rows has no latents, another no
taps.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import HeadConfig
from ..contracts import Conditioning, Host, Taps
from ..data.cache import Cache, latents_of, pixels_of, texts_of
from ..errors import InputError
from ..models import DeltaHead, Network, TrainedHead
from ..models.trained import taps_of
from ..phrases import ARTICLES, fill
from ..shapes import PIXELS_PER_LATENT
from .engine import channels_last

ABSENT_SHARE = 0.3
STUFF_WEIGHT = 0.3  # of drawing a phrase of stuff, against one of a thing: stuff is learned long before
DICE_WEIGHT, PRESENCE_WEIGHT, WORDS_WEIGHT = 1.0, 0.2, 0.3
INPUT_DROP = 0.25  # share of the rows without latents, and of those without taps, so that both are read
MOST_WORDS = 64  # the commonest of the data
TAUGHT = 0.5  # of a mask is its teacher's, where there is one
KEPT_ON_DEVICE = 2**30  # bytes of masks; more of them stay on disk


def start_from(head: nn.Module, module: nn.Module) -> int:
    """Copies every parameter of `module` (a UNet or a head) whose name and shape `head` shares; returns how many."""
    source, target = module.state_dict(), head.state_dict()
    shared = {name: t for name, t in source.items() if name in target and target[name].shape == t.shape}
    head.load_state_dict({**target, **shared})
    return len(shared)


class Segmenting(nn.Module):
    """A head as a module whose forward is the loss. `kept` says which inputs a row has: its latents, its taps.

    The hooks of a delta head stay on its host until `close`: gradients are computed after the pass, and layers that a
    checkpoint runs again for them have to be changed again.
    """

    def __init__(self, head: Network, words: int, host: Host) -> None:
        super().__init__()
        self.head, self._host, self._changes = head, host, contextlib.ExitStack()
        self.words = nn.Conv2d(head.head_config.unet.model_channels, words, 1)
        nn.init.zeros_(self.words.weight)  # or its first guesses would disturb a head that goes on

    def forward(
        self,
        latents: Tensor,
        context: Tensor,
        taps: dict[str, Tensor],
        masks: Tensor,
        words: Tensor,
        kept: Tensor | None = None,
        extras: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        features = self._features(latents, Conditioning(context, extras or {}), taps, kept).float()
        with torch.autocast(latents.device.type, enabled=False):
            return self._loss(features, masks, words)

    def _features(self, latents: Tensor, text: Conditioning, taps: Taps, kept: Tensor | None) -> Tensor:
        head = self.head
        if not isinstance(head, DeltaHead):
            zeros = torch.zeros(len(latents), dtype=torch.int64, device=latents.device)
            return head.features(latents, zeros, text.context, taps, kept)
        if kept is not None:
            latents = latents * kept[:, 0, None, None, None]
            taps = {block: tap * kept[:, 1, None, None, None] for block, tap in taps.items()}
        return head.features_over(self._host, latents, text, lambda unet: self._changing(head, unet, taps))

    @contextlib.contextmanager
    def _changing(self, head: DeltaHead, unet: nn.Module, taps: Taps) -> Iterator[dict[str, Tensor]]:
        self.close()
        hooks = self._changes.enter_context(head.hooked(unet, taps))
        yield hooks.seen
        hooks.require_once()

    def close(self) -> None:
        """Takes the head's hooks off its host."""
        self._changes.close()

    def _loss(self, features: Tensor, masks: Tensor, words: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logits, presence = self.head.read(features)
        words = F.adaptive_avg_pool2d(words, (features.shape[2], features.shape[3]))  # of the head's own cells
        present = (masks.amax(dim=(1, 2, 3)) > 0).float()
        pixels = F.binary_cross_entropy_with_logits(logits, masks)
        dice = (soft_dice(logits, masks) * present).sum() / present.sum().clamp(min=1)
        named = F.binary_cross_entropy_with_logits(self.words(features), words, reduction="sum") / words[:, 0].numel()
        loss = pixels + DICE_WEIGHT * dice + WORDS_WEIGHT * named
        figures = {"pixels": pixels.detach(), "dice": dice.detach(), "words": named.detach()}
        if presence is not None:
            presence_loss = F.binary_cross_entropy_with_logits(presence, present)
            loss, figures["presence"] = loss + PRESENCE_WEIGHT * presence_loss, presence_loss.detach()
        return loss, figures


def soft_dice(logits: Tensor, masks: Tensor) -> Tensor:
    """1 - Dice coefficient of each image, b (Milletari et al., 3DV 2016, with squares)."""
    p = logits.sigmoid()
    shared = (p * masks).sum(dim=(1, 2, 3))
    return 1 - (2 * shared + 1) / ((p**2).sum(dim=(1, 2, 3)) + masks.sum(dim=(1, 2, 3)) + 1)


def commonest_words(phrases: Iterable[str], unnamed: Collection[str] = ()) -> list[str]:
    """The words that most of `phrases` hold, articles and `unnamed` ones left out; at most MOST_WORDS."""
    counts = Counter(word for phrase in phrases for word in content_words(phrase) if word not in unnamed)
    return [word for word, _ in counts.most_common(MOST_WORDS)]


def content_words(phrase: str) -> list[str]:
    """The words of a phrase but for its articles."""
    return [word for word in phrase.lower().split() if word not in ARTICLES]


class HeadTask:
    """Batches of (latents, context, taps, mask, word maps, kept, what else the text gives), all where the host is.

    Contexts of all phrases are encoded once, into files of `folder` where there is one, taps at every step. `unnamed`
    words are in no phrase that is asked for. A `blind` head never has its taps. `absent_share` of the phrases are not
    in their picture; `input_drop` of the rows have no latents, and as many others no taps. With a `teacher`, a head
    over the same host, masks of present phrases are the mean of the labels and of its soft masks (distillation; Hinton
    et al., arXiv 1503.02531).
    """

    def __init__(
        self,
        head: Network,
        host: Host,
        caches: Cache | Sequence[Cache],
        unnamed: Collection[str] = (),
        blind: bool = False,
        absent_share: float = ABSENT_SHARE,
        folder: Path | None = None,
        teacher: TrainedHead | None = None,
        input_drop: float = INPUT_DROP,
    ) -> None:
        self.teacher, self.input_drop = teacher, input_drop
        caches = [caches] if isinstance(caches, Cache) else list(caches)
        self.host, self.config, self.blind, self.absent_share = host, head.head_config, blind, absent_share
        self.device = torch.device(getattr(host, "device", "cpu"))
        self.inputs = (pixels_of(caches) if self.config.takes_pixels else latents_of(caches)).to(self.device)
        self.planes = _planes(caches, self.device)
        self.size = caches[0].images.shape[1:3]
        self._describe(caches, frozenset(unnamed))
        self.module = channels_last(Segmenting(head, len(self.columns), host))
        self.text = texts_of(host, [fill(self.config.template, phrase) for phrase in self.rows], folder)

    def _describe(self, caches: Sequence[Cache], unnamed: frozenset[str]) -> None:
        """Tables of every image's phrases: their planes, their chances, their texts; and of its absent ones."""

        def may_be_named(phrase: str) -> bool:
            return unnamed.isdisjoint(content_words(phrase))

        records, planes_before = [], 0
        for cache in caches:
            records += [{**record, "first_plane": record["first_plane"] + planes_before} for record in cache.records]
            planes_before += len(cache.planes)
        absent = [[phrase for phrase in record["absent"] if may_be_named(phrase)] for record in records]
        chances = [
            [
                may_be_named(p) * (STUFF_WEIGHT if k == "stuff" else 1.0)
                for p, k in zip(r["phrases"], r["kinds"], strict=False)
            ]
            for r in records
        ]
        self.usable = torch.tensor([i for i in range(len(records)) if any(chances[i]) or absent[i]], dtype=torch.int64)
        if len(self.usable) == 0:
            raise InputError("Expected images with phrases, got none that has any. Give masks in index.jsonl.")
        asked = {p for r, of in zip(records, chances, strict=True) for p, c in zip(r["phrases"], of, strict=True) if c}
        self.rows = {p: row for row, p in enumerate(sorted(asked.union(*absent)))}
        self.columns = {
            word: column
            for column, word in enumerate(commonest_words((p for r in records for p in r["phrases"]), unnamed))
        }
        self.first = torch.tensor([record["first_plane"] for record in records])
        self.chances = _padded(chances, 0.0)
        self.texts = _padded([[self.rows.get(phrase, 0) for phrase in record["phrases"]] for record in records], 0)
        self.absent = _padded([[self.rows[phrase] for phrase in phrases] for phrases in absent], 0)
        self.texts_there = torch.tensor([len(record["phrases"]) for record in records])
        self.absent_counts = torch.tensor([len(phrases) for phrases in absent])
        held = torch.zeros(sum(len(cache.planes) for cache in caches), len(self.columns))
        for record in records:
            for which, phrase in enumerate(record["phrases"]):
                for word in content_words(phrase):
                    if word in self.columns:
                        held[record["first_plane"] + which, self.columns[word]] = 1
        self.held = held.to(self.device)

    def batch(self, step: int, size: int, generator: torch.Generator) -> tuple:
        index = self.usable[torch.randint(len(self.usable), (size,), generator=generator)]
        self.module.close()
        texts, planes, present = self._phrases(index, generator)
        text = self._text(texts)
        masks = self._masks(planes) * present.to(self.device)[:, None, None]
        latents = self._inputs(index)
        masks = self._taught(masks[:, None], latents, text, generator)
        taps = self._taps(latents, text, generator)
        return (
            latents.contiguous(memory_format=torch.channels_last),
            text.context,
            taps,
            masks,
            self._word_maps(index),
            self._kept(size, generator).to(self.device),
            dict(text.extras),
        )

    def loss(self, module: nn.Module, batch: tuple) -> tuple[Tensor, dict[str, Tensor]]:
        return module(*batch)

    def _inputs(self, index: Tensor) -> Tensor:
        """Latents b 4 h w, or pixels in [-1, 1] where the head takes those."""
        rows = self.inputs[index.to(self.device)].float()
        return rows / 127.5 - 1 if self.config.takes_pixels else rows

    def _text(self, rows: Tensor) -> Conditioning:
        """Some rows, in float32 on the device."""

        def chosen(of_all: Tensor) -> Tensor:
            return of_all[rows.to(of_all.device)].to(self.device, torch.float32)

        return Conditioning(chosen(self.text.context), {name: chosen(e) for name, e in self.text.extras.items()})

    def _phrases(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """A text for each image, its plane, and whether it is there; an absent one with probability `absent_share`."""
        chances, counts = self.chances[index], self.absent_counts[index]
        named = chances.sum(dim=1) > 0
        absent = (counts > 0) & (~named | (torch.rand(len(index), generator=generator) < self.absent_share))
        which = torch.multinomial(chances + (~named)[:, None], 1, generator=generator)[:, 0]
        other = (torch.rand(len(index), generator=generator) * counts).long()
        rows = torch.arange(len(index))
        texts = torch.where(absent, self.absent[index][rows, other], self.texts[index][rows, which])
        return texts, self.first[index] + torch.where(absent, 0, which), (~absent).float()

    def _masks(self, planes: Tensor) -> Tensor:
        """Masks of planes, n h w of 0 and 1."""
        if len(self.planes) == 0:
            return torch.zeros(len(planes), *self.size, device=self.device)
        packed = self.planes[planes.clamp(max=len(self.planes) - 1).to(self.planes.device)].to(self.device)
        bits = (packed[:, :, None] >> torch.arange(7, -1, -1, dtype=torch.uint8, device=self.device)) & 1
        return bits.flatten(1)[:, : self.size[0] * self.size[1]].unflatten(1, self.size).float()

    def _word_maps(self, index: Tensor) -> Tensor:
        """Share of each latent cell that belongs to phrases with a word, b words h w."""
        size = (self.size[0] // PIXELS_PER_LATENT, self.size[1] // PIXELS_PER_LATENT)
        most, maps = self.texts.shape[1], torch.zeros(len(index), len(self.columns), *size, device=self.device)
        for which in range(most):
            there = (self.texts_there[index] > which).to(self.device)
            planes = (self.first[index] + which).clamp(max=len(self.planes) - 1)
            cells = F.adaptive_avg_pool2d(self._masks(planes), size)
            held = self.held[planes.to(self.device)] * there[:, None]
            maps = torch.maximum(maps, held[:, :, None, None] * cells[:, None])
        return maps

    def _kept(self, size: int, generator: torch.Generator) -> Tensor:
        """Which inputs a row has, b 2: in `input_drop` of them no latents, in as many others no taps. Where a head
        reads no taps, the latents."""
        drawn = torch.rand(size, generator=generator)
        kept = torch.stack([drawn >= self.input_drop, drawn < 1 - self.input_drop], dim=1).float()
        if self.blind or not self.config.tap_specs:
            kept[:, 0], kept[:, 1] = 1, 0
        return kept

    @torch.no_grad()
    def _taught(self, masks: Tensor, latents: Tensor, text: Conditioning, generator: torch.Generator) -> Tensor:
        """Masks b 1 h w with the teacher's share in them; those of absent phrases stay empty."""
        if self.teacher is None:
            return masks
        taps = self._taps(latents, text, generator, self.teacher.head_config)
        soft = self.teacher.masks_over(self.host, latents, text, taps)[0].float().sigmoid()
        present = masks.amax(dim=(1, 2, 3), keepdim=True) > 0
        return torch.where(present, torch.lerp(masks, soft, TAUGHT), masks)

    def _taps(
        self, latents: Tensor, text: Conditioning, generator: torch.Generator, config: HeadConfig | None = None
    ) -> dict[str, Tensor]:
        """Those that a head of `config`, or the one that is trained, reads."""
        config = config or self.config
        blocks = list(config.tap_specs)
        if not blocks:
            return {}
        low, high = config.timestep_range
        timesteps = torch.randint(low, high + 1, (len(latents),), generator=generator)
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        taps = taps_of(self.host, self.host.add_noise(latents, noise, timesteps), timesteps, text, blocks)
        return {block: tap.float() for block, tap in taps.items()}


def _planes(caches: Sequence[Cache], device: torch.device) -> Tensor:
    """All masks, bit-packed; those of one large cache stay in its file."""
    if len(caches) == 1 and caches[0].planes.nbytes > KEPT_ON_DEVICE:
        return torch.from_numpy(caches[0].planes)
    return torch.cat([torch.from_numpy(np.array(cache.planes)) for cache in caches]).to(device)


def _padded(rows: Sequence[Sequence[float]], value: float) -> Tensor:
    """Rows of unequal length as one tensor, n k; at least one column."""
    longest = max(1, *map(len, rows)) if rows else 1
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])
