"""CLIPSeg (Lüddecke & Ecker, CVPR 2022) through transformers, measured as our heads are: for comparison alone.

Nothing here is downloaded: the model lies in a folder. Alone with `hosts/hf_diffusers.py` it imports transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..clip_bpe import Tokenizer
from ..data.items import Item
from ..errors import CheckpointError, HostError, cause
from ..images import resize
from ..models.trained import score_of
from ..placing import device_of
from .benchmark import Segment

SIDE = 352  # pixels: the size that it was trained and is evaluated at
MOST_TOKENS = 75  # beside start and end
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as its preprocessor_config.json has them
MERGES = Path(__file__).parents[1] / "hosts" / "sd1" / "clip_merges.txt.gz"


def clipseg(folder: str | Path, device: torch.device | str | None = None) -> Segment:
    """The model in a transformers folder (config.json, model.safetensors). A mask's score is its highest probability.

    Raises HostError without transformers, CheckpointError for a folder that holds no CLIPSeg.
    """
    model, tokenizer = _model(Path(folder)).to(device_of(device)), Tokenizer.from_merges(MERGES)

    @torch.no_grad()
    def segment(item: Item, phrases: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """A phrase at a time, as they do not see each other."""
        pixels, maps = _pixels(item.image).to(model.device), []
        for phrase in phrases:
            row = [tokenizer.start, *tokenizer.ids(phrase)[:MOST_TOKENS], tokenizer.end]
            ids = torch.tensor([row], dtype=torch.int64, device="cpu")
            logits = model(input_ids=ids.to(model.device), pixel_values=pixels).logits
            maps.append(logits.reshape(1, SIDE, SIDE).float().cpu())
        if not maps:
            return np.zeros((0, *item.image.shape[:2]), np.float32), np.zeros(0, np.float32)
        resized = resize(torch.stack(maps, dim=1), item.image.shape[:2])[0]
        return resized.sigmoid().numpy(), score_of(resized).numpy()

    return segment


def _model(folder: Path) -> Any:
    try:
        from transformers import CLIPSegForImageSegmentation
    except ImportError as error:
        install = 'pip install "ldznet[compare]"'
        raise HostError(f"Expected transformers, which CLIPSeg runs on, got: {error}. {install}") from error
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"Expected a folder of CLIPSeg with config.json, got {folder}. Give --model such a folder."
        )
    try:
        return CLIPSegForImageSegmentation.from_pretrained(folder, local_files_only=True).eval()
    except Exception as error:  # of what is in the files, and of what is not
        raise CheckpointError(f"Expected CLIPSeg's weights in {folder}, got: {cause(error)} Get them again.") from error


def _pixels(image: np.ndarray) -> Tensor:
    """A picture h w 3, uint8, as CLIPSeg's own processor makes it: 1 3 352 352."""
    squashed = np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    values = (squashed / 255 - np.array(MEAN)) / np.array(DEVIATION)
    return torch.from_numpy(values).float().movedim(-1, 0)[None]
