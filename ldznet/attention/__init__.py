"""Masks without a trained head, from the attention of whatever Stable Diffusion is loaded.

`config` holds every constant, `prompts` the words and where they are, `reading` the hooks, `maps` the steps of the
recipe, `presence` what tells absent from present, `head` the walk through them, `captured` the same for what a sampler
left behind. The predictor's side may import it.
"""

from .captured import CapturedAttention
from .config import CONFIGS, AttentionConfig, Presence
from .head import AttentionHead

__all__ = ["CONFIGS", "AttentionConfig", "AttentionHead", "CapturedAttention", "Presence"]
