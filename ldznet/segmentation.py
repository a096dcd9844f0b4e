"""What a prediction is: soft masks, which of them are there at all, and the one place where thresholds live."""

from __future__ import annotations

import dataclasses
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import InputError, shown
from .shapes import Bool, Float, Size

MOST_BYTES = 4 * 1024**3
LEAST_SHARE = 0.001  # of a picture, that is given in figures
UNCALIBRATED = "this head cannot tell absent phrases: compare scores with each other, and look at the masks"


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """`logits` at the network's size for `phrases` in the order given; everything else is made on asking.

    `scores` (b, p) in [0, 1] says how sure it is that a phrase is in the image; `found` is scores >= found_threshold.
    The scores are the head's presence output; for a head without one (the published head), the highest probability
    of the mask averaged over 8 x 8 network pixels. `size` (height, width) is the image's own. Scores that are not
    `calibrated` (of the attention head, but for the tiny world) can be compared with each other only.
    """

    logits: Float[Tensor, "b p h w"]
    phrases: tuple[str, ...]
    size: Size
    scores: Float[Tensor, "b p"]
    found_threshold: float = 0.5
    deviation: Float[Tensor, "b p h w"] | None = None  # of the ensemble's probabilities, at the network's size
    calibrated: bool = True
    hints: tuple[str, ...] = ()  # sentences on how phrases were read, where that is not as typed

    @property
    def found(self) -> Bool[Tensor, "b p"]:
        """Whether each phrase is in each image, by its score alone: at a high threshold its mask may still be empty."""
        return self.scores >= self.found_threshold

    def state(self, image: int, phrase: int, share: float | None = None) -> str:
        """What every line and legend says of a phrase, whose mask covers `share` (0 .. 1) of the picture.

        "found" or "not found"; "found?" where scores are not calibrated, since nothing counts as absent there. With a
        share "found, 12.3 %", or "nothing over the threshold" where the score says found and the mask is empty.
        """
        if self.calibrated and not self.found[image, phrase]:
            return "not found"
        found = "found" if self.calibrated else "found?"
        if share is None:
            return found
        if share == 0:
            return "nothing over the threshold"
        return f"{found}, {100 * share:.1f} %" if share >= LEAST_SHARE else f"{found}, under {100 * LEAST_SHARE} %"

    def score_text(self, image: int, phrase: int) -> str:
        """ "score 0.98", or "score 0.50 (not calibrated)": every page, line and legend that shows a score says this."""
        return f"score {self.scores[image, phrase]:.2f}" + ("" if self.calibrated else " (not calibrated)")

    @property
    def caveat(self) -> str:
        """One sentence to show beside scores that are not calibrated; empty where they are."""
        return "" if self.calibrated else UNCALIBRATED

    @property
    def probabilities(self) -> Float[Tensor, "b p h w"]:
        """float32 at the image's own size, never altered by `found`. Raises InputError over 4 GB."""
        return self._resize(self.logits).sigmoid()

    @property
    def spread(self) -> Float[Tensor, "b p h w"] | None:
        """Standard deviation of the probabilities over the ensemble at the image's size; None without an ensemble."""
        return None if self.deviation is None else self._resize(self.deviation).clamp(min=0)

    def masks(self, threshold: float = 0.5) -> Bool[Tensor, "b p h w"]:
        """Where the probability is over `threshold` (0 .. 1); all false for a phrase that was not found."""
        if not (isinstance(threshold, Real) and 0 <= threshold <= 1):
            raise InputError(f"Expected a number between 0 and 1 as threshold, got {shown(repr(threshold))}.")
        images, phrases = self.logits.shape[:2]
        self._require_room(images * phrases)
        out = torch.empty((images, phrases, *self.size), dtype=torch.bool, device=self.logits.device)
        for i in range(phrases):  # one by one: a byte a pixel of each, and floats of one alone
            out[:, i] = (self._resize(self.logits[:, i : i + 1])[:, 0].sigmoid() > threshold) & self.found[
                :, i, None, None
            ]
        return out

    def select(self, phrases: slice | list[int]) -> Segmentation:
        """The same for some of the phrases: `result.select(slice(0, 10)).masks()` needs less memory."""
        if isinstance(phrases, slice):
            phrases = list(range(len(self.phrases)))[phrases]
        return dataclasses.replace(
            self,
            logits=self.logits[:, phrases],
            phrases=tuple(self.phrases[i] for i in phrases),
            scores=self.scores[:, phrases],
            deviation=None if self.deviation is None else self.deviation[:, phrases],
        )

    def _require_room(self, bytes_a_pixel: int) -> None:
        """Raises InputError where maps or masks of the image's size would take over 4 GB."""
        (images, phrases), needed = self.logits.shape[:2], bytes_a_pixel * self.size[0] * self.size[1]
        if needed > MOST_BYTES:
            raise InputError(
                f"Expected masks of at most 4 GB, got {needed / 1024**3:.1f} GB (images x phrases: {images} x "
                f"{phrases}, at {self.size[0]} x {self.size[1]}). Ask for a few phrases at a time: "
                "result.select(slice(0, 10))."
            )

    def _resize(self, maps: Tensor) -> Tensor:
        images, phrases = maps.shape[:2]
        self._require_room(4 * images * phrases)
        if maps.shape[2:] == torch.Size(self.size):
            return maps.float()
        if not phrases:
            return maps.new_zeros((images, 0, *self.size), dtype=torch.float32)
        return F.interpolate(maps.float(), size=self.size, mode="bilinear", align_corners=False, antialias=True)
