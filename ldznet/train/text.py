"""Training the tiny world's text encoder, alone and before the LDM: each word's state must say which word it is.

Trained with the UNet, as before, the encoder drew together the words that the pictures did not yet tell apart: the
states of star, fish, heart and others lay a fifth as far from each other as those of other things, and what is one for
the encoder no later training of UNet or head can part. Stable Diffusion's encoder comes from CLIP (Radford et al., ICML
2021), whose contrastive loss parts what has different pictures; here, where each word is one token, a cosine softmax
over the vocabulary does it. The words before are read as well, by linear layers, so that a noun's state keeps
its attributes: "red" in "a red star". An encoder that goes on stays close to what it said.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..clip_bpe import Tokenizer
from ..tinyworld.text import TextEncoder

TEMPERATURE = 0.07  # CLIP's at the start
WORDS_BEFORE = 2  # a pattern and a colour
CLOSENESS = 20.0  # weight of the mean squared distance to what the encoder said before


class Reading(nn.Module):
    """Text encoder and readers of its states as a module whose forward is the loss."""

    def __init__(self, text: TextEncoder, former: TextEncoder | None) -> None:
        super().__init__()
        width, words = text.config.hidden_size, text.config.vocab_size
        self.text = text
        self.frozen = (former.requires_grad_(False) if former else None,)  # a tuple hides it
        self.prototypes = nn.Parameter(torch.randn(words, width))
        self.before = nn.ModuleList(nn.Linear(width, words) for _ in range(WORDS_BEFORE))

    def forward(self, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        states = self.text(ids)
        ended = (ids == ids[:, -1:]).cumsum(1) > 1  # the padding repeats the token of the end
        cosines = F.normalize(states, dim=-1) @ F.normalize(self.prototypes, dim=-1).T
        same = F.cross_entropy((cosines / TEMPERATURE)[~ended], ids[~ended])
        before = [
            F.cross_entropy(read(states[:, n:])[~ended[:, n:]], ids[:, :-n][~ended[:, n:]])
            for n, read in enumerate(self.before, 1)
        ]
        loss = same + torch.stack(before).sum()
        figures = {"own": same.detach(), "before": before[0].detach(), "before that": before[1].detach()}
        (former,) = self.frozen
        if former:
            moved = ((states - former(ids)) ** 2).mean()
            loss = loss + CLOSENESS * moved
            figures["moved"] = moved.detach()
        return loss, figures


class TextTask:
    """Batches of captions. With `goes_on`, `text` stays close to what it says now."""

    def __init__(self, text: TextEncoder, tokenizer: Tokenizer, captions: Iterable[str], goes_on: bool) -> None:
        self.module = Reading(text, copy.deepcopy(text) if goes_on else None)
        self.ids = torch.tensor([tokenizer.encode(caption) for caption in captions], dtype=torch.int16)

    def batch(self, step: int, size: int, generator: torch.Generator) -> Tensor:
        return self.ids[torch.randint(len(self.ids), (size,), generator=generator)].long()

    def loss(self, module: nn.Module, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return module(batch)
