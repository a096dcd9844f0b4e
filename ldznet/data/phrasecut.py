"""PhraseCut (VGPhraseCut, Wu et al., CVPR 2020): phrases on Visual Genome's pictures, with polygons.

Form: README ("Annotation data structure"), `utils/refvg_loader.py`, `utils/file_paths.py` and `download_dataset.py` of
github.com/ChenyunWu/PhraseCutDataset. refer_{split}.json is a list of tasks {"image_id", "phrase", "Polygons"}, the
polygons by instance: [[[[x, y], …], …], …]. The size of each picture stands in image_data_split.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..shapes import Bool, Size
from .annotated import AnnotatedDataset, Entry, Records, Region, layered, read_json
from .regions import points, polygon_mask

SIZES = "image_data_split.json", "image_data_split3000.json"  # as the downloader writes it, and as it is published
EXCLUDED = frozenset(  # pictures whose size is another than their annotations say, which the paper's code leaves out
    (150417, 285665, 498246, 61564, 285743, 498269, 498010, 150516, 150344)
    + (286093, 61530, 150333, 286065, 285814, 498187, 285761, 498042)
)


class PhraseCutDataset(AnnotatedDataset):
    """One item per picture, with all its phrases: a second one of the same words has an item more (`layered`)."""

    def __init__(self, folder: Path | str, *, split: str = "test", size: int | None = 128) -> None:
        """`folder` is the one that download_dataset.py fills, VGPhraseCut_v0; `split` is train, val, test or miniv, or
        some of them joined as there: "val_miniv"; `size` as in `AnnotatedDataset`.

        Raises InputError for files that are missing or not of this form.
        """
        folder = Path(folder)
        sizes = _sizes(next((folder / name for name in SIZES if (folder / name).is_file()), folder / SIZES[0]))
        regions: dict[int | str, list[Region]] = {}
        for part in split.split("_"):
            index = folder / f"refer_{part}.json"
            content, records = read_json(index), Records(index)
            if not isinstance(content, list):
                raise records.error("a list of tasks as the whole", content)
            for task in content:
                records.found(sizes, task, "image_id")
                region = Region(records.field(task, "phrase", str), records.field(task, "Polygons", list))
                if task["image_id"] not in EXCLUDED:
                    regions.setdefault(task["image_id"], []).append(region)
        pictures = folder / "images"
        entries = [
            Entry(pictures / f"{image}.jpg", sizes[image], layer)
            for image, of_image in regions.items()
            for layer in layered(of_image)
        ]
        super().__init__(entries, _instance_mask, size=size)


def _sizes(path: Path) -> dict[int | str, Size]:
    """(height, width) by picture."""
    content, records = read_json(path), Records(path)
    if not isinstance(content, list):
        raise records.error("a list of pictures as the whole", content)
    return {records.key(image, "image_id"): records.size(image) for image in content}


def _instance_mask(polygons: Any, size: Size) -> Bool[np.ndarray, "h w"]:
    """The union of one instance's polygons."""
    if not isinstance(polygons, list):
        raise ValueError("an instance without polygons")
    mask = np.zeros(size, bool)
    for polygon in polygons:
        mask |= polygon_mask(points(polygon, size), size)
    return mask
