"""CLIPSeg of random weights through transformers: what it sees is what its own processor would show it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldznet.data.items import Item
from ldznet.errors import CheckpointError
from ldznet.evaluate import clipseg

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    vision = {**text, "num_hidden_layers": 3, "image_size": 352, "patch_size": 32}
    settings: dict[str, Any] = {"text_config": text, "vision_config": vision, "projection_dim": 32, "reduce_dim": 16}
    settings |= {"extract_layers": [0, 1, 2], "decoder_num_attention_heads": 2, "decoder_intermediate_size": 32}
    path = tmp_path_factory.mktemp("clipseg")
    transformers.CLIPSegForImageSegmentation(transformers.CLIPSegConfig(**settings)).save_pretrained(path)
    return path


def test_masks_are_those_of_transformers(folder: Path) -> None:
    """The processor of the published preprocessor_config.json: bilinear to 352, ImageNet's mean and deviation."""
    image = np.random.default_rng(0).integers(256, size=(352, 352, 3), dtype=np.uint8)
    item = Item(image, ("",), ("a cat",), np.ones((1, 352, 352), bool), ("thing",))
    soft, scores = clipseg.clipseg(folder)(item, ["a cat", "the dog"])
    processor = transformers.ViTImageProcessor(
        size={"height": 352, "width": 352}, resample=2, image_mean=clipseg.MEAN, image_std=clipseg.DEVIATION
    )
    pixels = processor(images=image, return_tensors="pt").pixel_values
    model = transformers.CLIPSegForImageSegmentation.from_pretrained(folder).eval()
    ids = torch.tensor([[49406, 320, 2368, 49407], [49406, 518, 1929, 49407]])  # as CLIP's tokenizer has them
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=pixels.expand(2, -1, -1, -1)).logits
    assert np.allclose(soft, logits.sigmoid().numpy(), atol=1e-5)
    assert soft.shape == (2, 352, 352)
    assert not np.allclose(soft[0], soft[1], atol=1e-4)
    assert ((scores > 0) & (scores <= soft.max(axis=(1, 2)))).all()


def test_masks_have_the_picture_s_size_and_no_phrase_has_none(folder: Path) -> None:
    item = Item(np.zeros((40, 60, 3), np.uint8), ("",), (), np.zeros((0, 40, 60), bool), ())
    segment = clipseg.clipseg(folder)
    assert segment(item, ["a cat"])[0].shape == (1, 40, 60)
    assert segment(item, [])[0].shape == (0, 40, 60)


def test_a_folder_of_something_else_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"folder of CLIPSeg with config\.json, got"):
        clipseg.clipseg(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="CLIPSeg's weights in"):
        clipseg.clipseg(tmp_path)
