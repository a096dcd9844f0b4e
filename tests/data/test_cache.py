"""The cache: drawn once, whole or not there, its masks to the bit."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ldznet.data.cache import Cache, add_latents, draw, images_to_pixels
from ldznet.data.items import Item
from ldznet.errors import InputError


class Drawn:
    """Items of random pixels, 13 x 11, with `counts[i]` masks; counts how often it was asked."""

    def __init__(self, *counts: int) -> None:
        self.counts, self.asked = counts, 0

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, index: int) -> Item:
        self.asked += 1
        rng = np.random.default_rng(index)
        phrases = tuple(f"phrase {i}" for i in range(self.counts[index]))
        return Item(
            image=rng.integers(0, 256, (13, 11, 3), dtype=np.uint8),
            captions=(f"picture {index} 🦓",),
            phrases=phrases,
            masks=rng.random((len(phrases), 13, 11)) > 0.5,
            kinds=("thing",) * len(phrases),
            absent=("a cat",),
        )


def test_masks_come_back_to_the_bit(tmp_path: Path) -> None:
    dataset = Drawn(3, 0, 2)
    cache = draw(dataset, tmp_path)
    for i in range(3):
        item = dataset[i]
        assert np.array_equal(cache.images[i], item.image)
        assert cache.records[i]["captions"] == list(item.captions)
        assert cache.records[i]["absent"] == ["a cat"]
        for plane, mask in enumerate(item.masks):
            assert np.array_equal(cache.mask(i, plane), mask)
            assert cache.mask(i, plane).dtype == bool


def test_items_without_masks(tmp_path: Path) -> None:
    cache = draw(Drawn(0, 0), tmp_path)
    assert len(cache) == 2
    assert [record["phrases"] for record in cache.records] == [[], []]


def test_drawn_once(tmp_path: Path) -> None:
    draw(Drawn(1, 1), tmp_path / "cache")
    again = Drawn(1, 1)
    assert np.array_equal(draw(again, tmp_path / "cache").images[1], again[1].image)
    assert again.asked == 1  # by this test


def test_another_dataset_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    draw(Drawn(1, 1), tmp_path)
    with pytest.raises(InputError, match=r"as the dataset has \(3\) in .*, got 2"):
        draw(Drawn(1, 1, 1), tmp_path)


def stop(done: int, total: int) -> None:
    if done == 2:
        raise KeyboardInterrupt


def test_an_interrupted_draw_is_drawn_again(tmp_path: Path) -> None:
    seen = []
    with pytest.raises(KeyboardInterrupt):
        draw(Drawn(1, 1, 1), tmp_path, stop)
    assert not any(tmp_path.iterdir())
    cache = draw(Drawn(1, 1, 1), tmp_path, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert cache.images[2].any()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images.npy", "items.jsonl", "masks.npy"]


def test_a_kill_before_the_last_file_is_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(value: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(json, "dumps", killed)
    with pytest.raises(KeyboardInterrupt):
        draw(Drawn(1, 1), tmp_path)
    monkeypatch.undo()
    assert len(draw(Drawn(2, 2), tmp_path).records[0]["phrases"]) == 2


def encode(pixels: torch.Tensor) -> torch.Tensor:
    assert pixels.shape[1:] == (3, 13, 11)
    return pixels[:, :, ::8, ::8]


def test_latents_are_those_of_each_image(tmp_path: Path) -> None:
    calls: list[int] = []
    cache = draw(Drawn(1, 1, 1), tmp_path)
    assert cache.latents is None
    cache = add_latents(cache, encode, lambda done, total: calls.append(done), batch=2)
    assert calls == [2, 3]
    assert cache.latents is not None
    assert cache.latents.dtype == torch.float16
    torch.testing.assert_close(cache.latents, encode(images_to_pixels(cache.images)).half(), atol=0, rtol=0)
    assert add_latents(Cache(tmp_path), None).latents is not None  # type: ignore[arg-type]


def test_interrupted_latents_leave_no_file(tmp_path: Path) -> None:
    cache = draw(Drawn(1, 1, 1), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        add_latents(cache, encode, stop, batch=1)
    assert Cache(tmp_path).latents is None


def test_latents_of_older_images_are_dropped(tmp_path: Path) -> None:
    add_latents(draw(Drawn(1, 1), tmp_path), encode)
    (tmp_path / "items.jsonl").unlink()
    assert draw(Drawn(1, 1), tmp_path).latents is None


def test_pixels_span_minus_one_to_one() -> None:
    image = np.array([[[[0, 127, 255]]]], np.uint8)
    assert images_to_pixels(image)[0, :, 0, 0].tolist() == pytest.approx([-1, -1 / 255, 1])


DAMAGE = {  # what happens to a file of a cache of two items with one mask each, and what is said of it
    "images cut": ("images.npy", lambda content: content[:-7]),
    "images without a header": ("images.npy", lambda content: content[3:]),
    "images of two billion": ("images.npy", lambda content: content.replace(b"(2, 13", b"(2000000000, 13")),
    "images pickled": ("images.npy", lambda content: b"\x80\x04N."),
    "images empty": ("images.npy", lambda content: b""),
    "masks cut": ("masks.npy", lambda content: content[:-1]),
    "masks of another item": ("masks.npy", lambda content: array(np.zeros((1, 18), np.uint8))),
    "masks of another size": ("masks.npy", lambda content: array(np.zeros((2, 17), np.uint8))),
    "masks of floats": ("masks.npy", lambda content: array(np.zeros((2, 18), np.float32))),
    "items cut": ("items.jsonl", lambda content: content[:-20]),
    "items one short": ("items.jsonl", lambda content: content[: content.index(b"\n") + 1]),
    "items of another kind": ("items.jsonl", lambda content: b"[]\n{}\n"),
    "items too deep": ("items.jsonl", lambda content: b"[" * 100_000),
    "items without text": ("items.jsonl", lambda content: b"\xff\xfe\n"),
    "latents cut": ("latents.npy", lambda content: content[:-1]),
    "latents of a billion": ("latents.npy", lambda content: content.replace(b"(2, 4", b"(1000000000, 4")),
    "latents of three": ("latents.npy", lambda content: array(np.zeros((3, 4, 1, 1), np.float16))),
    "latents of objects": ("latents.npy", lambda content: array(np.array([None, 3], object))),
}


def array(values: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, values, allow_pickle=True)
    return out.getvalue()


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_cache_says_which_file(name: str, tmp_path: Path) -> None:
    add_latents(draw(Drawn(1, 1), tmp_path), lambda pixels: torch.zeros(len(pixels), 4, 1, 1))
    file, damage = DAMAGE[name]
    (tmp_path / file).write_bytes(damage((tmp_path / file).read_bytes()))
    named = "images.npy|masks.npy" if file == "items.jsonl" else file  # a line less may be seen beside them
    with pytest.raises(
        InputError, match=rf"Expected a whole cache in .*, got in ({file}|{named}): .*Delete the folder"
    ):
        Cache(tmp_path)


def test_a_cache_without_a_file_says_which(tmp_path: Path) -> None:
    draw(Drawn(1, 1), tmp_path)
    (tmp_path / "masks.npy").unlink()
    with pytest.raises(InputError, match=r"got in masks\.npy: .*No such file"):
        Cache(tmp_path)
