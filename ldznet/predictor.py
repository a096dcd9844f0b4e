"""Words in, mask out: dear work once in `set_image`, cheap `predict`. Knows hosts and heads by their contracts alone.

Deterministic: the same call on the same machine gives the same bits. The noise comes from a seeded CPU generator and is
the same field for every image and phrase, so a mask does not depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import HeadConfig
from .contracts import Host, JointSegmenter, Taps
from .errors import HostError, InputError
from .images import require_finite, resize, to_pixels
from .models import LDZNet
from .phrases import Phrase, fill, terms_of
from .schedule import seeded_noise
from .segmentation import Segmentation
from .shapes import PIXELS_PER_LATENT, Float, Size, fit_area, round_to_multiple, tap_size

RESOLUTIONS = ("head", "native")
Progress = Callable[[int, int], None]
Job = Callable[[int], tuple[Tensor, Tensor]]


class Predictor:
    """`host` makes latents, context and taps; `head` makes masks of them, or of what it finds in the host itself.

    `ensemble` averages over that many pairs of (t, noise) and gives their spread. `resolution` "head" brings the image
    to the area that the head was trained at, "native" keeps it. `chunk` (image, phrase) pairs run at once.
    `progress(done, total)` is called after each chunk and stops the run by raising.
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
        if ensemble < 1 or chunk < 1:
            raise InputError(f"Expected an ensemble and a chunk of at least 1, got {ensemble} and {chunk}.")
        if resolution not in RESOLUTIONS:
            raise InputError(f'Expected a resolution of {" or ".join(RESOLUTIONS)}, got "{resolution}".')
        if isinstance(head, JointSegmenter):
            head = head.fitted_to(host)
        self.host, self.head, self.config = host, head, head.head_config
        self.seed, self.ensemble, self.resolution, self.chunk, self.progress = (
            seed,
            ensemble,
            resolution,
            chunk,
            progress,
        )
        if not isinstance(head, JointSegmenter):  # which was fitted above
            require_fit(host, self.config)
        self._input: Tensor | None = None
        self._size: Size = (0, 0)
        self._latents: Tensor | None = None
        self._captured: Taps | None = None

    def set_image(self, image: Any) -> None:
        """A PIL image, a uint8 array h w 3, or a float tensor b 3 h w in [-1, 1]. Encodes it, once."""
        pixels = to_pixels(image)
        self._size = (pixels.shape[2], pixels.shape[3])
        pixels = resize(pixels, self._network_size(self._size)).clamp(-1, 1).to(self.host.device)
        needs_latents = bool(self.config.tap_specs) or not self.config.takes_pixels
        self._latents = self.host.encode_image(pixels.to(self.host.dtype)).float() if needs_latents else None
        self._input, self._captured = pixels if self.config.takes_pixels else self._latents, None

    def set_latents(
        self, latents: Float[Tensor, "b 4 h w"], size: Size | None = None, taps: Taps | None = None
    ) -> None:
        """Model-space latents, as a generator made them; the VAE is not touched. `size` is the image's (height, width),
        8 times the latents' if None. `taps`, captured while these latents were made, spare `predict` the UNet."""
        if self.config.takes_pixels:
            raise InputError("Expected an image: this head (RGBNet) reads pixels, not latents. Call set_image.")
        channels = self.config.in_channels
        if latents.ndim != 4 or latents.shape[1] != channels or 0 in latents.shape:
            raise InputError(f"Expected latents b {channels} h w in model space, got {tuple(latents.shape)}.")
        latents = latents.detach().float()
        require_finite(latents, "the latents")
        full = (latents.shape[2] * PIXELS_PER_LATENT, latents.shape[3] * PIXELS_PER_LATENT)
        self._size = size or full
        height, width = self._network_size(full) if self.resolution == "head" else full
        self._latents = resize(latents, (height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)).to(self.host.device)
        self._input, self._captured = self._latents, taps

    @torch.no_grad()
    def predict(self, phrases: Sequence[str]) -> Segmentation:
        """A mask per phrase ("a - b" leaves b out of a), in the order given, for every image that was set."""
        if self._input is None:
            raise InputError("Expected an image or latents first. Call set_image or set_latents.")
        if isinstance(phrases, str):
            raise InputError(f'Expected a list of phrases, got the string "{phrases[:40]}". Write ["{phrases[:40]}"].')
        parsed = [Phrase.parse(phrase) for phrase in phrases]
        terms = terms_of(parsed)
        if not terms:
            raise InputError("Expected at least one phrase, got none.")
        rows = {term: row for row, term in enumerate(terms)}
        logits, scores, deviation = self._run(terms)
        wanted = [rows[p.wanted] for p in parsed]
        combined = torch.stack([_without(logits, rows, p) for p in parsed], dim=1)
        return Segmentation(
            logits=combined,
            phrases=tuple(phrases),
            size=self._size,
            scores=scores[:, wanted],
            found_threshold=self.config.presence_threshold,
            deviation=None if deviation is None else deviation[:, wanted],
            calibrated=self.config.calibrated,
        )

    def _run(self, terms: Sequence[str]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits b t h w, scores b t and, for an ensemble, the deviation of the probabilities b t h w."""
        logits, scores, deviations = [], [], []
        for done, total, job in self._jobs(terms):
            members = [job(member) for member in range(self.ensemble)]
            maps = torch.stack([m[0] for m in members])
            logits.append(maps.mean(0))
            scores.append(torch.stack([m[1] for m in members]).mean(0))
            if self.ensemble > 1:
                deviations.append(maps.sigmoid().std(0))
            if self.progress:
                self.progress(done, total)

        def gather(parts: list[Tensor]) -> Tensor:
            return torch.cat(parts).unflatten(0, (-1, len(terms)))

        return gather(logits), gather(scores), gather(deviations) if deviations else None

    def _jobs(self, terms: Sequence[str]) -> Iterator[tuple[int, int, Job]]:
        """The work in pieces: how many (image, term) pairs are done after each, of how many, and what gives the logits
        n h w and scores n of an ensemble's member."""
        assert self._input is not None
        pairs = [(b, t) for b in range(len(self._input)) for t in range(len(terms))]
        if isinstance(self.head, JointSegmenter):
            for b in range(len(self._input)):
                yield (b + 1) * len(terms), len(pairs), partial(self._together, self.head, b, terms)
            return
        context = self._context(terms)
        for done, chunk in _chunks(pairs, self.chunk):
            yield done, len(pairs), partial(self._member, self.head, chunk, context)

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


def _without(logits: Tensor, rows: dict[str, int], phrase: Phrase) -> Tensor:
    """Logits b h w of the wanted term; with unwanted ones, of p(wanted) times each 1 - p(unwanted)."""
    wanted = logits[:, rows[phrase.wanted]]
    if not phrase.unwanted:
        return wanted
    log_p = F.logsigmoid(wanted.double()) + sum(F.logsigmoid(-logits[:, rows[u]].double()) for u in phrase.unwanted)
    return (log_p - torch.log(-torch.expm1(log_p))).clamp(-80, 80).float()


def _like(tensor: Tensor, module: torch.nn.Module) -> Tensor:
    return tensor.to(next(module.parameters()))


def _chunks(pairs: Sequence[Any], size: int) -> Iterator[tuple[int, Sequence[Any]]]:
    for start in range(0, len(pairs), size):
        chunk = pairs[start : start + size]
        yield start + len(chunk), chunk
