"""Masks without a trained head, from the attention of whatever Stable Diffusion is loaded.

`config` holds every constant, `prompts` the words and where they are, `reading` the hooks, `maps` the steps of the
recipe, `finding` the walk through them, `presence` what tells absent from present, `head` the passes that are read, and
`captured` what a sampler left behind in their place. The predictor's side may import it.
"""

from .captured import CapturedAttention, CapturedTexts
from .config import CONFIGS, AttentionConfig, Presence
from .head import AttentionHead

__all__ = ["CONFIGS", "AttentionConfig", "AttentionHead", "CapturedAttention", "CapturedTexts", "Presence"]
