"""What the section does when a run begins, in both tabs, told by what the host's processing object `p` has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import detailing, inpainting, running
from .calls import Calls
from .looking import Looker
from .settings import Settings

FOR_IMG2IMG = "phrases are for img2img, which has a picture to look at: here write them as details"


def begin(p: Any, arguments: Sequence[Any], looker: Looker, calls: Calls) -> None:
    """In `process`: the settings in the infotext, img2img's mask, and what is to be done with the pictures to come.

    Nothing is raised: arguments that make no sense leave img2img's picture as it is, and let txt2img run as ever.
    """
    detailing.end(p)
    has_pictures = getattr(p, "init_images", None) is not None
    try:
        settings = Settings.of(arguments)
    except ValueError as error:
        running.noted(p, Settings())
        if has_pictures:
            inpainting.leave(p, running.begun(p), calls)
        running.said(p, [f"{'the picture is left as it is' if has_pictures else 'nothing is done'}: {error}"])
        return
    running.noted(p, settings)
    if settings.lines and has_pictures:
        inpainting.prepare(p, settings, looker, calls)
    elif settings.lines:
        running.said(p, [FOR_IMG2IMG])
    detailing.begin(p, settings)
