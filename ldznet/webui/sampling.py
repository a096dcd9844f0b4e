"""Words of the prompt, read from the sampler's own steps while it makes the pictures: which, and what came of it.

Prompts are the host's: of one that is edited, what stands in it at the last step, from the steps in which it does; of
one with AND, the part that holds most of the phrases. A phrase that is not read so takes a pass of the UNet: its mask
is right, and costs one.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from ..attention import AttentionHead
from ..attention.prompts import spoken
from ..capture import AttentionCapture, Typed
from ..contracts import Captured
from ..errors import InputError
from ..hosts.webui_capture import Key, around_next_run, calls_read, seen_of
from ..phrases import read, terms_of
from ..shapes import Size
from .calls import Calls
from .looking import Looker
from .settings import ATTENTION, Settings

OWN = "; all phrases took a pass of the UNet"
ABSENT = "none of the phrases stands in the prompt as it is at the last step" + OWN
NOTHING = "nothing was captured while sampling: another extension replaces, compiles or merges the UNet's calls" + OWN
ALONE = "the prompt holds nothing beside the phrase to tell it from" + OWN
LINKS = "; self-attention from a pass of its own, since few steps or another extension left none"


@dataclass
class Words:
    """What is read of a batch: the prompts that hold a phrase, and which of all prompts are in force at a step."""

    capture: AttentionCapture
    unet: Any
    prompts: Mapping[Key, Typed]
    ends: Mapping[tuple[int, int], Sequence[tuple[int, int]]]  # of each part of a prompt: last steps, and texts
    terms: Sequence[str]
    size: Size
    last: Collection[Key] = ()  # in force when the UNet was called last

    def around(self, denoiser: Any) -> AbstractContextManager[Any]:
        """The context in which a sampler is to run whose `denoiser` counts the steps."""

        def in_force() -> Collection[Key]:
            self.last = {(*part, _at(denoiser.step, ends)) for part, ends in self.ends.items()}
            return self.last

        return calls_read(self.capture, self.unet, self.prompts, self.size, in_force)

    def seen(self, place: int, tokenize: Any) -> tuple[Captured | None, str]:
        """What was read of a picture, and a line about it."""
        keys = [key for key in self.prompts if key in self.last and key[0] == place]
        if not keys:
            return None, ABSENT if self.last else NOTHING
        said = {key: len(spoken(self.prompts[key].ids, self.terms, tokenize).phrases) for key in keys}
        key = max(keys, key=lambda key: said[key])
        found = seen_of(self.capture, key, self.prompts[key], self.terms, tokenize)
        if found is None:
            return None, NOTHING
        if len(found.prompt.phrases) + len(found.prompt.background_tokens) < 2:
            return None, ALONE  # shares of one are the same everywhere
        lacking = LINKS if found.lacks_links(self.capture.config) else ""
        return found, "read from the sampling: " + ", ".join(f'"{term}"' for term in found.prompt.phrases) + lacking


def keep_next_latents(sampler: Any, words: Words | None, keep: Callable[[Any], None]) -> None:
    """Has `keep` get the latents that `sampler` is about to make, and its steps read for `words`."""
    if hasattr(sampler, "launch_sampling"):
        around: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
        if words is not None and hasattr(sampler, "model_wrap_cfg"):
            around = functools.partial(words.around, sampler.model_wrap_cfg)
        around_next_run(sampler, around, keep)


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
    terms = terms_of(read(phrases))
    found: dict[Key, Typed] = {}
    ends: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for place, (prompt, parts) in enumerate(zip(prompts, conditionings.batch, strict=True)):
        for number, (part, texts) in enumerate(zip(parts, calls.texts(p, prompt), strict=True)):
            which = [texts.index(text) for text in texts]  # alternation comes back to a text
            ends[place, number] = [(entry.end_at_step, i) for entry, i in zip(part.schedules, which, strict=True)]
            for i in sorted(set(which)):
                ids = host.positions(texts[i])
                if spoken(ids, terms, host.tokenize).phrases:
                    found[place, number, i] = _typed(part.schedules[i].cond, ids, texts[i])
    return Words(AttentionCapture(host.sd_model, config, host.specs), host._unet, found, ends, terms, size)


def _at(step: int, ends: Sequence[tuple[int, int]]) -> int:
    """Which text is in force at a step, counted from 0, by the hosts' rule."""
    return next((text for end, text in ends if step <= end), ends[0][1])


def _typed(given: Any, ids: Sequence[int], text: str) -> Typed:
    """A conditioning and the ids of its text. Raises InputError where they do not fit."""
    context = given["crossattn"] if isinstance(given, dict) else given
    if len(context) != len(ids):
        raise InputError(f'Expected a conditioning of {len(ids)} tokens for "{text[:40]}", got {len(context)}.')
    return Typed(context[None], ids)
