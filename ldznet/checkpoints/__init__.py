"""Heads in files: `formats` (tables of what is known), `files` and `pickles` (reading, writing), `load`, `convert`.

Safetensors hold tensors and plain metadata; pickles are read and never run.
"""

from .files import save_tensors
from .load import load_head, load_weights, save_head

__all__ = ["load_head", "load_weights", "save_head", "save_tensors"]
