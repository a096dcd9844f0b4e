"""Words in, mask out: dear work once in `set_image`, cheap `predict`. Knows hosts and heads by their contracts alone.

Deterministic: the same call with the same `chunk` and the same number of torch's threads gives the same bits on the
same machine. Other chunks, batches or numbers of threads add numbers up in another order: logits then differ by some
1e-5. The noise comes from a seeded CPU generator and is the same field for every image and phrase, so a trained head's
mask does not depend on what else is asked for; the attention head's phrases compete (`attention.head`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral
from typing import Any, cast

import torch
from torch import Tensor

from .combining import Maps, combined
from .contracts import Captured, Head, Host, SmallVocabulary
from .convolving import quicker_convolutions
from .errors import InputError
from .images import Picture, Range, require_dense, require_finite, resize
from .phrases import read, terms_of
from .segmentation import Segmentation
from .shapes import Float, Size, fit_area, round_to_multiple

RESOLUTIONS = ("head", "native")
MOST_TEXTS = 64  # encoded at once
Progress = Callable[[int, int], None]


class Predictor:
    """`host` makes latents, context and taps; `head` makes masks of them, or of what it finds in the host itself.

    `ensemble` averages over that many pairs of (t, noise) and gives their spread. `resolution` "head" brings the image
    to the area that the head was trained at, "native" keeps it. `chunk` (image, phrase) pairs run at once.
    `progress(done, total)` counts such pairs, each `ensemble` times, after every run; it stops the work by raising.
    """

    def __init__(
        self,
        host: Host,
        head: Head,
        *,
        seed: int = 0,
        ensemble: int = 1,
        resolution: str = "head",
        chunk: int = 8,
        progress: Progress | None = None,
    ) -> None:
        _require_parts(host, head)
        if not (_is_whole(seed) and _is_count(ensemble) and _is_count(chunk)):
            got = f"{seed!r}, {ensemble!r} and {chunk!r}"
            raise InputError(f"Expected whole numbers as seed, ensemble and chunk, the last two from 1 on, got {got}.")
        if resolution not in RESOLUTIONS:
            raise InputError(f'Expected a resolution of {" or ".join(RESOLUTIONS)}, got "{resolution}".')
        self.host, self.head = host, head.fitted_to(host)
        self.config = self.head.head_config
        self.seed, self.ensemble, self.chunk = int(seed), int(ensemble), int(chunk)
        self.resolution, self.progress = resolution, progress
        self._latents: Tensor | None = None
        self._pixels: Tensor | None = None
        self._captured: Captured | None = None
        self._count, self._size = 0, (0, 0)

    def set_image(self, image: Any, *, value_range: Range | None = None) -> None:
        """A PIL image, a uint8 array h w 3, or a float tensor b 3 h w. Encodes it, once. An error changes nothing.

        `value_range` says what a float tensor's black and white are: (-1, 1) if None. One whose values all lie in
        [0, 1] could be of two ranges: there it must be stated, (0, 1) or (-1, 1), or InputError asks for it.
        """
        picture = Picture.of(image, value_range)
        pixels = picture.at(self._network_size(picture.size)).clamp(-1, 1).to(self.host.device)
        needs_latents = bool(self.config.tap_specs) or not self.config.takes_pixels
        latents = self._encoded(pixels) if needs_latents else None
        self._count, self._size = len(pixels), picture.size
        self._latents, self._pixels, self._captured = latents, pixels, None

    def _encoded(self, pixels: Tensor) -> Tensor:
        with quicker_convolutions():
            latents = self.host.encode_image(pixels.to(self.host.dtype)).float()
        require_finite(latents, "the VAE's latents", "Run the VAE in float32.")
        return latents

    def set_latents(
        self, latents: Float[Tensor, "b c h w"], size: Size | None = None, captured: Captured | None = None
    ) -> None:
        """Model-space latents, as a generator made them; the VAE is not touched. `size` is the image's (height, width);
        if None, the latents' own. What was `captured` while these latents were made spares `predict` the UNet."""
        if self.config.takes_pixels:
            raise InputError("Expected an image: this head (RGBNet) reads pixels, not latents. Call set_image.")
        latents = _checked_latents(latents, self.config.in_channels)
        cell = self.config.pixels_per_latent
        full = (latents.shape[2] * cell, latents.shape[3] * cell)
        size = full if size is None else _checked_size(size)
        height, width = self._network_size(full) if self.resolution == "head" else full
        latents = resize(latents, (height // cell, width // cell)).to(self.host.device)
        captured = None if captured is None else captured.fitted_to(self.config, latents)
        self._count, self._size = len(latents), size
        self._latents, self._pixels, self._captured = latents, None, captured

    @torch.no_grad()
    def predict(self, phrases: Sequence[str]) -> Segmentation:
        """A mask per phrase (`phrases` says how they are read), in the order given, for every image that was set."""
        if not self._count:
            raise InputError("Expected an image or latents first. Call set_image or set_latents.")
        if isinstance(phrases, str):
            raise InputError(f'Expected a list of phrases, got the string "{phrases[:40]}". Write ["{phrases[:40]}"].')
        if not isinstance(phrases, Iterable):
            raise InputError(f'Expected a list of phrases, got {type(phrases).__name__}. Write ["a dog", "grass"].')
        phrases = tuple(phrases)
        parsed = read(phrases)
        if not parsed:
            raise InputError("Expected at least one phrase, got none.")
        terms = terms_of(parsed)
        maps = combined(parsed, terms, Maps(*self._run(terms)), self.config.presence_threshold)
        return Segmentation(
            logits=maps.logits,
            phrases=phrases,
            size=self._size,
            scores=maps.scores,
            found_threshold=self.config.presence_threshold,
            deviation=maps.deviation,
            calibrated=self.config.calibrated,
            hints=(*(hint for phrase in parsed for hint in phrase.hints), *self._unknown(terms)),
        )

    def _unknown(self, terms: Sequence[str]) -> list[str]:
        """A sentence where `terms` hold words that the host has never seen; only one of a small vocabulary has such."""
        unknown = self.host.unknown_words(terms) if isinstance(self.host, SmallVocabulary) else []
        words = ", ".join(f'"{word}"' for word in unknown)
        return [f"{words}: no word of this model, which knows few, so a mask of it means nothing"] if unknown else []

    def _run(self, terms: Sequence[str]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits b t h w, scores b t and, for an ensemble, the deviation of the probabilities b t h w."""
        host, tick, rows = cast(Host, TextsOnce(self.host)), self._counter(len(terms)), []
        for images, groups in self._pieces(terms):
            parts = [self._averaged(host, images, group, tick) for group in groups]
            rows.append([torch.cat(columns, dim=1) for columns in zip(*parts, strict=True)])
        logits, scores, *deviation = (torch.cat(row) for row in zip(*rows, strict=True))
        return logits, scores, deviation[0] if deviation else None

    def _averaged(
        self, host: Host, images: slice, terms: Sequence[str], tick: Callable[[int], None]
    ) -> tuple[Tensor, ...]:
        """Logits and scores of some terms in some images, means over the ensemble, and its deviation if it is one."""
        members = []
        for member in range(self.ensemble):
            members.append(self._member(host, images, terms, member))
            tick(members[-1][1].numel())
        maps = torch.stack([logits for logits, _ in members])
        require_finite(maps, "the masks", "Run host and head in float32 or bfloat16.")
        scores = torch.stack([scores for _, scores in members])
        deviation = [maps.sigmoid().std(0)] if self.ensemble > 1 else []
        return maps.mean(0), scores.mean(0), *deviation

    def _member(self, host: Host, images: slice, terms: Sequence[str], member: int) -> tuple[Tensor, Tensor]:
        """Logits and scores of one (t, noise)."""
        with quicker_convolutions():
            return self.head.segment(
                host,
                None if self._latents is None else self._latents[images],
                terms,
                timestep=self._timestep(member),
                seed=self.seed + member,
                captured=None if self._captured is None else self._captured.rows(images),
                pixels=None if self._pixels is None else self._pixels[images],
            )

    def _counter(self, terms: int) -> Callable[[int], None]:
        done, total = 0, self._count * terms * self.ensemble

        def tick(pairs: int) -> None:
            nonlocal done
            done += pairs
            if self.progress:
                self.progress(done, total)

        return tick

    def _pieces(self, terms: Sequence[str]) -> Iterator[tuple[slice, list[Sequence[str]]]]:
        """The work in pieces of about `chunk` (image, term) pairs: some images, and the terms for each run over them.

        Terms that compete for a picture stay together, one picture at a time.
        """
        together = len(terms) if self.config.phrases_compete else min(len(terms), self.chunk)
        at_once = 1 if self.config.phrases_compete else max(1, self.chunk // together)
        groups = [terms[i : i + together] for i in range(0, len(terms), together)]
        for start in range(0, self._count, at_once):
            yield slice(start, start + at_once), groups

    def _timestep(self, member: int) -> int:
        """The head's own t alone; an ensemble spreads evenly over its range of t."""
        if self.ensemble == 1:
            return self.config.timestep
        low, high = self.config.timestep_range
        return round(low + (high - low) * (member + 0.5) / self.ensemble)

    def _network_size(self, size: Size) -> Size:
        cell = self.config.pixels_per_latent
        if self.resolution == "native":
            return round_to_multiple(size[0], cell), round_to_multiple(size[1], cell)
        height, width = self.config.latent_grid
        return fit_area(size, height * width * cell**2, self.config.size_multiple)


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral)


def _is_count(value: Any) -> bool:
    return _is_whole(value) and value >= 1


def _require_parts(host: Any, head: Any) -> None:
    if not isinstance(head, Head):
        raise InputError(f"Expected a head, got {type(head).__name__}. Make one with ldznet.load_head.")
    if not hasattr(host, "encode_image"):
        raise InputError(f"Expected a host, got {type(host).__name__}. Make one with ldznet.open_host.")


def _checked_latents(latents: Any, channels: int) -> Tensor:
    """`latents` as float32 without gradients, or InputError that says what came."""
    if not isinstance(latents, Tensor) or latents.is_complex():
        kind = getattr(latents, "dtype", type(latents).__name__)
        raise InputError(f"Expected latents as a real tensor b {channels} h w in model space, got {kind}.")
    if latents.ndim != 4 or latents.shape[1] != channels or 0 in latents.shape:
        raise InputError(f"Expected latents b {channels} h w in model space, got {tuple(latents.shape)}.")
    require_dense(latents, "the latents")
    latents = latents.detach().float()
    require_finite(latents, "the latents")
    return latents


def _checked_size(size: Any) -> Size:
    if not (isinstance(size, Sequence) and len(size) == 2 and all(map(_is_count, size))):
        raise InputError(f"Expected a size (height, width) of whole numbers from 1 on, got {size!r}.")
    return int(size[0]), int(size[1])


class TextsOnce:
    """`host`, for one prediction: a text is encoded once, however many pieces of the work ask for it."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._contexts: dict[str, Tensor] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)

    def encode_text(self, phrases: Sequence[str]) -> Float[Tensor, "b n d"]:
        """As the host's."""
        new = [phrase for phrase in dict.fromkeys(phrases) if phrase not in self._contexts]
        for start in range(0, len(new), MOST_TEXTS):
            part = new[start : start + MOST_TEXTS]
            self._contexts |= dict(zip(part, self._host.encode_text(part).split(1), strict=True))
        return torch.cat([self._contexts[phrase] for phrase in phrases])
