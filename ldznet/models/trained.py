"""What a head with weights does around its network: template, text, noise, taps; a row for each picture and phrase.

The paper's inference (section 3.3), made deterministic. The network itself is in `ldznet.py`; a host that moves weights
about wraps it in a class of its own. Knows hosts by `contracts.Host` alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import HeadConfig
from ..contracts import FAMILIES, AttentionHost, Captured, Conditioning, Host, Taps, named_width
from ..errors import HostError, InputError
from ..images import require_finite, resize
from ..phrases import fill
from ..schedule import seeded_noise
from ..shapes import PIXELS_PER_LATENT, Float, Int, tap_size
from ..taps import reading

SELF = TypeVar("SELF", bound="TrainedHead")


class TrainedHead:
    """A `contracts.Head` around the network that `masks_and_presence` runs."""

    head_config: HeadConfig

    def masks_and_presence(
        self,
        latents: Float[Tensor, "n c h w"],
        timesteps: Int[Tensor, " n"],
        context: Float[Tensor, "n m d"],
        taps: Taps | None = None,
    ) -> tuple[Float[Tensor, "n 1 8*h 8*w"], Float[Tensor, " n"] | None]:
        """Mask logits and presence logits (None for a head without that output), from one pass of the network."""
        raise NotImplementedError

    @property
    def example(self) -> Tensor:
        """A tensor of the dtype and on the device that the network runs in."""
        raise NotImplementedError

    def fitted_to(self: SELF, host: Host) -> SELF:
        """Itself; raises HostError for a host that is not what the head was trained on."""
        require_fit(host, self.head_config)
        return self

    @torch.no_grad()
    def segment(
        self,
        host: Host,
        latents: Float[Tensor, "b c h w"] | None,
        phrases: Sequence[str],
        *,
        timestep: int,
        seed: int,
        captured: Captured | None = None,
        pixels: Float[Tensor, "b 3 8*h 8*w"] | None = None,
    ) -> tuple[Float[Tensor, "b p 8*h 8*w"], Float[Tensor, "b p"]]:
        """As `contracts.Head.segment`. One run of the network, and of the host's UNet unless taps were `captured`.

        The noise is the same field for every picture and phrase, so that a mask does not depend on what else is asked.
        The head's own timestep is always 0 (paper, section 3.2); `timestep` is that of the taps.
        """
        config = self.head_config
        inputs = pixels if config.takes_pixels else latents
        assert inputs is not None
        text = conditioned(host, [fill(config.template, phrase) for phrase in phrases])
        pairs = text.repeated(len(inputs))  # all phrases of the first picture, then of the next
        taps: Taps = {}
        if config.tap_specs:
            assert latents is not None
            taps = _of_pairs(captured, len(phrases)) or self.extracted(host, latents, pairs, timestep, seed)
        logits, presence = self.masks_over(host, inputs.repeat_interleave(len(phrases), dim=0), pairs, taps)
        logits = logits[:, 0].float()
        scores = score_of(logits) if presence is None else presence.float().sigmoid()
        return logits.unflatten(0, (len(inputs), -1)), scores.unflatten(0, (len(inputs), -1))

    def masks_over(
        self, host: Host, rows: Float[Tensor, "n c h w"], text: Conditioning, taps: Taps
    ) -> tuple[Float[Tensor, "n 1 H W"], Float[Tensor, " n"] | None]:
        """`masks_and_presence` of latents (pixels, where the head takes those) at timestep 0, with all that it reads
        where the network is."""
        rows, read = self._placed(rows), {block: self._placed(tap) for block, tap in taps.items()}
        zeros = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
        return self.masks_and_presence(rows, zeros, self._placed(text.context), read)

    def extracted(self, host: Host, latents: Tensor, text: Conditioning, timestep: int, seed: int) -> Taps:
        """Taps of a pass for each picture and phrase: `text` has the phrases of the first picture, then the next."""
        clean = latents.to(host.dtype).repeat_interleave(len(text.context) // len(latents), dim=0)
        noise = seeded_noise((1, *clean.shape[1:]), seed).to(clean).expand_as(clean)
        timesteps = torch.full((len(clean),), timestep, dtype=torch.int64, device=clean.device)
        noisy = host.add_noise(clean, noise, timesteps)
        return taps_of(host, noisy, timesteps, text, list(self.head_config.tap_specs))

    def _placed(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.example)


def conditioned(host: Host, texts: Sequence[str]) -> Conditioning:
    """The context of each text, and all else that the host's UNet needs with it."""
    if host.family == "sdxl":
        return cast(AttentionHost, host).condition(texts)
    return Conditioning(host.encode_text(texts))


def taps_of(
    host: Host,
    noisy: Float[Tensor, "n c h w"],
    timesteps: Int[Tensor, " n"],
    text: Conditioning,
    blocks: Sequence[str],
) -> Taps:
    """As `Host.extract`, of a UNet that needs more than a context too."""
    if text.extras:
        return cast(AttentionHost, host).observe(noisy, timesteps, text, lambda unet: reading(unet, blocks))
    return host.extract(noisy, timesteps, text.context, blocks)


@dataclass(frozen=True)
class CapturedTaps:
    """Taps that a sampler's own pass left, as `contracts.Captured`: block name to b c h w, a row a picture."""

    taps: Mapping[str, Tensor]

    def fitted_to(self, config: HeadConfig, latents: Float[Tensor, "b 4 h w"]) -> CapturedTaps:
        """Those that a head of `config` reads, at the size that a pass over `latents` would give them. Raises
        InputError for a block that is missing, or whose tap has another shape or holds NaN."""
        size, fitted = (latents.shape[2], latents.shape[3]), {}
        for block, spec in config.tap_specs.items():
            tap = self.taps.get(block)
            if tap is None or tap.ndim != 4 or tap.shape[:2] != (len(latents), spec.channels):
                got = "none" if tap is None else tuple(tap.shape)
                raise InputError(
                    f"Expected tap {block} as {len(latents)} {spec.channels} h w, got {got}. Capture all of the head's "
                    "blocks."
                )
            require_finite(tap, f"tap {block}")
            fitted[block] = resize(tap, tap_size(size, spec.stride))
        return CapturedTaps(fitted)

    def rows(self, images: slice) -> CapturedTaps:
        """Those of some of the pictures."""
        return CapturedTaps({block: tap[images] for block, tap in self.taps.items()})


def require_fit(host: Host, config: HeadConfig) -> None:
    """Raises HostError that names the width or the block in which `host` is not what a head was trained on."""
    expected, family = config.unet.context_dim, FAMILIES[host.family]
    if not family.has_trained_heads:
        raise HostError(
            f"Expected a host of context width {expected}, which this head was trained on, got {family.title}, which "
            "no trained head fits yet. Load the model that the head belongs to, or take the attention head."
        )
    if host.context_dim != expected:
        raise HostError(
            f"Expected a host of context width {expected}, which this head was trained on, got "
            f"{named_width(host.context_dim)}. Load the model that the head belongs to, or another head."
        )
    for block, spec in config.tap_specs.items():
        if host.specs.get(block) != spec:
            raise HostError(f"Expected a host with {spec}, got {host.specs.get(block)}. Load the head's model.")


def score_of(logits: Float[Tensor, "n h w"]) -> Float[Tensor, " n"]:
    """The highest probability of the mask averaged over 8 x 8 pixels: a score for heads without a presence output."""
    return F.avg_pool2d(logits.sigmoid()[:, None], PIXELS_PER_LATENT).amax(dim=(1, 2, 3))


def _of_pairs(captured: Any, phrases: int) -> Taps:
    """Captured taps, those of each picture once for each phrase; empty where nothing was captured."""
    taps: Taps = {} if captured is None else captured.taps
    return {block: tap.repeat_interleave(phrases, dim=0) for block, tap in taps.items()}
