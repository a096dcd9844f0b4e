"""`ldznet evaluate --dataset`: the figures it writes are those of the library, on three pictures of unequal sizes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from data import making
from PIL import Image

from ldznet.cli import dataset as command
from ldznet.cli.dataset import Setting
from ldznet.data.items import Item
from ldznet.errors import InputError
from ldznet.evaluate import benchmark


def setting(folder: Path | None, name: str = "folder", **changes: object) -> Setting:
    given = {"dataset": name, "folder": folder, "split": None, "heads": ("red",), "model": "tiny", "clipseg": None}
    given |= {"size": 64, "scenes": 2, "device": None, "seed": 0, **changes}
    return Setting(**given)  # type: ignore[arg-type]


def red(item: Item, phrases: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The red pixels, whatever is asked; the picture's redness as the score."""
    soft = np.stack([item.image[..., 0] / 255] * len(phrases)) if phrases else np.zeros((0, 64, 64))
    return soft, soft.mean(axis=(1, 2))


@pytest.fixture(autouse=True)
def red_head(monkeypatch: pytest.MonkeyPatch) -> None:
    def segments(setting: Setting) -> tuple[dict[str, benchmark.Segment], int]:
        return {"red": red, command.WHOLE: benchmark.whole_image}, 64 if setting.size is None else setting.size

    monkeypatch.setattr(command, "_segments", segments)


def test_what_is_written(tmp_path: Path) -> None:
    """The left half is red and asked for twice: the head is right, the whole picture has tp / (1 + tp + fp)."""
    making.folder(tmp_path)
    table = command.evaluate(setting(tmp_path), tmp_path / "out")
    about = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (about["dataset"], about["items"], about["size"], about["folder"]) == ("folder", 3, 64, str(tmp_path))
    head, whole = (about["heads"][name]["all"] for name in ("red", "the whole image"))
    assert (head["phrases"], head["images"]) == (2, 1)
    half = 64 * 32
    assert head["miou_30"] == pytest.approx(half / (1 + half), abs=0.03)  # pixels between the halves are blurred
    assert whole["miou_50"] == pytest.approx(half / (1 + 2 * half))
    assert about["less"]["the whole image less red"][0] == pytest.approx(whole["miou_50"] - head["miou_50"])
    assert head["intervals"]["miou_50"] == [head["miou_50"]] * 2  # of one picture
    assert len(head["curves"]["miou"]) == 49
    assert about["presence"]["red"]["present"] == 2
    assert about["presence"]["red"]["auroc"] == 0.5  # what is absent is asked of a picture that is half red, too
    assert sorted(about["files"]) == ["best.png", "curve.png", "worst.png"]
    with Image.open(tmp_path / "out" / "worst.png") as picture:
        assert picture.height > 2 * 192  # both phrases
    assert table is not None
    assert table.row_count == 3


def test_pictures_may_stay_as_they_are(tmp_path: Path) -> None:
    making.coco(tmp_path)
    items = command.opened("coco", tmp_path, None, None, 1)
    assert [items[i].image.shape for i in range(3)] == [
        (60, 60, 3),
        (40, 80, 3),
        (50, 33, 3),
    ]


def test_nothing_is_cut_off_a_folder_s_pictures(tmp_path: Path) -> None:
    making.picture(tmp_path / "a.png", (120, 40))
    quarter = np.zeros((40, 120), np.uint8)
    quarter[:, :30] = 255  # which a central crop leaves out
    Image.fromarray(quarter).save(tmp_path / "a_quarter.png")
    making.index(tmp_path, {"image": "a.png", "masks": {"quarter": "a_quarter.png"}})
    for name in ("folder", "aigi"):
        assert command.opened(name, tmp_path, None, 64, 1)[0].masks[0].mean() == 0.25


def test_published_rows_stand_beside_and_say_what_differs() -> None:
    rows = command.report({}, "aigi")["published"]
    table = command.table({"dataset": "aigi", "heads": {}, "presence": {}, "less": {}, "published": rows})
    names, best = (list(table.columns[i].cells) for i in (0, 4))
    assert best[names.index("LD-ZNet (published)")] == "0.741"
    assert "best threshold" in str(table.caption)


@pytest.mark.parametrize(
    ("name", "folder", "says"),
    [
        ("voc", Path(), "Expected a dataset of folder, aigi, coco, phrasecut, refcoco, .*T0.*T4, got 'voc'"),
        ("phrasecut", None, "the files of phrasecut, got none. Give --data FOLDER"),
        ("phrasecut", Path("nowhere"), r"nowhere.image_data_split\.json.*docs/datasets\.md"),
        ("aigi", Path("nowhere"), r"index\.jsonl in nowhere.*docs/datasets\.md"),
    ],
)
def test_what_is_missing_is_named_with_the_page(name: str, folder: Path | None, says: str) -> None:
    with pytest.raises(InputError, match=says):
        command.opened(name, folder, None, 64, 1)
