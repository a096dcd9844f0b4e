"""The tiny world in the shapes that ComfyUI's classes take: configurations, state dicts, stand-ins. Knows no comfy.

`hosts/comfyui_world.py` builds ComfyUI's own objects with it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..clip_bpe import Tokenizer
from ..shapes import Float
from ..tinyworld import world
from ..tinyworld.text import TextConfig
from ..tinyworld.vae import TinyVAE

TOKEN_TABLE = "text_model.embeddings.token_embedding.weight"

SHELL = {  # the smallest first stage that ComfyUI's VAE builds itself; the tiny one takes its place
    "double_z": True,
    "z_channels": 4,
    "resolution": 32,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}


LATENT_COLOURS = [  # RGB in [-1, 1] of model-space latents, by channel: least squares over encoded scenes
    [0.2383, 0.1461, 0.1409],
    [0.3112, 0.2615, 0.0592],
    [-0.0121, 0.0144, -0.3051],
    [-0.1265, 0.2094, 0.1417],
]
LATENT_BIAS = [0.1310, 0.1320, 0.1195]


def unet_config() -> dict[str, Any]:
    """ComfyUI's configuration of SD 1.5's UNet, at the tiny world's widths."""
    tiny = world.UNET
    attends = [int(2**level in tiny.attention_downsampling) for level in range(len(tiny.channel_mult))]
    return {
        "image_size": 32,
        "in_channels": tiny.in_channels,
        "out_channels": tiny.out_channels,
        "model_channels": tiny.model_channels,
        "num_res_blocks": [tiny.num_res_blocks] * len(tiny.channel_mult),
        "channel_mult": list(tiny.channel_mult),
        "num_heads": tiny.num_heads,
        "num_head_channels": -1,
        "use_spatial_transformer": True,
        "transformer_depth": [depth for depth in attends for _ in range(tiny.num_res_blocks)],
        "transformer_depth_middle": 1,
        "transformer_depth_output": [depth for depth in attends for _ in range(tiny.num_res_blocks + 1)],
        "context_dim": tiny.context_dim,
        "legacy": False,
        "use_linear_in_transformer": False,
        "adm_in_channels": None,
        "use_temporal_attention": False,
        "num_classes": None,
    }


def text_config() -> dict[str, Any]:
    """CLIP's configuration, at the tiny world's sizes."""
    words = world.tokenizer()
    sizes = TextConfig(len(words.vocabulary))
    return {**vars(sizes), "hidden_act": "quick_gelu", "eos_token_id": words.end}


def text_state(text: nn.Module, rows: int) -> dict[str, Tensor]:
    """The text encoder's state dict, its token table padded to `rows` (49,408 whatever the vocabulary)."""
    state = dict(text.state_dict())
    table = state[TOKEN_TABLE]
    state[TOKEN_TABLE] = torch.cat([table, table.new_zeros(rows - len(table), table.shape[1])])
    state["text_projection.weight"] = torch.eye(table.shape[1], dtype=table.dtype, device=table.device)
    return state


class Words:
    """The tiny vocabulary, with as much of transformers' CLIPTokenizer as ComfyUI's prompt parser calls."""

    def __init__(self, words: Tokenizer) -> None:
        self._words = words

    @classmethod
    def from_pretrained(cls, path: str, **_: Any) -> Words:
        """The embedded vocabulary, whatever `path`."""
        return cls(world.tokenizer())

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [self._words.start, *self._words.ids(text), self._words.end]}

    def get_vocab(self) -> dict[str, int]:
        """Ids by symbol."""
        return dict(self._words.vocabulary)


class FirstStage(nn.Module):
    """The tiny VAE under the two calls of ComfyUI's: latents are before the scale factor."""

    def __init__(self, vae: TinyVAE) -> None:
        super().__init__()
        self.vae = vae

    def encode(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 4 h/8 w/8"]:
        """The posterior's mode for pixels in [-1, 1]."""
        return self.vae.moments(pixels)[0]

    def decode(self, latents: Float[Tensor, "b 4 h w"], **_: Any) -> Float[Tensor, "b 3 8*h 8*w"]:
        """Pixels, about [-1, 1]."""
        return self.vae.decoder(latents)
