"""A tiny world in which the whole method can be proved: rendered scenes with exact masks, and models trained on them.

It supports mechanisms, not Stable-Diffusion-scale numbers.
"""

from .scenes import CATEGORIES, COLOURS, DOMAINS, PATTERNS, STUFF, Scene, Thing, scene

__all__ = ["CATEGORIES", "COLOURS", "DOMAINS", "PATTERNS", "STUFF", "Scene", "Thing", "scene"]
