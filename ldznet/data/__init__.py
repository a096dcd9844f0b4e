"""Datasets: images with captions, phrases and their masks. To add one: a file here and a line in `DATASETS`."""

from .aigi import AigiDataset
from .coco import CocoDataset
from .folder import FolderDataset
from .items import Item
from .phrasecut import PhraseCutDataset
from .refcoco import GRefDataset, RefCocoDataset, RefCocoPlusDataset
from .tinyworld import TinyWorldDataset, TinyWorldTest

DATASETS = {
    "tinyworld": TinyWorldDataset,
    "folder": FolderDataset,
    "aigi": AigiDataset,
    "coco": CocoDataset,
    "phrasecut": PhraseCutDataset,
    "refcoco": RefCocoDataset,
    "refcoco+": RefCocoPlusDataset,
    "gref": GRefDataset,
}

__all__ = [
    "DATASETS",
    "AigiDataset",
    "CocoDataset",
    "FolderDataset",
    "GRefDataset",
    "Item",
    "PhraseCutDataset",
    "RefCocoDataset",
    "RefCocoPlusDataset",
    "TinyWorldDataset",
    "TinyWorldTest",
]
