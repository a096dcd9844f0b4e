"""img2img → inpaint by words: what is done before the host begins with a picture, whatever goes wrong on the way."""

from __future__ import annotations

from typing import Any

from PIL import Image

from ..errors import LDZNetError
from . import running
from .calls import Calls, Cancelled
from .looking import Looker, Question
from .painting import painting
from .settings import Settings


def prepare(p: Any, settings: Settings, looker: Looker, calls: Calls) -> None:
    """Gives `p` the mask of the phrases, or has it leave its picture as it is; says in `p` which.

    Nothing is raised: the hosts would log it and repaint everything, without a mask.
    """
    run = running.begun(p)
    try:
        picture = running.picture_of(p, calls.flatten)
        found = _painting(p, picture, settings, looker, calls)
        passes, notes = running.usable(p, found.passes)
        running.said(p, [*found.lines, *notes])
        if passes:
            run.paint(p, passes)
            return
        if running.stops(settings):
            calls.stop()
    except Cancelled:
        running.said(p, ["stopped while phrases were looked for"])
    except (LDZNetError, ValueError) as error:
        running.said(p, [f"the picture is left as it is: {error}"])
    except Exception as error:
        calls.failed(f"masks by words: {error}")
        running.said(p, [f"the picture is left as it is: {type(error).__name__}: {error} (the log says more)"])
    leave(p, run, calls)


def _painting(p: Any, picture: Image.Image, settings: Settings, looker: Looker, calls: Calls) -> Any:
    question = Question(tuple(settings.lines), settings.head, calls.weights())
    with calls.without_networks():
        found = looker.look(calls.sd_model(), picture, question, calls.check)
    return painting(found, picture, settings, running.drawn_by_the_user(p), calls.check)


def leave(p: Any, run: running.Run, calls: Calls) -> None:
    """Has `p` give its picture back. Where there are several, each its own; with none the host says so itself."""
    originals = [calls.resized(p, calls.flatten(image)) for image in p.init_images or [] if image is not None]
    if originals:
        run.leave(p, originals)
