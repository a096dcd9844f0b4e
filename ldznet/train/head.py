"""Training a head: ZNet or LD-ZNet on latents, phrases and masks, with absent phrases as negatives.

Mean pixel cross-entropy as in the paper, a soft Dice term (small things weigh as much as large ones), cross-entropy
on the presence output, and one more that is thrown away with the training: a linear reading of the last features says
where every word of the data is, whichever phrase was asked for. One phrase names one thing; the words name all that
the image holds, so that telling categories apart is learned in a fraction of the steps. The denoising UNet and the
text encoder are frozen.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..contracts import Host
from ..data.cache import Cache
from ..errors import InputError
from ..models import LDZNet
from ..phrases import ARTICLES, fill
from .engine import channels_last

ABSENT_SHARE = 0.3
STUFF_WEIGHT = 0.3  # of drawing a phrase of stuff, against one of a thing: stuff is learned long before
DICE_WEIGHT, PRESENCE_WEIGHT, WORDS_WEIGHT = 1.0, 0.2, 0.3
MOST_WORDS = 64  # the commonest of the data


def start_from(head: LDZNet, module: nn.Module) -> int:
    """Copies every parameter of `module` (a UNet or a head) whose name and shape `head` shares; returns how many."""
    source, target = module.state_dict(), head.state_dict()
    shared = {name: t for name, t in source.items() if name in target and target[name].shape == t.shape}
    head.load_state_dict({**target, **shared})
    return len(shared)


class Segmenting(nn.Module):
    """A head as a module whose forward is the loss."""

    def __init__(self, head: LDZNet, words: int) -> None:
        super().__init__()
        self.head = head
        self.words = nn.Conv2d(head.head_config.unet.model_channels, words, 1)
        nn.init.zeros_(self.words.weight)  # or its first guesses would disturb a head that goes on

    def forward(
        self, latents: Tensor, context: Tensor, taps: dict[str, Tensor], masks: Tensor, words: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        zeros = torch.zeros(len(latents), dtype=torch.int64, device=latents.device)
        features = self.head.features(latents, zeros, context, taps)
        logits, presence = self.head.read(features)
        present = masks.amax(dim=(1, 2, 3))
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


def commonest_words(cache: Cache) -> list[str]:
    """The words that most phrases of `cache` hold, articles left out; at most MOST_WORDS."""
    counts = Counter(word for record in cache.records for phrase in record["phrases"] for word in content_words(phrase))
    return [word for word, _ in counts.most_common(MOST_WORDS)]


def content_words(phrase: str) -> list[str]:
    """The words of a phrase but for its articles."""
    return [word for word in phrase.lower().split() if word not in ARTICLES]


class HeadTask:
    """Batches of (latents, context, taps, mask). Contexts of all phrases are encoded once, taps at every step."""

    def __init__(self, head: LDZNet, host: Host, cache: Cache) -> None:
        if cache.latents is None:
            raise ValueError("Expected a cache with latents, got one without. Call add_latents first.")
        self.host, self.cache, self.config = host, cache, head.head_config
        self.latents = cache.latents
        self.usable = np.array([i for i, r in enumerate(cache.records) if r["phrases"] or r["absent"]])
        if len(self.usable) == 0:
            raise InputError("Expected images with phrases, got none that has any. Give masks in index.jsonl.")
        self.columns = {word: column for column, word in enumerate(commonest_words(cache))}
        self.module = channels_last(Segmenting(head, len(self.columns)))
        phrases = sorted({p for record in cache.records for p in (*record["phrases"], *record["absent"])})
        self.rows = {phrase: row for row, phrase in enumerate(phrases)}
        texts = [fill(self.config.template, phrase) for phrase in phrases]
        self.context = torch.cat([host.encode_text(texts[i : i + 256]) for i in range(0, len(texts), 256)])

    def batch(self, step: int, size: int, generator: torch.Generator) -> tuple:
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        index = rng.choice(self.usable, size)
        drawn = [self._phrase(i, rng) for i in index]
        context = self.context[[self.rows[phrase] for phrase, _ in drawn]]
        masks = torch.from_numpy(np.stack([mask for _, mask in drawn])).float()[:, None]
        latents = self.latents[torch.from_numpy(index)].float()
        return (
            latents.contiguous(memory_format=torch.channels_last),
            context,
            self._taps(latents, context, generator),
            masks,
            self._word_maps(index),
        )

    def loss(self, module: nn.Module, batch: tuple) -> tuple[Tensor, dict[str, Tensor]]:
        return module(*batch)

    def _phrase(self, i: int, rng: np.random.Generator) -> tuple[str, np.ndarray]:
        """A phrase of item `i` and its mask; an absent one (mask of zeros) with probability ABSENT_SHARE."""
        record = self.cache.records[i]
        if record["absent"] and (not record["phrases"] or rng.random() < ABSENT_SHARE):
            return str(rng.choice(record["absent"])), np.zeros(self.cache.images.shape[1:3], bool)
        weights = np.array([STUFF_WEIGHT if kind == "stuff" else 1.0 for kind in record["kinds"]])
        which = int(rng.choice(len(weights), p=weights / weights.sum()))
        return record["phrases"][which], self.cache.mask(i, which)

    def _word_maps(self, index: np.ndarray) -> Tensor:
        """Share of each latent cell that belongs to phrases with a word, b words h w."""
        size = (self.latents.shape[2], self.latents.shape[3])
        maps = torch.zeros(len(index), len(self.columns), *size)
        for row, i in enumerate(index):
            for which, phrase in enumerate(self.cache.records[i]["phrases"]):
                mask = torch.from_numpy(self.cache.mask(i, which)).float()
                cells = F.adaptive_avg_pool2d(mask[None], size)[0]
                for word in content_words(phrase):
                    if word in self.columns:
                        plane = maps[row, self.columns[word]]
                        torch.maximum(plane, cells, out=plane)
        return maps

    def _taps(self, latents: Tensor, context: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        blocks = list(self.config.tap_specs)
        if not blocks:
            return {}
        low, high = self.config.timestep_range
        timesteps = torch.randint(low, high + 1, (len(latents),), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        return dict(self.host.extract(self.host.add_noise(latents, noise, timesteps), timesteps, context, blocks))
