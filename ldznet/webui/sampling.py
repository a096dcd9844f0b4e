"""Words of the prompt, read from the sampler's own steps while it makes the pictures: which, and what came of it.

Prompts are the host's: of a prompt that is edited, what stands in it at the end; of one with AND, the part that holds
most of the phrases. A phrase that is not read so takes a pass of the UNet: its mask is right, and costs one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from ..attention import AttentionHead
from ..attention.prompts import spoken
from ..capture import AttentionCapture, Typed
from ..contracts import Captured
from ..errors import InputError
from ..hosts.webui_capture import around_next_run, calls_read, seen_of
from ..phrases import read, terms_of
from ..shapes import Size
from .calls import Calls
from .looking import Looker
from .settings import ATTENTION, Settings

OWN = "; all phrases took a pass of the UNet"
ABSENT = "none of the phrases stands in the prompt as it is when sampling ends" + OWN
NOTHING = "nothing was captured while sampling: another extension replaces, compiles or merges the UNet's calls" + OWN
LINKS = "; self-attention from a pass of its own, since few steps or another extension left none"


@dataclass
class Words:
    """What is read of a batch: by the place of each picture that a phrase is spoken of in, its prompt."""

    capture: AttentionCapture
    unet: Any
    prompts: Mapping[int, Typed]
    terms: Sequence[str]
    size: Size

    def around(self) -> AbstractContextManager[Any]:
        """The context in which the sampler is to run."""
        return calls_read(self.capture, self.unet, self.prompts, self.size)

    def seen(self, place: int, tokenize: Any) -> tuple[Captured | None, str]:
        """What was read of a picture, and a line about it."""
        if place not in self.prompts:
            return None, ABSENT
        found = seen_of(self.capture, place, self.prompts[place], self.terms, tokenize)
        if found is None:
            return None, NOTHING
        lacking = LINKS if found.lacks_links(self.capture.config) else ""
        return found, "read from the sampling: " + ", ".join(f'"{term}"' for term in found.prompt.phrases) + lacking


def keep_next_latents(sampler: Any, words: Words | None, keep: Callable[[Any], None]) -> None:
    """Has `keep` get the latents that `sampler` is about to make, and its steps read for `words`."""
    if hasattr(sampler, "launch_sampling"):
        around_next_run(sampler, contextlib.nullcontext if words is None else words.around, keep)


def seen(words: Words | None, count: int, host: Any) -> tuple[list[Captured | None], list[str]]:
    """What was read of each of `count` pictures, and a line about each; no lines where nothing was to be read."""
    if words is None:
        return [None] * count, []
    parts = [words.seen(place, host.tokenize) for place in range(count)]
    return [captured for captured, _ in parts], [line for _, line in parts]


def words_of(
    p: Any, settings: Settings, phrases: Sequence[str], conditionings: Any, size: Size, looker: Looker, calls: Calls
) -> Words:
    """What the next run of `p`'s sampler is to be read for; `conditionings` are those of its positive prompts.

    Raises LDZNetError for a head or a model that cannot be read so.
    """
    if settings.head != ATTENTION:
        raise InputError(f'Expected the head "{ATTENTION}" to read the sampling, got {settings.head}.')
    host = looker.host(calls.sd_model())
    config = AttentionHead().fitted_to(host).head_config
    prompts = p.hr_prompts if getattr(p, "is_hr_pass", False) else p.prompts
    terms, found = terms_of(read(phrases)), {}
    for place, (prompt, parts) in enumerate(zip(prompts, conditionings.batch, strict=True)):
        typed = [_typed(part, text, host) for part, text in zip(parts, calls.texts(p, prompt), strict=True)]
        said = [len(spoken(t.ids, terms, host.tokenize).phrases) for t in typed]
        if max(said):
            found[place] = typed[said.index(max(said))]
    return Words(AttentionCapture(host.sd_model, config, host.specs), host._unet, found, terms, size)


def _typed(part: Any, text: str, host: Any) -> Typed:
    """One part of a prompt: the last of its conditionings and the text that it is of. Raises InputError where they do
    not fit."""
    given = part.schedules[-1].cond
    context, ids = given["crossattn"] if isinstance(given, dict) else given, host.positions(text)
    if len(context) != len(ids):
        raise InputError(f'Expected a conditioning of {len(ids)} tokens for "{text[:40]}", got {len(context)}.')
    return Typed(context[None], ids)
