"""`ldznet generate`: pictures of the tiny world in a folder, and what it says of words that it does not know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ..hosts.tiny import TinyHost
from ..images import to_pictures
from ..shapes import Float
from ..tinyworld.shapes import CATEGORIES
from ..tinyworld.surfaces import COLOURS, PATTERNS, STUFF
from .results import results


def names(captions: Sequence[str]) -> list[str]:
    """A file for each caption."""
    return [f"{i:03d}.png" for i in range(len(captions))]


def remarks(host: TinyHost, captions: Sequence[str]) -> list[str]:
    """What to say of captions with words that the tiny world has never seen: which, and those that it knows."""
    unknown = host.unknown_words(captions)
    if not unknown:
        return []
    known = ", ".join([*CATEGORIES, *COLOURS, *PATTERNS[1:], *STUFF])
    quoted = ", ".join(f'"{word}"' for word in unknown)
    return [f"the tiny world knows no {quoted}, and draws something else. It knows: {known}"]


def write_pictures(
    host: TinyHost, latents: Float[Tensor, "b 4 h w"], captions: Sequence[str], out: Path, about: Mapping[str, Any]
) -> list[str]:
    """Writes a PNG for each caption and result.json with `about`, all or none; a line for each."""
    files = names(captions)
    pictures = [{"caption": caption, "file": name} for caption, name in zip(captions, files, strict=True)]
    with results(out, {**about, "pictures": pictures}) as save:
        for name, picture in zip(files, to_pictures(host.decode_latents(latents)), strict=True):
            save(name, Image.fromarray(picture))
    return [f"{out / name}: {caption}" for name, caption in zip(files, captions, strict=True)]
