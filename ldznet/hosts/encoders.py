"""What SDXL's UNet wants of a text beyond SD 1.x's: two encoders' hidden states, a pooled text, and sizes.

Knows a diffusers pipeline by its parts, so it imports no diffusers. `hf_diffusers` alone imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ..contracts import Conditioning
from ..errors import HostError
from ..shapes import PIXELS_PER_LATENT, Float

POOLED = "pooled"
PARTS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")


class TwoEncoders:
    """A pipeline's CLIP-L and OpenCLIP-G. `tokenize` makes a rule for over-long text of a pipeline's tokenizer."""

    def __init__(
        self, pipeline: Any, tokenize: Callable[[Any, Any], Callable[[Sequence[str]], list[list[int]]]]
    ) -> None:
        for part in PARTS:
            if getattr(pipeline, part, None) is None:
                raise HostError(f"Expected a whole SDXL pipeline, got one with no {part}: load it with all its parts.")
        self.encoders = (pipeline.text_encoder, pipeline.text_encoder_2)
        self.tokenizes = [tokenize(pipeline, part) for part in (pipeline.tokenizer, pipeline.tokenizer_2)]

    @torch.no_grad()
    def condition(
        self,
        prompts: Sequence[str],
        device: torch.device,
        evaluating: Callable[[nn.Module], AbstractContextManager[None]],
    ) -> Conditioning:
        """Both encoders' hidden states before the last layer, side by side, and the second's projected text."""
        hidden = []
        for encoder, tokenize in zip(self.encoders, self.tokenizes, strict=True):
            with evaluating(encoder):
                out = encoder(torch.tensor(tokenize(prompts), device=device), output_hidden_states=True)
            hidden.append(out.hidden_states[-2])
        return Conditioning(torch.cat(hidden, dim=-1), {POOLED: out[0]})


def added(conditioning: Conditioning, latents: Float[Tensor, "b 4 h w"]) -> dict[str, Tensor]:
    """SDXL's `added_cond_kwargs`: the pooled text, and an original and a target size that are the latents' own, with
    no crop, each b 6 (height, width, top, left, height, width)."""
    size = [PIXELS_PER_LATENT * side for side in latents.shape[2:]]
    times = latents.new_tensor([*size, 0, 0, *size]).expand(len(latents), 6)
    return {"text_embeds": conditioning.extras[POOLED].to(latents), "time_ids": times}
