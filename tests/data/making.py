"""Three-item datasets for the tests. Not a test itself."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ldznet.data import (
    AigiDataset,
    CocoDataset,
    FolderDataset,
    GRefDataset,
    PhraseCutDataset,
    RefCocoDataset,
    RefCocoPlusDataset,
    TinyWorldDataset,
)
from ldznet.data.items import Dataset

SIDE = 64


def picture(path: Path, size: tuple[int, int], left: str = "red", orientation: int = 1) -> None:
    """A picture (width, height) as stored: `left` half of that colour, right half blue; lossless."""
    image = Image.new("RGB", size, "blue")
    image.paste(left, (0, 0, size[0] // 2, size[1]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)


def mask(path: Path, size: tuple[int, int]) -> None:
    """White on the left half."""
    values = np.zeros(size[::-1], np.uint8)
    values[:, : size[0] // 2] = 255
    Image.fromarray(values).save(path)


def index(folder: Path, *records: Any) -> Path:
    """The folder, with an index of these records; text is taken as it is."""
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (folder / "index.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def folder(path: Path) -> FolderDataset:
    """An image with two masks, one that a camera held upright, and one that nothing is known of."""
    picture(path / "a.png", (60, 60))
    mask(path / "a_red.png", (60, 60))
    mask(path / "a_left.png", (60, 60))
    picture(path / "b.png", (80, 40), orientation=6)
    picture(path / "c.png", (33, 50), left="green")
    return FolderDataset(
        index(
            path,
            {"image": "a.png", "captions": ["one", "two"], "masks": {"red": "a_red.png", "left": "a_left.png"}},
            {"image": "b.png", "absent": ["a cat"], "captions": ["upright"]},
            {"image": "c.png"},
        ),
        size=SIDE,
    )


def aigi(path: Path) -> AigiDataset:
    """The folder's three pictures, nothing cut off."""
    folder(path)
    return AigiDataset(path, size=SIDE)


def tinyworld(path: Path) -> TinyWorldDataset:
    """Three scenes of a few pixels."""
    return TinyWorldDataset(3, size=SIDE)


def square(left: float, right: float, top: float, bottom: float) -> list[float]:
    """COCO's polygon of that rectangle: x, y, x, y …"""
    return [left, top, right, top, right, bottom, left, bottom]


COCO: dict[str, Any] = {
    "info": {"description": "three"},
    "images": [
        {"license": 1, "file_name": "a.png", "height": 60, "width": 60, "id": 397133},
        {"license": 1, "file_name": "b.png", "height": 40, "width": 80, "id": 37777},
        {"license": 1, "file_name": "c.png", "height": 50, "width": 33, "id": 252219},
    ],
    "annotations": [
        {"id": 1, "image_id": 397133, "category_id": 18, "iscrowd": 0, "segmentation": [square(0, 30, 0, 60)]},
        {
            "id": 900100,
            "image_id": 397133,
            "category_id": 1,
            "iscrowd": 1,
            "segmentation": {"size": [60, 60], "counts": [1800, 1800]},
        },
        {"id": 2, "image_id": 37777, "category_id": 18, "iscrowd": 0, "segmentation": [square(0, 20, 0, 40)]},
        {
            "id": 3,
            "image_id": 37777,
            "category_id": 18,
            "iscrowd": 0,
            "segmentation": {"size": [40, 80], "counts": "P[2Pi0"},
        },
    ],
    "categories": [
        {"supercategory": "person", "id": 1, "name": "person"},
        {"supercategory": "animal", "id": 18, "name": "dog"},
    ],
}


def three_pictures(path: Path, names: tuple[str, str, str] = ("a.png", "b.png", "c.png")) -> None:
    """Pictures of unequal sizes, red on the left."""
    path.mkdir(parents=True, exist_ok=True)
    for name, size in zip(names, ((60, 60), (80, 40), (33, 50)), strict=True):
        picture(path / name, size)


def written(path: Path, content: Any) -> Path:
    """A file of JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def coco(path: Path) -> CocoDataset:
    """As COCO publishes it: annotations/instances_val2017.json, pictures in val2017.

    Fields: "Object Detection" under cocodataset.org/#format-data. Polygons for single objects, runs for crowds, runs
    in text where pycocotools wrote them: `annToRLE` in PythonAPI/pycocotools/coco.py of cocodataset/cocoapi.
    """
    three_pictures(path / "val2017")
    written(path / "annotations" / "instances_val2017.json", COCO)
    return CocoDataset(path, size=SIDE)


def task(image: int, phrase: str, *instances: Any) -> dict[str, Any]:
    """A task of PhraseCut, "Annotation data structure" in the README of ChenyunWu/PhraseCutDataset: polygons are lists
    of [x, y], by instance."""
    return {
        "task_id": f"{image}__1",
        "image_id": image,
        "ann_ids": [1],
        "instance_boxes": [[0, 0, 1, 1] for _ in instances],
        "Polygons": list(instances),
        "phrase": phrase,
        "phrase_structure": {"name": phrase, "attributes": [], "relation_descriptions": [], "type": "name"},
    }


def phrasecut(path: Path, *more: Any) -> PhraseCutDataset:
    """As download_dataset.py of ChenyunWu/PhraseCutDataset writes it, and utils/file_paths.py there reads it:
    image_data_split.json, refer_{split}.json, images/{image_id}.jpg."""
    three_pictures(path / "images", ("2405.png", "2406.png", "2407.png"))
    for stored in (path / "images").glob("*.png"):
        stored.rename(stored.with_suffix(".jpg"))  # lossless, whatever it is called
    sizes = ((2405, 60, 60), (2406, 80, 40), (2407, 33, 50), (498042, 9, 9))
    written(
        path / "image_data_split.json",
        [{"image_id": i, "width": w, "height": h, "split": "miniv"} for i, w, h in sizes],
    )
    corner = [[0, 0], [9.5, 0], [9.5, 9.5], [0, 9.5]]
    tasks = [
        task(2405, "red half", [[[0, 0], [29.5, 0], [29.5, 60], [0, 60]]]),
        task(2406, "two corners", [corner], [[[70, 0], [79, 0], [79, 9], [70, 9]], [[0, 39], [1, 39]]]),
        task(2405, "corner", [corner]),
        task(2407, "corner", [corner]),
        task(498042, "corner", [corner]),
    ]
    written(path / "refer_miniv.json", [*tasks, *more])
    return PhraseCutDataset(path, split="miniv", size=SIDE)


def sentence(text: str) -> dict[str, Any]:
    """An expression, as the README of lichengunc/refer says: {raw, sent, sent_id, tokens}."""
    return {"raw": text.upper(), "sent": text, "sent_id": 0, "tokens": text.split()}


def refs(images: tuple[int, ...] = (397133, 37777, 252219)) -> list[dict[str, Any]]:
    """References, as the README of lichengunc/refer says: {ref_id, ann_id, category_id, file_name, image_id, sent_ids,
    sentences}, and "split", which refer.py reads."""

    def ref(ann: int, image: int, split: str, *texts: str) -> dict[str, Any]:
        return {
            "ref_id": ann,
            "ann_id": ann,
            "category_id": 18,
            "file_name": "COCO_train2014_000000000009_1.jpg",
            "image_id": image,
            "sent_ids": [0] * len(texts),
            "sentences": [sentence(text) for text in texts],
            "split": split,
        }

    one, two, three = images
    return [
        ref(1, one, "val", "red half", "left one"),
        ref(11, one, "testA", "the right"),
        ref(2, two, "val", "end"),
        ref(12, two, "testB", "tail"),
        ref(4, three, "val", "all of it"),
    ]


def python2_pickle(value: Any) -> bytes:
    """What Python 2's cPickle, which refer.py imports, writes by default: protocol 0, text as byte strings."""

    def write(value: Any) -> str:
        if isinstance(value, dict):
            return "(d" + "".join(write(k) + write(v) + "s" for k, v in value.items())
        if isinstance(value, list):
            return "(l" + "".join(write(v) + "a" for v in value)
        return f"S{value!r}\n" if isinstance(value, str) else f"I{value}\n"

    return (write(value) + ".").encode("ascii")


def referred(path: Path, name: str, by: str, content: bytes) -> Path:
    """refer's data folder, as data/README.md and refer.py of lichengunc/refer say: {name}/refs({by}).p and
    {name}/instances.json, pictures in images/mscoco/images/train2014."""
    three_pictures(path / "images" / "mscoco" / "images" / "train2014")
    annotations = [
        {"id": 1, "image_id": 397133, "category_id": 18, "segmentation": [square(0, 30, 0, 60)]},
        {"id": 11, "image_id": 397133, "category_id": 18, "segmentation": [square(30, 60, 0, 60)]},
        {"id": 2, "image_id": 37777, "category_id": 18, "segmentation": [square(0, 20, 0, 40), square(60, 80, 0, 40)]},
        {"id": 12, "image_id": 37777, "category_id": 18, "segmentation": [square(60, 80, 0, 40)]},
        {"id": 4, "image_id": 252219, "category_id": 18, "segmentation": [square(0, 33, 0, 50)]},
    ]
    written(path / name / "instances.json", {**COCO, "annotations": annotations})
    (path / name / f"refs({by}).p").write_bytes(content)
    return path


def refcoco(path: Path) -> RefCocoDataset:
    return RefCocoDataset(referred(path, "refcoco", "unc", python2_pickle(refs())), size=SIDE)


def refcoco_plus(path: Path) -> RefCocoPlusDataset:
    return RefCocoPlusDataset(referred(path, "refcoco+", "unc", pickle.dumps(refs(), protocol=2)), size=SIDE)


def gref(path: Path) -> GRefDataset:
    return GRefDataset(referred(path, "refcocog", "umd", pickle.dumps(refs(), protocol=1)), size=SIDE)


DATASETS: dict[str, Callable[[Path], Dataset]] = {
    "tinyworld": tinyworld,
    "folder": folder,
    "aigi": aigi,
    "coco": coco,
    "phrasecut": phrasecut,
    "refcoco": refcoco,
    "refcoco+": refcoco_plus,
    "gref": gref,
}
