"""Words in, mask out: dear work once in `set_image`, cheap `predict`. Knows hosts and heads by their contracts alone.

Deterministic: the same call on the same machine gives the same bits. The noise comes from a seeded CPU generator and is
the same field for every image and phrase, so a mask does not depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .combining import Maps, combined
from .config import HeadConfig
from .contracts import Host, JointSegmenter, SmallVocabulary, Taps, TapSpec
from .errors import HostError, InputError
from .images import Picture, Range, require_dense, require_finite, resize
from .models import LDZNet
from .phrases import fill, read, terms_of
from .schedule import seeded_noise
from .segmentation import Segmentation
from .shapes import PIXELS_PER_LATENT, Float, Size, fit_area, round_to_multiple, tap_size

UNTRAINED = {"sd2": "SD 2.x", "sdxl": "SDXL"}  # families of hosts that only the attention head reads
RESOLUTIONS = ("head", "native")
Progress = Callable[[int, int], None]
Job = Callable[[int], tuple[Tensor, Tensor]]


class Predictor:
    """`host` makes latents, context and taps; `head` makes masks of them, or of what it finds in the host itself.

    `ensemble` averages over that many pairs of (t, noise) and gives their spread. `resolution` "head" brings the image
    to the area that the head was trained at, "native" keeps it. `chunk` (image, phrase) pairs run at once.
    `progress(done, total)` counts such pairs, each `ensemble` times, after every run; it stops the work by raising.
    """

    def __init__(
        self,
        host: Host,
        head: LDZNet | JointSegmenter,
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
        if isinstance(head, JointSegmenter):
            head = head.fitted_to(host)
        self.host, self.head, self.config = host, head, head.head_config
        self.seed, self.ensemble, self.chunk = int(seed), int(ensemble), int(chunk)
        self.resolution, self.progress = resolution, progress
        if not isinstance(head, JointSegmenter):  # which was fitted above
            require_fit(host, self.config)
        self._input: Tensor | None = None
        self._size: Size = (0, 0)
        self._latents: Tensor | None = None
        self._captured: Taps | None = None

    def set_image(self, image: Any, *, value_range: Range | None = None) -> None:
        """A PIL image, a uint8 array h w 3, or a float tensor b 3 h w. Encodes it, once. An error changes nothing.

        `value_range` says what a float tensor's black and white are: (-1, 1) if None. One whose values all lie in
        [0, 1] could be of two ranges: there it must be stated, (0, 1) or (-1, 1), or InputError asks for it.
        """
        picture = Picture.of(image, value_range)
        pixels = picture.at(self._network_size(picture.size)).clamp(-1, 1).to(self.host.device)
        needs_latents = bool(self.config.tap_specs) or not self.config.takes_pixels
        latents = self._encoded(pixels) if needs_latents else None
        self._size, self._latents, self._captured = picture.size, latents, None
        self._input = pixels if self.config.takes_pixels else latents

    def _encoded(self, pixels: Tensor) -> Tensor:
        latents = self.host.encode_image(pixels.to(self.host.dtype)).float()
        require_finite(latents, "the VAE's latents", "Run the VAE in float32.")
        return latents

    def set_latents(
        self, latents: Float[Tensor, "b 4 h w"], size: Size | None = None, taps: Taps | None = None
    ) -> None:
        """Model-space latents, as a generator made them; the VAE is not touched. `size` is the image's (height, width),
        8 times the latents' if None. `taps`, captured while these latents were made, spare `predict` the UNet."""
        if self.config.takes_pixels:
            raise InputError("Expected an image: this head (RGBNet) reads pixels, not latents. Call set_image.")
        latents = _checked_latents(latents, self.config.in_channels)
        full = (latents.shape[2] * PIXELS_PER_LATENT, latents.shape[3] * PIXELS_PER_LATENT)
        if taps is not None:
            _check_taps(taps, self.config.tap_specs, len(latents))
        self._size = full if size is None else _checked_size(size)
        height, width = self._network_size(full) if self.resolution == "head" else full
        self._latents = resize(latents, (height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)).to(self.host.device)
        self._input, self._captured = self._latents, taps

    @torch.no_grad()
    def predict(self, phrases: Sequence[str]) -> Segmentation:
        """A mask per phrase (`phrases` says how they are read), in the order given, for every image that was set."""
        if self._input is None:
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
        logits, scores, deviations = [], [], []
        tick = self._counter(len(terms))
        for pairs, job in self._jobs(terms):
            members = []
            for member in range(self.ensemble):
                members.append(job(member))
                tick(pairs)
            maps = torch.stack([m[0] for m in members])
            require_finite(maps, "the masks", "Run host and head in float32 or bfloat16.")
            logits.append(maps.mean(0))
            scores.append(torch.stack([m[1] for m in members]).mean(0))
            if self.ensemble > 1:
                deviations.append(maps.sigmoid().std(0))

        def gather(parts: list[Tensor]) -> Tensor:
            return torch.cat(parts).unflatten(0, (-1, len(terms)))

        return gather(logits), gather(scores), gather(deviations) if deviations else None

    def _counter(self, terms: int) -> Callable[[int], None]:
        assert self._input is not None
        done, total = 0, len(self._input) * terms * self.ensemble

        def tick(pairs: int) -> None:
            nonlocal done
            done += pairs
            if self.progress:
                self.progress(done, total)

        return tick

    def _jobs(self, terms: Sequence[str]) -> Iterator[tuple[int, Job]]:
        """The work in pieces: how many (image, term) pairs each has, and what gives the logits n h w and scores n of
        an ensemble's member."""
        assert self._input is not None
        images = range(len(self._input))
        if isinstance(self.head, JointSegmenter):
            for b in images:
                yield len(terms), partial(self._together, self.head, b, terms)
            return
        context = self._context(terms)
        pairs = [(b, t) for b in images for t in range(len(terms))]
        for start in range(0, len(pairs), self.chunk):
            chunk = pairs[start : start + self.chunk]
            yield len(chunk), partial(self._member, self.head, chunk, context)

    def _together(self, head: JointSegmenter, image: int, terms: Sequence[str], member: int) -> tuple[Tensor, Tensor]:
        assert self._latents is not None
        clean = self._latents[image : image + 1].to(self.host.dtype)
        logits, scores = head.segment_together(self.host, clean, terms, self._timestep(member), self.seed + member)
        return logits[0].float(), scores[0].float()

    def _context(self, terms: Sequence[str]) -> Tensor:
        texts = [fill(self.config.template, term) for term in terms]
        parts = [self.host.encode_text(list(texts[i : i + 64])) for i in range(0, len(texts), 64)]
        return torch.cat(parts)

    def _member(
        self, head: LDZNet, chunk: Sequence[tuple[int, int]], context: Tensor, member: int
    ) -> tuple[Tensor, Tensor]:
        """Logits n h w and scores n of one (t, noise) for a chunk of (image, term) pairs."""
        assert self._input is not None
        images = torch.tensor([b for b, _ in chunk])
        context = context[[t for _, t in chunk]]
        taps = self._taps(images, context, member)
        inputs = _like(self._input[images.to(self._input.device)], head)
        zeros = torch.zeros(len(chunk), dtype=torch.int64, device=inputs.device)
        taps = {block: _like(tap, head) for block, tap in taps.items()}
        logits, presence = head.segment(inputs, zeros, _like(context, head), taps)
        logits = logits[:, 0].float()
        return logits, score_of(logits) if presence is None else presence.float().sigmoid()

    def _taps(self, images: Tensor, context: Tensor, member: int) -> dict[str, Tensor]:
        blocks = list(self.config.tap_specs)
        if not blocks:
            return {}
        if self._captured is not None:
            return {block: self._fitted(self._captured[block], block)[images] for block in blocks}
        noisy, timesteps = self._noisy(images, member)
        return dict(self.host.extract(noisy, timesteps, context, blocks))

    def _fitted(self, tap: Tensor, block: str) -> Tensor:
        """A captured tap at the size that the latents as set would give it."""
        assert self._latents is not None
        height, width = self._latents.shape[2:]
        return resize(tap, tap_size((height, width), self.config.tap_specs[block].stride))

    def _noisy(self, images: Tensor, member: int) -> tuple[Tensor, Tensor]:
        """The latents of some images at a member's t, and that t for each."""
        assert self._latents is not None
        clean = self._latents[images.to(self._latents.device)].to(self.host.dtype)
        noise = seeded_noise((1, *clean.shape[1:]), self.seed + member).to(clean).expand_as(clean)
        timesteps = torch.full((len(clean),), self._timestep(member), device=clean.device)
        return self.host.add_noise(clean, noise, timesteps), timesteps

    def _timestep(self, member: int) -> int:
        """The head's own t alone; an ensemble spreads evenly over its range of t."""
        if self.ensemble == 1:
            return self.config.timestep
        low, high = self.config.timestep_range
        return round(low + (high - low) * (member + 0.5) / self.ensemble)

    def _network_size(self, size: Size) -> Size:
        if self.resolution == "native":
            return round_to_multiple(size[0], PIXELS_PER_LATENT), round_to_multiple(size[1], PIXELS_PER_LATENT)
        height, width = self.config.latent_grid
        return fit_area(size, height * width * PIXELS_PER_LATENT**2, self.config.size_multiple)


def require_fit(host: Host, config: HeadConfig) -> None:
    """Raises HostError that names the width or the block in which `host` is not what a head was trained on."""
    expected = config.unet.context_dim
    family = getattr(host, "family", None)
    if family in UNTRAINED:
        raise HostError(
            f"Expected a host of context width {expected}, which this head was trained on, got {UNTRAINED[family]}, "
            "which no trained head fits yet. Load the model that the head belongs to, or take the attention head."
        )
    if host.context_dim != expected:
        raise HostError(
            f"Expected a host of context width {expected}, which this head was trained on, got "
            f"{host.context_dim}. Load the model that the head belongs to, or another head."
        )
    for block, spec in config.tap_specs.items():
        if host.specs.get(block) != spec:
            raise HostError(f"Expected a host with {spec}, got {host.specs.get(block)}. Load the head's model.")


def score_of(logits: Float[Tensor, "n h w"]) -> Float[Tensor, " n"]:
    """The highest probability of the mask averaged over 8 x 8 pixels: a score for heads without a presence output."""
    return F.avg_pool2d(logits.sigmoid()[:, None], PIXELS_PER_LATENT).amax(dim=(1, 2, 3))


def _like(tensor: Tensor, module: torch.nn.Module) -> Tensor:
    return tensor.to(next(module.parameters()))


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral)


def _is_count(value: Any) -> bool:
    return _is_whole(value) and value >= 1


def _require_parts(host: Any, head: Any) -> None:
    if not hasattr(head, "head_config"):
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


def _check_taps(taps: Taps, specs: Mapping[str, TapSpec], batch: int) -> None:
    for block, spec in specs.items():
        tap = taps.get(block)
        if tap is None or tap.ndim != 4 or tap.shape[:2] != (batch, spec.channels):
            got = "none" if tap is None else tuple(tap.shape)
            raise InputError(
                f"Expected tap {block} as {batch} {spec.channels} h w, got {got}. Capture all of the head's blocks."
            )
        require_finite(tap, f"tap {block}")
