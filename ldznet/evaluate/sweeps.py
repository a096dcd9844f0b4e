"""What a setting is worth: the timestep at which taps are taken, and how latents of another size are brought in."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from ..contracts import Host
from ..data.items import Item
from ..images import to_pixels
from ..models import Network
from ..predictor import Predictor
from .benchmark import Segment, arrays, segment_with

TIMESTEPS = (25, 50, 100, 150, 200, 250, 300, 350, 400, 500)
SCALES = (1.0, 1.5, 2.0)


def by_timestep(host: Host, head: Network) -> Iterator[tuple[str, Segment]]:
    """The same head with its taps taken at other timesteps."""
    for timestep in TIMESTEPS:
        yield f"t = {timestep}", segment_with(Predictor(host, with_timestep(head, timestep)))


def with_timestep(head: Network, timestep: int) -> Network:
    """`head` (its weights shared) with another timestep in its configuration."""
    other = copy.copy(head)
    other.head_config = dataclasses.replace(head.head_config, timestep=timestep)
    return other


def by_resolution(host: Host, head: Network) -> Iterator[tuple[str, Segment]]:
    """Latents of the image's own size: resized to the head's, taken as they are, or decoded and encoded again."""
    yield "latents resized to the head's size", from_latents(Predictor(host, head, resolution="head"))
    yield "latents as they are (native)", from_latents(Predictor(host, head, resolution="native"))
    yield "decoded, resized and encoded again", from_pixels(Predictor(host, head))


def from_latents(predictor: Predictor) -> Segment:
    """Segments an item from its latents, as a generator would leave them."""

    def segment(item: Item, phrases: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        predictor.set_latents(predictor.host.encode_image(to_pixels(item.image)), item.image.shape[:2])
        return arrays(predictor.predict(phrases))

    return segment


def from_pixels(predictor: Predictor) -> Segment:
    """Segments an item from the pixels that its latents decode to."""

    def segment(item: Item, phrases: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        host = predictor.host
        pixels = host.decode_latents(host.encode_image(to_pixels(item.image)))
        predictor.set_image(pixels, value_range=(-1, 1))
        return arrays(predictor.predict(phrases))

    return segment
