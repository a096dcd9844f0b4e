"""AIGI, the paper's own set: 100 generated pictures from lexica.art with 214 labelled objects (PNVR et al., ICCV 2023).

Form: unknown. The README of github.com/koutilya-pnvr/LD-ZNet and the project's page say what the set holds and link to
a folder on Google Drive; neither says how its files are named or what its masks are, and no code of theirs reads them.
So its pictures and masks are listed in an index.jsonl, as `folder.py` describes it.
"""

from __future__ import annotations

from pathlib import Path

from .folder import FolderDataset


class AigiDataset(FolderDataset):
    """A folder's items, squashed to `size` x `size` pixels so that no object is cut off; as they are with `size` None.

    Masks of several objects under one caption belong into one file: a phrase means all that it names.
    """

    def __init__(self, folder: Path | str, *, size: int | None = 384) -> None:
        """`folder` has the pictures, the masks and their index.jsonl. Raises InputError as `FolderDataset` does."""
        super().__init__(folder, size=size, cropped=False)
