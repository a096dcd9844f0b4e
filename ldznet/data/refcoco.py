"""RefCOCO, RefCOCO+ (Kazemzadeh et al. 2014, Yu et al. 2016) and G-Ref (RefCOCOg, Mao et al. 2016).

Form: README, data/README.md and refer.py of github.com/lichengunc/refer. refs(BY).p is a pickle of a list of
{"image_id", "ann_id", "split", "sentences": [{"sent"}]}, read by `checkpoints.plain_pickles`, which runs nothing of it;
instances.json is COCO's format, of which "images" and "annotations" are read.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from ..checkpoints.plain_pickles import read_pickle
from ..errors import InputError
from .annotated import PAGE, AnnotatedDataset, Entry, Records, Region, layered, read_json, require_files
from .regions import coco_mask

PICTURES = Path("images/mscoco/images/train2014")  # where refer.py looks for them


class RefDataset(AnnotatedDataset):
    """One item per picture with all expressions of a split: a second one of the same words has an item more
    (`layered`), so that each of them is counted. A referent's mask is drawn by COCO's rule."""

    name: ClassVar[str]  # of its folder
    splits_by: ClassVar[tuple[str, ...]]  # whose splits there are; the first is the usual one

    def __init__(
        self,
        folder: Path | str,
        *,
        split: str = "val",
        by: str | None = None,
        pictures: Path | str | None = None,
        size: int | None = 128,
    ) -> None:
        """`folder` is refer's data folder. `by` says who made the split: unc, google or umd, as far as there is one;
        `split` is its name, where "test" is testA and testB together; `pictures` is the folder of COCO's train2014,
        unless it lies where refer.py looks for it; `size` as in `AnnotatedDataset`.

        Raises InputError for files that are missing or not of this form, and for splits that there are not.
        """
        by = self.splits_by[0] if by is None else by
        if by not in self.splits_by:
            raise InputError(f"Expected a split of {self.name} by {' or '.join(self.splits_by)}, got {by!r}.")
        refs, instances = Path(folder) / self.name / f"refs({by}).p", Path(folder) / self.name / "instances.json"
        require_files([refs, instances])
        entries = _entries(refs, split, instances, Path(pictures or Path(folder) / PICTURES))
        super().__init__(entries, coco_mask, size=size)


class RefCocoDataset(RefDataset):
    """RefCOCO: unc has train, val, testA (people) and testB (other things); google has train, val, test."""

    name = "refcoco"
    splits_by = "unc", "google"


class RefCocoPlusDataset(RefDataset):
    """RefCOCO+: without words of place; train, val, testA (people) and testB (other things)."""

    name = "refcoco+"
    splits_by = ("unc",)


class GRefDataset(RefDataset):
    """G-Ref: whole sentences; umd has train, val, test that share no picture, google has train and val."""

    name = "refcocog"
    splits_by = "umd", "google"


def _entries(index: Path, split: str, instances: Path, pictures: Path) -> list[Entry]:
    regions = _regions(index, split)
    content, records = read_json(instances), Records(instances)
    images = {records.key(image, "id"): image for image in records.field(content, "images", list)}
    outlines = {records.key(a, "id"): a for a in records.field(content, "annotations", list)}
    entries = []
    for image, of_image in regions.items():
        record = records.found(images, {"image_id": image}, "image_id")
        path, size = pictures / records.field(record, "file_name", str), records.size(record)
        drawn = [
            Region(sent, [records.found(outlines, {"ann_id": ann}, "ann_id").get("segmentation")])
            for sent, ann in of_image
        ]
        entries += [Entry(path, size, layer) for layer in layered(drawn)]
    return entries


def _regions(index: Path, split: str) -> dict[int | str, list[tuple[str, int | str]]]:
    """The expressions of a split by picture, each with the annotation that it refers to."""
    content, records = read_pickle(index), Records(index)
    if type(content) is not list:
        raise records.error("a list of references as the whole", content)
    regions: dict[int | str, list[tuple[str, int | str]]] = {}
    there: dict[str, None] = {}
    for ref in content:
        its_split = records.field(ref, "split", str)
        there[its_split] = None
        if its_split == split or (split == "test" and its_split.startswith("test")):
            sentences = [records.field(s, "sent", str) for s in records.field(ref, "sentences", list)]
            annotation = records.key(ref, "ann_id")
            regions.setdefault(records.key(ref, "image_id"), []).extend((s, annotation) for s in sentences)
    if not regions:
        raise InputError(f"Expected a split of {index} ({', '.join(there)}), got {split!r}. {PAGE}")
    return regions
