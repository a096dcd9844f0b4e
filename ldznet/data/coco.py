"""Instances with category names in COCO's format: what annotation tools export, and COCO itself publishes.

Form: "Object Detection" under cocodataset.org/#format-data, and github.com/cocodataset/cocoapi (`coco.py`, `mask.py`):
{"images": [{"id", "file_name", "height", "width"}], "categories": [{"id", "name"}], "annotations": [{"image_id",
"category_id", "segmentation", "iscrowd"}]}. `regions.coco_mask` says what a segmentation may be.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .annotated import AnnotatedDataset, Entry, Records, Region, read_json
from .regions import coco_mask


class CocoDataset(AnnotatedDataset):
    """Every picture of a COCO-format index; its phrases are the names of the categories that it has instances of.

    A phrase's mask is the union of the instances of that name. A crowd ("iscrowd": 1) belongs to it like an instance,
    for a phrase means all that it names, counted or not. Every other category's name is absent from the picture, which
    is true where each picture was searched for each category, as COCO's were.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        split: str = "val2017",
        annotations: Path | str | None = None,
        pictures: Path | str | None = None,
        size: int | None = 128,
    ) -> None:
        """`folder`/annotations/instances_`split`.json with pictures in `folder`/`split`, unless `annotations` (a file)
        and `pictures` (a folder) say otherwise; `size` as in `AnnotatedDataset`.

        Raises InputError for files that are missing or not of this form.
        """
        index = Path(annotations or Path(folder) / "annotations" / f"instances_{split}.json")
        entries, names = _entries(index, Path(pictures or Path(folder) / split))
        super().__init__(entries, coco_mask, size=size, vocabulary=names)


def _entries(index: Path, pictures: Path) -> tuple[list[Entry], list[str]]:
    """The pictures of an index, and the names of its categories, both in its order."""
    content, records = read_json(index), Records(index)
    categories = records.field(content, "categories", list)
    names = {records.key(category, "id"): records.field(category, "name", str) for category in categories}
    images = records.field(content, "images", list)
    outlines: dict[int | str, dict[str, list[Any]]] = {records.key(image, "id"): {} for image in images}
    for annotation in records.field(content, "annotations", list):
        segmentation = annotation.get("segmentation") if isinstance(annotation, dict) else None
        if not (segmentation and isinstance(segmentation, (list, dict))):
            raise records.error("a 'segmentation' in each annotation", annotation)
        of_image = records.found(outlines, annotation, "image_id")
        of_image.setdefault(records.found(names, annotation, "category_id"), []).append(segmentation)
    return [
        Entry(
            pictures / records.field(image, "file_name", str),
            records.size(image),
            tuple(Region(name, parts) for name, parts in outlines[image["id"]].items()),
        )
        for image in images
    ], list(dict.fromkeys(names.values()))
