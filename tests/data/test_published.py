"""Datasets in their published forms: which phrase has which mask, what is left out, what is said of files."""

from __future__ import annotations

import copy
import pickle
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data import making

from ldznet.checkpoints.plain_pickles import read_pickle
from ldznet.data import CocoDataset, GRefDataset, PhraseCutDataset, RefCocoDataset, RefCocoPlusDataset
from ldznet.data.cache import draw
from ldznet.data.phrasecut import EXCLUDED
from ldznet.data.refcoco import RefDataset
from ldznet.errors import InputError

SIDE = making.SIDE
PAGE = Path(__file__).parents[2] / "docs" / "datasets.md"
PUBLISHED = ["coco", "phrasecut", "refcoco", "refcoco+", "gref"]


def shares(mask: np.ndarray) -> list[float]:
    """How much of each quarter of the columns a mask covers."""
    return [round(float(part.mean()), 2) for part in np.split(mask, 4, axis=1)]


def named(item: Any) -> dict[str, list[float]]:
    return dict(zip(item.phrases, map(shares, item.masks), strict=True))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_missing_picture_is_named_with_the_page(name: str, tmp_path: Path) -> None:
    dataset: Any = making.DATASETS[name](tmp_path)
    gone = dataset.entries[1].picture
    gone.unlink()
    with pytest.raises(InputError, match=rf"{gone.name}\. docs/datasets\.md"):
        type(dataset)(tmp_path, split="miniv") if name == "phrasecut" else type(dataset)(tmp_path)


@pytest.mark.parametrize(
    ("make", "files"),
    [
        (CocoDataset, ["instances_val2017.json"]),
        (PhraseCutDataset, ["image_data_split.json"]),
        (RefCocoDataset, ["refs(unc).p", "instances.json"]),
        (RefCocoPlusDataset, ["refs(unc).p", "instances.json"]),
        (GRefDataset, ["refs(umd).p", "instances.json"]),
    ],
)
def test_missing_indexes_are_named_with_the_page(make: Callable[..., Any], files: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"docs/datasets\.md") as error:
        make(tmp_path)
    assert all(name in str(error.value) for name in files)
    assert PAGE.is_file()


def test_the_pages_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, make in (
        ("FOLDER", making.folder),
        ("coco", making.coco),
        ("VGPhraseCut_v0", making.phrasecut),
        ("data", making.refcoco),
    ):
        (tmp_path / name).mkdir()
        make(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for command in re.findall(r'python -c "(.*)"', PAGE.read_text(encoding="utf-8")):
        (tmp_path / "command.py").write_text(command, encoding="utf-8")
        runpy.run_path(str(tmp_path / "command.py"))
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "('red', 'left')",
        "('red', 'left')",
        "('dog', 'person')",
        "('red half', 'corner')",
        "('the right',)",
    ]


def test_pictures_may_stay_as_they_are(tmp_path: Path) -> None:
    making.coco(tmp_path)
    dataset = CocoDataset(tmp_path, size=None)
    assert [dataset[i].image.shape for i in range(3)] == [(60, 60, 3), (40, 80, 3), (50, 33, 3)]
    assert dataset[1].masks[0].sum() == 40 * 40
    assert dataset[2].masks.shape == (0, 50, 33)


def test_pictures_of_unequal_sizes_are_not_kept_in_one_array(tmp_path: Path) -> None:
    making.coco(tmp_path)
    with pytest.raises(InputError, match="60 x 60, got one of 40 x 80"):
        draw(CocoDataset(tmp_path, size=None), tmp_path / "cache")
    assert not (tmp_path / "cache" / "items.jsonl").exists()


def test_a_category_is_the_union_of_its_instances_and_crowds(tmp_path: Path) -> None:
    dataset = making.coco(tmp_path)
    assert named(dataset[0]) == {"dog": [1, 1, 0, 0], "person": [0, 0, 1, 1]}  # the person is a crowd
    assert named(dataset[1]) == {"dog": [1, 0, 0, 1]}
    assert [dataset[i].absent for i in range(3)] == [(), ("person",), ("person", "dog")]


def test_a_picture_is_squashed_so_that_all_of_it_is_there(tmp_path: Path) -> None:
    item = making.coco(tmp_path)[1]
    assert (item.image[:, : SIDE // 2 - 4] == (255, 0, 0)).all()
    assert (item.image[:, SIDE // 2 + 4 :] == (0, 0, 255)).all()


def test_annotations_mean_the_picture_as_it_is_stored(tmp_path: Path) -> None:
    making.coco(tmp_path)
    making.picture(tmp_path / "val2017" / "a.png", (60, 60), orientation=6)  # a square could be either
    making.picture(tmp_path / "val2017" / "b.png", (40, 80), orientation=6)  # upright as wide as the annotations say
    dataset = CocoDataset(tmp_path, size=SIDE)
    assert (dataset[0].image[:, : SIDE // 2 - 4] == (255, 0, 0)).all()
    assert (dataset[1].image[: SIDE // 2 - 4] == (255, 0, 0)).all()


def test_a_picture_of_another_aspect_is_refused(tmp_path: Path) -> None:
    dataset = making.coco(tmp_path)
    making.picture(tmp_path / "val2017" / "b.png", (80, 50))
    with pytest.raises(InputError, match=r"80 x 40.*b\.png, got 80 x 50"):
        dataset[1]


def test_other_files_of_the_same_form_are_read(tmp_path: Path) -> None:
    making.three_pictures(tmp_path / "train")
    index = making.written(tmp_path / "train" / "_annotations.coco.json", making.COCO)
    assert len(CocoDataset(tmp_path, annotations=index, pictures=tmp_path / "train")) == 3


def broken(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    content = copy.deepcopy(making.COCO)
    change(content)
    return content


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([], "'images'|'categories'"),
        (broken(lambda c: c.pop("categories")), "'categories'"),
        (broken(lambda c: c["annotations"][0].pop("segmentation")), "'segmentation'"),
        (broken(lambda c: c["annotations"][0].update(segmentation=[])), "'segmentation'"),
        (broken(lambda c: c["annotations"][0].update(category_id=5)), "'category_id'"),
        (broken(lambda c: c["annotations"][0].update(image_id=5)), "'image_id'"),
        (broken(lambda c: c["images"][0].update(width="60")), "'width'"),
        (broken(lambda c: c["images"][0].update(width=10**9)), "height and width"),
        (broken(lambda c: c["images"].append("d.png")), "'id'"),
    ],
)
def test_an_index_of_another_form_says_what_is_missing(content: Any, reason: str, tmp_path: Path) -> None:
    making.coco(tmp_path)
    making.written(tmp_path / "annotations" / "instances_val2017.json", content)
    with pytest.raises(InputError, match=reason) as error:
        CocoDataset(tmp_path)
    assert "instances_val2017.json" in str(error.value)


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    making.coco(tmp_path)
    (tmp_path / "annotations" / "instances_val2017.json").write_text('{"images": [')
    with pytest.raises(InputError, match=r"JSON in .*instances_val2017\.json"):
        CocoDataset(tmp_path)


def test_a_damaged_outline_is_named_by_phrase_and_picture(tmp_path: Path) -> None:
    making.coco(tmp_path)
    content = broken(lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3]]))
    making.written(tmp_path / "annotations" / "instances_val2017.json", content)
    with pytest.raises(InputError, match=r"'dog' in a\.png.*no pairs"):
        CocoDataset(tmp_path)[0]


def test_phrasecut_unites_polygons_and_instances(tmp_path: Path) -> None:
    dataset = making.phrasecut(tmp_path)
    assert named(dataset[0])["red half"] == [1, 1, 0, 0]
    whole = PhraseCutDataset(tmp_path, split="miniv", size=None)
    (mask,) = whole[1].masks
    assert mask.sum() == 10 * 10 + 10 * 10 + 2  # boundaries are inside
    assert mask[:10, :10].all()
    assert mask[:10, 70:].all()
    assert mask[39, :2].all()


def test_phrasecut_leaves_out_the_pictures_of_other_sizes_than_annotated(tmp_path: Path) -> None:
    assert len(EXCLUDED) == 17
    dataset = making.phrasecut(tmp_path)  # with a task on 498042, whose picture is not there
    assert [entry.picture.stem for entry in dataset.entries] == ["2405", "2406", "2407"]


def test_the_same_phrase_twice_is_counted_twice(tmp_path: Path) -> None:
    again = [[30, 0], [59, 0], [59, 59], [30, 59]]
    dataset = making.phrasecut(tmp_path, making.task(2405, "red half", [again]))
    assert [item.phrases for item in map(dataset.__getitem__, range(2))] == [("red half", "corner"), ("red half",)]
    assert named(dataset[1]) == {"red half": [0, 0, 1, 1]}


def test_splits_of_phrasecut_may_be_joined(tmp_path: Path) -> None:
    making.phrasecut(tmp_path)
    making.written(tmp_path / "refer_val.json", [making.task(2407, "stone", [[[0, 0], [9, 0], [9, 9]]])])
    dataset = PhraseCutDataset(tmp_path, split="val_miniv", size=SIDE)
    assert [entry.picture.stem for entry in dataset.entries] == ["2407", "2405", "2406"]
    assert dataset[0].phrases == ("stone", "corner")


def test_phrasecuts_sizes_are_read_under_either_name(tmp_path: Path) -> None:
    making.phrasecut(tmp_path)
    (tmp_path / "image_data_split.json").rename(tmp_path / "image_data_split3000.json")
    assert len(PhraseCutDataset(tmp_path, split="miniv")) == 3


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "gref"])
def test_expressions_have_their_referents_masks(name: str, tmp_path: Path) -> None:
    dataset = making.DATASETS[name](tmp_path)
    assert named(dataset[0]) == {"red half": [1, 1, 0, 0], "left one": [1, 1, 0, 0]}
    assert named(dataset[1]) == {"end": [1, 0, 0, 1]}
    assert named(dataset[2]) == {"all of it": [1, 1, 1, 1]}


@pytest.mark.parametrize(
    ("split", "phrases"),
    [
        ("testA", [("the right",)]),
        ("testB", [("tail",)]),
        ("test", [("the right",), ("tail",)]),
    ],
)
def test_splits_by_name(split: str, phrases: list[tuple[str]], tmp_path: Path) -> None:
    making.refcoco(tmp_path)
    dataset = RefCocoDataset(tmp_path, split=split)
    assert [dataset[i].phrases for i in range(len(dataset))] == phrases


def test_who_made_the_split_is_in_the_file_name(tmp_path: Path) -> None:
    making.referred(tmp_path, "refcoco", "google", making.python2_pickle(making.refs()[:2]))
    assert len(RefCocoDataset(tmp_path, by="google")) == 1


def test_a_split_that_is_not_there_lists_those_that_are(tmp_path: Path) -> None:
    making.refcoco(tmp_path)
    with pytest.raises(InputError, match=r"\(val, testA, testB\), got 'testC'"):
        RefCocoDataset(tmp_path, split="testC")
    with pytest.raises(InputError, match="by unc or google, got 'umd'"):
        RefCocoDataset(tmp_path, by="umd")


def test_the_same_expression_of_two_referents_is_counted_twice(tmp_path: Path) -> None:
    refs = making.refs()
    refs[1].update(split="val", sentences=[making.sentence("left one")])
    making.referred(tmp_path, "refcoco", "unc", making.python2_pickle(refs))
    dataset: RefDataset = RefCocoDataset(tmp_path)
    assert [dataset[i].phrases for i in (0, 1)] == [("red half", "left one"), ("left one",)]
    assert shares(dataset[1].masks[0]) == [0, 0, 1, 1]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_is_read(protocol: int, tmp_path: Path) -> None:
    (tmp_path / "refs.p").write_bytes(pickle.dumps(making.refs(), protocol=protocol))
    assert read_pickle(tmp_path / "refs.p") == making.refs()


def test_python_2s_pickle_is_read(tmp_path: Path) -> None:
    (tmp_path / "refs.p").write_bytes(making.python2_pickle(making.refs()))
    assert read_pickle(tmp_path / "refs.p") == making.refs()


class Runs:
    """What a hostile pickle holds: calls `open` when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("place", ["whole", "reference", "sentence"])
def test_nothing_of_a_pickle_runs(place: str, tmp_path: Path) -> None:
    trap, refs = Runs(tmp_path / "ran"), making.refs()
    hostile: Any = {
        "whole": trap,
        "reference": [*refs, trap],
        "sentence": [{**refs[0], "sentences": [{"sent": trap}]}],
    }[place]
    making.referred(tmp_path, "refcoco", "unc", pickle.dumps(hostile, protocol=2))
    with pytest.raises(InputError, match=r"refs\(unc\)\.p"):
        RefCocoDataset(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"]", b"no pickle", making.python2_pickle(making.refs())[:-40]])
def test_a_damaged_pickle_is_named(content: bytes, tmp_path: Path) -> None:
    making.referred(tmp_path, "refcoco", "unc", content)
    with pytest.raises(InputError, match=r"refs\(unc\)\.p.*Get the file again"):
        RefCocoDataset(tmp_path)
