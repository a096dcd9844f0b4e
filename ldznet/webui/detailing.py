"""Detail by words: regions of pictures that were just made, found in their latents and painted again, line by line.

`p` is the host's processing object, in either tab. The latents are looked at as the sampler returned them, the masks
are finished when the host has decoded its pictures, and each pass is an img2img run of the host's own. Nothing is
raised: whatever goes wrong leaves a picture as it is and says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from ..errors import LDZNetError
from ..segmentation import Segmentation
from . import running
from .calls import Calls, Cancelled
from .looking import Looker, Question
from .painting import Mask, is_blank, lines_of, masks_of, outlives_blur, present, with_masks
from .sampling import Words, keep_next_latents, seen, words_of
from .settings import RESULT, Order, Settings

DETAILS = "_ldznet_details"  # the attribute of `p` that holds its Details
LEFT = "no details, for the picture is left as it is"
STOPPED = "stopped before all details were done"
NO_LATENTS = "no details: this host does not show the latents of its pictures"


class Pass(NamedTuple):
    """One detail of one picture, painted where `mask` is white. `at` is the picture's number in the run, `number` the
    detail's."""

    picture: Image.Image
    mask: Mask
    order: Order
    settings: Settings
    at: int
    number: int


Paint = Callable[[Any, Pass], "Image.Image | None"]
"""`p` and a pass; gives the picture with it, None where the user has stopped or skipped it."""


class Details:
    """What is to be painted again in the pictures of a `p`, and what was found in the present batch."""

    def __init__(self, settings: Settings, before: str) -> None:
        self.settings = settings
        self.before = before  # what the infotext says already
        self.latents: Tensor | None = None  # that a sampler returned last
        self.words: Words | None = None  # what that sampler's steps show
        self.found: list[Segmentation] = []  # in each picture
        self.notes: list[str] = []  # on all pictures of the batch
        self.lines: list[str] = []  # on each
        self.shown: list[Image.Image] = []  # after the pictures, in the gallery

    @property
    def phrases(self) -> list[str]:
        """What is looked for."""
        return [order.phrase for order in self.settings.orders]


def begin(p: Any, settings: Settings) -> None:
    """Has the pictures of `p` detailed, if there is anything to detail."""
    if settings.orders:
        setattr(p, DETAILS, Details(settings, p.extra_generation_params.get(RESULT, "")))


def details_of(p: Any) -> Details | None:
    """Those of `p`, if it has any."""
    return getattr(p, DETAILS, None)


def end(p: Any) -> Details | None:
    """Takes the details from `p`, and gives them."""
    return vars(p).pop(DETAILS, None)


def before_sampling(p: Any, conditionings: Any, noise: Tensor, looker: Looker, calls: Calls) -> None:
    """Has the latents kept that the sampler is about to make; and what its steps show, where that is asked.

    `conditionings` are those of the positive prompts.
    """
    details = details_of(p)
    if details is None:
        return
    details.latents, details.words, details.notes = None, None, []
    if details.settings.while_sampling and not running.is_left(p):
        with _guarded(details.notes, calls, "the sampling is not read"):
            size = (noise.shape[-2], noise.shape[-1])
            details.words = words_of(p, details.settings, details.phrases, conditionings, size, looker, calls)
    keep_next_latents(p.sampler, details.words, lambda latents: setattr(details, "latents", latents))


def after_sampling(p: Any, samples: Any, looker: Looker, calls: Calls) -> None:
    """Looks for the phrases in the latents of a batch: in `samples`, or in what the sampler returned where the host has
    decoded that already (hires fix)."""
    details = details_of(p)
    if details is None:
        return
    latents, words = samples if isinstance(samples, Tensor) else details.latents, details.words
    details.found, details.lines, details.latents, details.words = [], [], None, None
    if running.is_left(p) or latents is None:
        details.notes.append(LEFT if running.is_left(p) else NO_LATENTS)
        return
    with _guarded(details.notes, calls, "no details"):
        calls.check()
        question = Question(tuple(details.phrases), details.settings.head, calls.weights())
        with calls.without_networks():
            host = looker.host(calls.sd_model())
            captured, details.lines = seen(words, len(latents), host)
            details.found = looker.look_at_latents(host, latents, question, captured, calls.check)


def repainted(p: Any, picture: Image.Image, calls: Calls, paint: Paint) -> Image.Image:
    """`picture`, the one at `p.batch_index`, with its details; says in `p` what became of each."""
    details = details_of(p)
    if details is None:
        return picture
    lines = [*filter(None, [details.before]), *details.notes]
    if details.found:
        with _guarded(lines, calls, "the rest of the details is left out"):
            for painted in _painted(details, p, picture, lines, calls, paint):
                picture = painted
    running.said(p, lines)
    return picture


def _painted(
    details: Details, p: Any, picture: Image.Image, lines: list[str], calls: Calls, paint: Paint
) -> Iterator[Image.Image]:
    """The picture after each of its details."""
    settings, first = details.settings, picture.convert("RGB")
    found = dataclasses.replace(details.found[p.batch_index], size=(picture.height, picture.width))
    soft = present(found)
    masks = masks_of(soft, first, settings, calls.check)
    lines += [*lines_of(found, soft, settings), *details.lines[p.batch_index : p.batch_index + 1]]
    there = [(i, mask) for i, mask in enumerate(masks) if not is_blank(mask)]
    if settings.gallery and there:
        names, shown = [details.phrases[i] for i, _ in there], [mask for _, mask in there]
        details.shown += [with_masks(first, shown, names), *shown]
    for number, mask in there:
        order, blur = settings.orders[number], settings.blur
        if not outlives_blur(mask, (blur, blur)):
            lines.append(f"{order.phrase}: a blur of {blur} leaves nothing of so small a mask: lower it")
            continue
        calls.check()
        at = p.iteration * p.batch_size + p.batch_index
        done = paint(p, Pass(picture, mask, order, settings, at, number))
        if done is None:
            raise Cancelled
        yield (picture := done)


def finished(p: Any, processed: Any) -> None:
    """Takes leave of `p`; masks and overlays follow the pictures where that was asked."""
    details = end(p)
    if details is not None:
        processed.images.extend(details.shown)
        processed.infotexts.extend([processed.infotexts[0] if processed.infotexts else ""] * len(details.shown))


@contextlib.contextmanager
def _guarded(lines: list[str], calls: Calls, outcome: str) -> Iterator[None]:
    """Whatever is raised inside becomes a line, and a fault of ours an entry in the log."""
    try:
        yield
    except Cancelled:
        lines.append(STOPPED)
    except (LDZNetError, ValueError) as error:
        lines.append(f"{outcome}: {error}")
    except Exception as error:
        calls.failed(f"detail by words: {error}")
        lines.append(f"{outcome}: {type(error).__name__}: {error} (the log says more)")
