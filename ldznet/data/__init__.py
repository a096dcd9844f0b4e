"""Datasets: images with captions, phrases and their masks. To add one: a file here and a line in `DATASETS`."""

from .folder import FolderDataset
from .items import Item
from .tinyworld import TinyWorldDataset

DATASETS = {
    "tinyworld": TinyWorldDataset,
    "folder": FolderDataset,
}

__all__ = ["DATASETS", "FolderDataset", "Item", "TinyWorldDataset"]
