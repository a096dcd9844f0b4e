"""The text encoders of a diffusers model: SD 1.x's and 2.x's one, SDXL's two with the pooled text and the sizes.

Knows models and tokenizers by what they do, so it imports neither diffusers nor transformers; `hf_diffusers` alone
imports it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..clip_bpe import CONTEXT_LENGTH, Tokenizer, require_length
from ..contracts import Conditioning
from ..shapes import PIXELS_PER_LATENT, Float
from ..taps import exclusively

POOLED = "pooled"


class Words(NamedTuple):
    """A tokenizer: `rows` gives 77 ids a text or raises InputError with their count, `ids` those of any text alone."""

    rows: Callable[[Sequence[str]], list[list[int]]]
    ids: Callable[[str], list[int]]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Words:
        """Our own."""
        return cls(lambda texts: [tokenizer.encode(text) for text in texts], tokenizer.ids)

    @classmethod
    def of_pipeline(cls, pipeline: Any, tokenizer: Any) -> Words:
        """A pipeline's with its textual inversions, behind our rule for over-long text: an error where it would cut."""

        def spelled_out(texts: list[str]) -> list[str]:
            """With textual inversions of several vectors as as many tokens."""
            convert = getattr(pipeline, "maybe_convert_prompt", None)
            return texts if convert is None else convert(texts, tokenizer)

        def rows(texts: Sequence[str]) -> list[list[int]]:
            spelled = spelled_out(list(texts))
            found = tokenizer(spelled, padding="max_length", max_length=CONTEXT_LENGTH, truncation=False).input_ids
            for text, row in zip(texts, found, strict=True):
                require_length(text, len(row) - 2)
            return found

        return cls(rows, lambda text: tokenizer(spelled_out([text])[0], add_special_tokens=False).input_ids)


class OneEncoder:
    """CLIP's last hidden state after the final norm."""

    def __init__(self, encoder: Any, words: Words) -> None:
        self.encoders, self.ids, self._words = (encoder,), words.ids, words

    @torch.no_grad()
    def condition(self, prompts: Sequence[str], device: torch.device) -> Conditioning:
        """The context of each prompt."""
        (encoder,) = self.encoders
        with evaluating(encoder):
            return Conditioning(encoder(torch.tensor(self._words.rows(prompts), dtype=torch.int64, device=device))[0])


class TwoEncoders:
    """SDXL's CLIP-L and OpenCLIP-G: their hidden states before the last layer side by side, and the pooled text."""

    def __init__(self, encoders: Sequence[Any], words: Sequence[Words]) -> None:
        self.encoders, self.ids, self._words = tuple(encoders), words[0].ids, tuple(words)

    @torch.no_grad()
    def condition(self, prompts: Sequence[str], device: torch.device) -> Conditioning:
        """The context of each prompt, and under "pooled" the second encoder's projected text."""
        hidden = []
        for encoder, words in zip(self.encoders, self._words, strict=True):
            with evaluating(encoder):
                out = encoder(
                    torch.tensor(words.rows(prompts), dtype=torch.int64, device=device), output_hidden_states=True
                )
            hidden.append(out.hidden_states[-2])
        return Conditioning(torch.cat(hidden, dim=-1), {POOLED: out[0]})


Texts = OneEncoder | TwoEncoders


def added(conditioning: Conditioning, latents: Float[Tensor, "b 4 h w"]) -> dict[str, Tensor]:
    """SDXL's `added_cond_kwargs`: the pooled text, and an original and a target size that are the latents' own, with
    no crop, each b 6 (height, width, top, left, height, width)."""
    size = [PIXELS_PER_LATENT * side for side in latents.shape[2:]]
    times = latents.new_tensor([*size, 0, 0, *size]).expand(len(latents), 6)
    return {"text_embeds": conditioning.extras[POOLED].to(latents), "time_ids": times}


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """`module` in evaluation mode and this thread's alone inside; every submodule's own training flag is put back
    whatever happens."""
    with exclusively(module):
        in_training = [m for m in module.modules() if m.training]
        try:
            module.eval()
            yield
        finally:
            for m in in_training:
                m.training = True
