"""One run of img2img: a mask by words handed to it before it begins, or the picture left as it is, to the bit.

`p` is the host's processing object, known by the attributes that A1111 and the Forges share. What is set on it is put
back when the run ends: the Batch tab uses one `p` for all its files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from ..errors import InputError
from .painting import Mask, drawn_mask, is_blank, outlives_blur
from .settings import PREFIX, RESULT, STOP, Settings

RUN = "_ldznet_run"  # the attribute of `p` that holds its Run
SEPARATOR = "; "

Repaint = Callable[[Any, Image.Image, Mask, int], Image.Image]
"""`p`, a finished picture, a mask and the picture's place in the batch; gives the picture, repainted there."""


class Run:
    """What was done to a `p`, and what is still to be done with its pictures."""

    def __init__(self, p: Any) -> None:
        self.later: list[Mask] = []
        self.originals: list[Image.Image] = []
        self._mask, self._had_sample = p.image_mask, "sample" in vars(p)
        self._handed: Mask | None = None

    def paint(self, p: Any, passes: Sequence[Mask]) -> None:
        """The first mask goes to the host, the others wait until its pictures are there."""
        self._handed, self.later = passes[0], list(passes[1:])
        p.image_mask = self._handed

    def leave(self, p: Any, originals: Sequence[Image.Image]) -> None:
        """`p` gives back `originals`, one or one for each place of a batch: nothing is sampled, and what comes out is
        replaced by them."""
        p.image_mask, self.originals = None, list(originals)
        p.sample = lambda *_, **__: p.init_latent

    def finish(self, p: Any, picture: Image.Image, place: int, repaint: Repaint) -> Image.Image:
        """The final picture of one that has just been composited."""
        if self.originals:
            return self.originals[min(place, len(self.originals) - 1)].copy()
        for mask in self.later:
            picture = repaint(p, picture, mask, place)
        return picture

    def end(self, p: Any) -> None:
        """Puts back what was set; another script's mask, set since, stays."""
        if p.image_mask is self._handed or self.originals:
            p.image_mask = self._mask
        if self.originals and not self._had_sample:
            del p.sample
        if getattr(p, RUN, None) is self:
            delattr(p, RUN)


def begun(p: Any) -> Run:
    """A run of `p`, with one that did not come to its end taken back first."""
    earlier = getattr(p, RUN, None)
    if earlier is not None:
        earlier.end(p)
    run = Run(p)
    setattr(p, RUN, run)
    return run


def noted(p: Any, settings: Settings) -> None:
    """The settings in the infotext, without what the run before left there: the Batch tab has one `p` for its files."""
    for key in [key for key in p.extra_generation_params if key.startswith(PREFIX)]:
        del p.extra_generation_params[key]
    p.extra_generation_params.update(settings.infotext())


def is_left(p: Any) -> bool:
    """Whether `p` gives its pictures back as they are."""
    run = run_of(p)
    return run is not None and bool(run.originals)


def run_of(p: Any) -> Run | None:
    """The run that `p` is in, if the section has one."""
    return getattr(p, RUN, None)


def picture_of(p: Any, flatten: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """The one RGB picture that `p` is about to repaint. Raises InputError where its pictures differ: the host takes one
    mask for all of them."""
    pictures = [picture for picture in p.init_images or [] if picture is not None]
    if not pictures:
        raise InputError("Expected a picture in img2img, got none. Give one.")
    first = flatten(pictures[0]).convert("RGB")
    if any(flatten(other).convert("RGB").tobytes() != first.tobytes() for other in pictures[1:]):
        raise InputError(
            f"Expected one picture in a batch, got {len(pictures)} that differ, for which the host takes one mask. Use "
            "the Batch tab or one call for each."
        )
    return first


def drawn_by_the_user(p: Any) -> Mask | None:
    """The mask that came with `p`."""
    return drawn_mask(p.image_mask)


def usable(p: Any, passes: Sequence[Mask]) -> tuple[list[Mask], list[str]]:
    """Those of `passes` that the host can repaint by, and a sentence on each kind of those it cannot.

    A blank mask is never handed on: with "Only masked" A1111 then repaints all, and a Forge crops the wrong way round.
    """
    inverted, blur = bool(p.inpainting_mask_invert), (int(p.mask_blur_x or 0), int(p.mask_blur_y or 0))
    whole = [mask for mask in passes if not is_blank(mask, inverted)]
    left = [mask for mask in whole if outlives_blur(mask, blur, inverted)]
    notes = []
    if len(whole) < len(passes):
        notes.append("nothing is left outside of the mask, which Inpaint not masked repaints")
    if len(left) < len(whole):
        notes.append(f"Mask blur {max(blur)} leaves nothing of so small a mask: lower it, or grow the mask")
    return left, notes


def stops(settings: Settings) -> bool:
    """Whether the user wants no picture at all where nothing was found."""
    return settings.missing == STOP


def said(p: Any, lines: Sequence[str]) -> None:
    """What became of the phrases, in the infotext and below the pictures."""
    p.extra_generation_params[RESULT] = SEPARATOR.join(lines)
    for line in lines:
        p.comment(f"LD-ZNet: {line}")
