"""A1111's and the Forges' side of capturing: around a run of their samplers, and around its UNet calls.

All their samplers run inside `launch_sampling`. Which picture a row of a UNet call belongs to is told by its context:
that of a positive prompt is the prompt's conditioning, alone, repeated or with padding behind it. What hangs in sampler
and UNet is gone when the run ends, whatever ends it. Imports nothing of any host.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ..attention import CapturedAttention
from ..attention.prompts import Tokenize, spoken
from ..capture import AttentionCapture, Capture, Run, Typed
from ..shapes import Float, Size

LATEST = "latest"  # the key of the one run that a capture keeps here
is_compiling = getattr(torch.compiler, "is_compiling", lambda: False)  # not in the oldest torch that works here


def around_next_run(
    sampler: Any, around: Callable[[], AbstractContextManager[Any]], returned: Callable[[Any], None]
) -> None:
    """Has the next run of `sampler` take place inside of `around()`, and `returned` get the latents that it gives.

    Asked twice before a run, as a Forge does in hires fix, the later one counts.
    """
    launch = getattr(sampler.launch_sampling, "_ldznet_within", sampler.launch_sampling)

    def launched(*given: Any, **named: Any) -> Any:
        vars(sampler).pop("launch_sampling", None)
        with around():
            samples = launch(*given, **named)
        returned(samples)
        return samples

    launched._ldznet_within = launch  # type: ignore[attr-defined]
    sampler.launch_sampling = launched


@contextlib.contextmanager
def calls_read(capture: Capture, unet: nn.Module, prompts: Mapping[int, Typed], size: Size) -> Iterator[Run]:
    """`capture` reads what `unet` is called with inside, of pictures of latent `size` by their places in the batch."""
    contexts = {place: prompt.context for place, prompt in prompts.items()}
    run = Run(dict.fromkeys(prompts, 1.0), size, contexts, nearest=0.0)
    rows = _Rows(run)

    def call(forward: Callable[..., Any], *given: Any, **named: Any) -> Any:
        x, steps, context = (_argument(i, name, given, named) for i, name in enumerate(("x", "timesteps", "context")))
        if is_compiling() or not all(isinstance(part, Tensor) for part in (x, steps, context)):
            return forward(*given, **named)
        step = float(steps.flatten()[0])
        keys = rows.keys(step, context) if len(context) == len(x) else [None]
        return capture.call(unet, (x.shape[-2], x.shape[-1]), step, keys, lambda: forward(*given, **named))

    with capture.running(LATEST, run), forward_through(unet, call):
        yield run


@contextlib.contextmanager
def forward_through(module: nn.Module, call: Callable[..., Any]) -> Iterator[None]:
    """`module(…)` is `call(its forward, …)` inside; afterwards its forward is what it was, if it is still this."""
    before, forward = vars(module).get("forward"), module.forward

    def through(*given: Any, **named: Any) -> Any:
        return call(forward, *given, **named)

    module.forward = through  # type: ignore[method-assign]
    try:
        yield
    finally:
        if vars(module).get("forward") is through:
            del module.forward
            if before is not None:
                module.forward = before


class _Rows:
    """Which picture each row of a call is of. At each step a picture counts once: guidance may call again."""

    def __init__(self, run: Run) -> None:
        self.run, self.own = run, {place: context[0] for place, context in run.contexts.items()}
        self.lengths: dict[int, int] = {}
        self.step, self.taken = float("nan"), set[int]()

    def keys(self, step: float, context: Float[Tensor, "r n d"]) -> list[int | None]:
        """A place for each row, None for one that is of no positive prompt."""
        if step != self.step:
            self.step, self.taken = step, set()
        return [self._place(row) for row in context]

    def _place(self, row: Float[Tensor, "n d"]) -> int | None:
        for place, own in self.own.items():
            if place in self.taken or self.lengths.get(place, len(row)) != len(row) or not _begins(row, own):
                continue
            if place not in self.lengths and not _repeats(row, own):
                self.run.contexts = {**self.run.contexts, place: row[None]}  # padded: not one text over and over
            self.lengths[place] = len(row)
            self.taken.add(place)
            return place
        return None


def seen_of(capture: AttentionCapture, place: int, prompt: Typed, phrases: Sequence[str], tokenize: Tokenize) -> Any:
    """What was captured of a picture's `phrases`, for the attention head; None where nothing was."""
    run = capture.done.get(LATEST)
    if run is None or place not in run.means:
        return None
    found = spoken(prompt.ids, phrases, tokenize)
    return CapturedAttention(capture.attention(run, place), found, run.size) if found.phrases else None


def _argument(position: int, name: str, given: Sequence[Any], named: Mapping[str, Any]) -> Any:
    return given[position] if position < len(given) else named.get(name)


def _begins(row: Float[Tensor, "n d"], own: Float[Tensor, "m d"]) -> bool:
    return row.shape[0] >= len(own) and row.shape[1] == own.shape[1] and torch.equal(row[: len(own)], own.to(row))


def _repeats(row: Float[Tensor, "n d"], own: Float[Tensor, "m d"]) -> bool:
    times, rest = divmod(len(row), len(own))
    return not rest and torch.equal(row, own.to(row).repeat(times, 1))
