"""The tiny world's second generator: SD 3's transformer in small, whose attention holds text and picture together.

diffusers' class at a small size over the same latents and the same text encoder: as in SD 3, two CLIPs stand side by
side (here twice the same), the rows of text are states before CLIP's last norm, and the pooled text is the state of the
end token after it. Flow matching: a timestep t in 0..1000 mixes latents and noise as (1 - t/1000) and t/1000, and what
is predicted is noise minus latents (Esser et al., ICML 2024). Training and benchmarks import it; no host does.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints import load_weights
from ..checkpoints.load import WEIGHTS
from ..clip_bpe import Tokenizer
from ..errors import InputError
from ..shapes import Float, Int
from .text import TextEncoder

ROWS = 32  # of text: the longest caption of a training scene has 25 words
ENCODERS = 2  # SD 3's CLIP-L and CLIP-G; here one encoder's states twice
TEXT_WIDTH = 64
NUM_TIMESTEPS = 1000
CONFIG: dict[str, Any] = {
    "sample_size": 16,
    "patch_size": 2,  # 64 rows of the picture: a training sample costs a quarter of what 256 rows do
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 64,  # ComfyUI's class knows no other
    "num_attention_heads": 2,
    "joint_attention_dim": ENCODERS * TEXT_WIDTH,
    "caption_projection_dim": 128,
    "pooled_projection_dim": ENCODERS * TEXT_WIDTH,
    "pos_embed_max_size": 16,
    "qk_norm": "rms_norm",
}


def fresh(**sizes: Any) -> nn.Module:
    """An untrained SD3Transformer2DModel of `CONFIG`, with `sizes` in place of some of it.

    What modulates and gates a block, and the last layer, begin at zero (Peebles and Xie, ICCV 2023). Raises InputError
    where diffusers is missing.
    """
    try:
        from diffusers import SD3Transformer2DModel
    except ImportError as error:
        raise InputError(
            f'Expected diffusers, whose SD 3 transformer this is, got: {error}. pip install "ldznet[diffusers]"'
        ) from error
    made: Any = SD3Transformer2DModel(**{**CONFIG, **sizes})
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if (".norm1" in name and ".linear." in name) or name.startswith(("norm_out.linear", "proj_out")):
                parameter.zero_()
    return made


def load(weights: Path = WEIGHTS) -> nn.Module:
    """The trained transformer in the folder `weights`, frozen, in float32."""
    made: nn.Module = load_weights(fresh(), weights / "sd3.safetensors")
    return made.eval().requires_grad_(False)


def token_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The `ROWS` ids of a text: start, its tokens, end, and padding. Raises InputError with the count of too many."""
    count = len(tokenizer.ids(text))
    if count > ROWS - 2:
        raise InputError(f'Expected at most {ROWS - 2} tokens, got {count}: shorten "{text[:40]}…".')
    return tokenizer.encode(text)[:ROWS]


@torch.no_grad()
def read(text: TextEncoder, ids: Int[Tensor, "b n"]) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b d"]]:
    """What the transformer is given of token ids: the rows of text, and the pooled text."""
    states = text.states(ids)
    end = (ids == ids[:, -1:]).int().argmax(dim=1)  # the padding repeats the token of the end
    pooled = text.text_model["final_layer_norm"](
        states[torch.arange(len(ids), dtype=torch.int64, device=ids.device), end]
    )
    return states.repeat(1, 1, ENCODERS), pooled.repeat(1, ENCODERS)


@torch.no_grad()
def sample(
    transformer: nn.Module,
    noise: Float[Tensor, "b c h w"],
    text: tuple[Tensor, Tensor],
    empty: tuple[Tensor, Tensor],
    steps: int = 28,
    guidance: float = 4.0,
) -> Float[Tensor, "b c h w"]:
    """Clean latents from `noise`, by Euler's method in equal steps of t, with classifier-free guidance.

    `text` and `empty` are what `read` gives of the captions and of as many empty texts.
    """
    context, pooled = (torch.cat(pair) for pair in zip(empty, text, strict=True))
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float32, device="cpu").tolist()
    x = noise
    for now, after in pairwise(times):
        t = torch.full((2 * len(x),), now * NUM_TIMESTEPS, dtype=torch.float32, device=x.device)
        free, captioned = transformer(torch.cat([x, x]), context, pooled, t, return_dict=False)[0].chunk(2)
        x = x + (after - now) * (free + guidance * (captioned - free))
    return x
