"""A1111's and the Forges' side of capturing: around a run of their samplers, and around its UNet calls.

All their samplers run inside `launch_sampling`. Which picture a row of a UNet call belongs to is told by its context:
that of a positive prompt is the prompt's conditioning, alone, repeated or with padding behind it. What hangs in sampler
and UNet is gone when the run ends, whatever ends it. Imports nothing of any host.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ..attention import CapturedAttention
from ..attention.prompts import Tokenize, spoken
from ..capture import AttentionCapture, Capture, Run, Typed
from ..shapes import Float, Size

LATEST = "latest"  # the key of the one run that a capture keeps here
Key = tuple[int, int, int]  # a picture's place in the batch, a part of its prompt (AND), a text of that part (editing)
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
def calls_read(
    capture: Capture,
    unet: nn.Module,
    prompts: Mapping[Key, Typed],
    size: Size,
    in_force: Callable[[], Collection[Key]],
) -> Iterator[Run]:
    """`capture` reads what `unet` is called with inside for those of `prompts` that are `in_force()` at that call, of
    pictures of latent `size`."""
    run = Run(dict.fromkeys(prompts, 1.0), size, {key: typed.context for key, typed in prompts.items()}, nearest=0.0)
    rows = _Rows(run)

    def call(forward: Callable[..., Any], *given: Any, **named: Any) -> Any:
        x, steps, context = (_argument(i, name, given, named) for i, name in enumerate(("x", "timesteps", "context")))
        if is_compiling() or not all(isinstance(part, Tensor) for part in (x, steps, context)):
            return forward(*given, **named)
        step, now = float(steps.flatten()[0]), in_force()
        keys = rows.keys(step, context, now) if len(context) == len(x) else [None]
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
    """Which prompt each row of a call is of. At each step a prompt counts once: guidance may call again."""

    def __init__(self, run: Run) -> None:
        self.run, self.own = run, {key: context[0] for key, context in run.contexts.items()}
        self.lengths: dict[Key, int] = {}
        self.step, self.taken = float("nan"), set[Key]()

    def keys(self, step: float, context: Float[Tensor, "r n d"], in_force: Collection[Key]) -> list[Key | None]:
        """A key for each row, None for one that is of no prompt in force."""
        if step != self.step:
            self.step, self.taken = step, set()
        return [self._key(row, [key for key in self.own if key in in_force]) for row in context]

    def _key(self, row: Float[Tensor, "n d"], candidates: Sequence[Key]) -> Key | None:
        for key in candidates:
            own = self.own[key]
            if key in self.taken or self.lengths.get(key, len(row)) != len(row) or not _begins(row, own):
                continue
            if key not in self.lengths and not _repeats(row, own):
                self.run.contexts = {**self.run.contexts, key: row[None]}  # padded: not one text over and over
            self.lengths[key] = len(row)
            self.taken.add(key)
            return key
        return None


def seen_of(
    capture: AttentionCapture, key: Key, prompt: Typed, phrases: Sequence[str], tokenize: Tokenize
) -> CapturedAttention | None:
    """What was captured of `phrases` with a prompt, for the attention head; None where nothing was."""
    run = capture.done.get(LATEST)
    if run is None or key not in run.means:
        return None
    return CapturedAttention(capture.attention(run, key), spoken(prompt.ids, phrases, tokenize), run.size)


def _argument(position: int, name: str, given: Sequence[Any], named: Mapping[str, Any]) -> Any:
    return given[position] if position < len(given) else named.get(name)


def _begins(row: Float[Tensor, "n d"], own: Float[Tensor, "m d"]) -> bool:
    return row.shape[0] >= len(own) and row.shape[1] == own.shape[1] and torch.equal(row[: len(own)], own.to(row))


def _repeats(row: Float[Tensor, "n d"], own: Float[Tensor, "m d"]) -> bool:
    times, rest = divmod(len(row), len(own))
    return not rest and torch.equal(row, own.to(row).repeat(times, 1))
