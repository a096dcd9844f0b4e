"""The tiny world's text encoder: CLIP's text transformer at width 64, under transformers' `CLIPTextModel` names.

Run as ComfyUI runs CLIP: 77 positions, causal mask, quick-gelu, the last layer's output after the final norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..models.layers import drawn
from ..shapes import Float, Int


@dataclass(frozen=True)
class TextConfig:
    """Sizes, under the names of transformers' CLIPTextConfig."""

    vocab_size: int
    hidden_size: int = 64
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    intermediate_size: int = 256
    max_position_embeddings: int = 77


class SelfAttention(nn.Module):
    """Causal multi-head self-attention with biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        q, k, v = (
            rearrange(p(x), "b n (h c) -> b h n c", h=self.heads) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(rearrange(out, "b h n c -> b n (h c)"))


class MLP(nn.Module):
    """Two linear layers around quick-gelu, x · sigmoid(1.702 x)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        h = self.fc1(x)
        return self.fc2(h * torch.sigmoid(1.702 * h))


class EncoderLayer(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.self_attn = SelfAttention(width, config.num_attention_heads)
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = MLP(width, config.intermediate_size)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Embeddings(nn.Module):
    """Token plus position."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.token_embedding = _embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = _embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]


def _embedding(rows: int, width: int) -> nn.Embedding:
    table = nn.Parameter(drawn(torch.empty(rows, width), 0.02))
    return nn.Embedding.from_pretrained(table, freeze=False)


class TextEncoder(nn.Module):
    """Token ids to context. Parameter names begin with `text_model.`, as in a CLIPTextModel's state dict."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        layers = (EncoderLayer(config) for _ in range(config.num_hidden_layers))  # drawn after the embeddings
        parts = {
            "embeddings": Embeddings(config),
            "encoder": nn.ModuleDict({"layers": nn.ModuleList(layers)}),
            "final_layer_norm": nn.LayerNorm(config.hidden_size),
        }
        self.text_model = nn.ModuleDict(parts)

    def forward(self, ids: Int[Tensor, "b 77"]) -> Float[Tensor, "b 77 d"]:
        """The context of 77 token ids each: last hidden state after the final norm."""
        return self.text_model["final_layer_norm"](self.states(ids))

    def states(self, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        """The last hidden state before the final norm, of up to 77 token ids each."""
        x = self.text_model["embeddings"](ids)
        for layer in self.text_model["encoder"].get_submodule("layers").children():
            x = layer(x)
        return x
