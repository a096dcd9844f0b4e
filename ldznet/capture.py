"""What a sampler's own UNet calls leave behind: runs, steps, rows and their averages. No host's words.

A host's wrapper (`hosts/comfyui_capture.py`) says when a run of its sampler begins and ends, and of each UNet call the
timestep, the size of the latents, and the text that each equal share of the batch's rows belongs to. Texts are named by
keys that the host chooses; only those of the positive prompt have a weight, and only their rows are kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .attention import AttentionConfig, CapturedAttention, CapturedTexts
from .attention.config import blocks_at
from .attention.prompts import Rows as TextRows
from .attention.prompts import Texts, Tokenize, spoken_in
from .attention.reading import Attention, Reader, reading_attention
from .clip_bpe import CONTEXT_LENGTH
from .config import HeadConfig
from .contracts import TapSpec
from .errors import TapError
from .shapes import Float, Size, tap_size
from .taps import reading

FAR = 150  # timesteps between the captured step and the head's own, beyond which masks suffer
KEPT = 8  # runs: a host may give one capture to every graph that asks for the same
ATTENTION = "attention"  # what an AttentionCapture reads, in the place of blocks

Rows = Mapping[Any, dict[str, Tensor]]
"""By the key of a text, what was read of its rows: taps by block, or attention maps."""


@dataclass
class Run:
    """One sampler run: what the step nearest the head's timestep showed, for the positive texts alone."""

    weights: Mapping[Any, float]  # strength of each positive text by its key
    size: Size  # of the latents, so that crops can be told
    contexts: Mapping[Any, Tensor] = field(default_factory=dict)  # of each text, as the sampler was given it
    nearest: float = float("inf")  # how near the schedule comes to the head's timestep
    rows: dict[Any, dict[str, Tensor]] = field(default_factory=dict)
    step: float = float("inf")  # the timestep that `rows` were taken at
    distance: float = float("inf")  # of `step` from the head's timestep
    means: dict[Any, dict[str, Tensor]] = field(default_factory=dict)  # over all steps so far
    counts: dict[Any, int] = field(default_factory=dict)  # of the steps that `means` are over
    latest: dict[Any, float] = field(default_factory=dict)  # the timestep that `means` took in last
    cropped: bool = False
    denoised: Tensor | None = None  # the last estimate of the clean latents, in model space
    samples: list[Tensor] = field(default_factory=list)  # what the sampler returned, before the scale factor

    def wanted(self, distance: float, keys: Sequence[Any], size: Size) -> list[int]:
        """Which of a call's shares are new, and no farther from the head's timestep than what is here; crops are noted
        and left."""
        positive = [i for i, key in enumerate(keys) if key in self.weights]
        if positive and size != self.size:
            self.cropped = True
            return []
        if distance > max(self.nearest, FAR):
            return []  # a nearer one will come
        if distance < self.distance:
            return positive
        return [i for i in positive if keys[i] not in self.rows] if distance == self.distance else []

    def keep(self, step: float, distance: float, rows: Rows) -> None:
        """Takes `rows` of timestep `step`, in the place of those of a farther one."""
        if distance < self.distance:
            self.rows, self.step, self.distance = {}, step, distance
        self.rows.update(rows)

    def average(self, key: Any, step: float, maps: Mapping[str, Tensor]) -> None:
        """Takes the maps of one more step into the means of a text."""
        means, count = self.means.setdefault(key, {}), self.counts.get(key, 0) + 1
        for name, new in maps.items():
            means[name] = means[name] + (new - means[name]) / count if name in means else new.clone()
        self.counts[key], self.latest[key] = count, step

    def taps(self) -> dict[str, Float[Tensor, "b c h w"]]:
        """The mean over texts by strength; empty where nothing was captured."""
        total = sum(self.weights[key] for key in self.rows) or 1
        blocks = next(iter(self.rows.values()), {})
        return {
            block: torch.stack([taps[block] * (self.weights[key] / total) for key, taps in self.rows.items()]).sum(0)
            for block in blocks
        }

    def texts_of(self, prompts: Sequence[Typed]) -> dict[Any, dict[int, Typed]]:
        """By the key of each text, those of `prompts` that it was made of, by the token at which each begins: one is
        all of a text, or one of several that a host has put one after the other."""
        return {key: places for key, known in self.contexts.items() if (places := _places(known, prompts))}


class Typed(NamedTuple):
    """A prompt as a user typed it, encoded: its context, and its token ids by position (-1 for none).

    `tokens` are the host's own, for a host whose network reads other rows than those of the context."""

    context: Float[Tensor, "1 n d"]
    ids: Sequence[int]
    text: str = ""
    tokens: Any = None


class Capture:
    """What each sampler that ran with a wrapped model left: taps of `blocks`, in the latest run of each.

    `model` is the host's own, kept for whoever reads the capture; `timestep` is the head's. Nothing is kept of a run
    that was cancelled.
    """

    head: Any = None  # that a host made the capture for, kept for whoever reads it without one of their own
    reading = True  # whether calls are read

    def __init__(self, model: Any, blocks: Sequence[str], timestep: int) -> None:
        self.model, self.blocks, self.timestep = model, tuple(blocks), timestep
        self.done: dict[Any, Run] = {}
        self._running: Run | None = None

    @contextlib.contextmanager
    def running(self, sampler: Any, run: Run) -> Iterator[Run]:
        """Makes `run` the one that calls are read into, and that of `sampler` once it has come to its end."""
        before, self._running = self._running, run
        self.done.pop(sampler, None)
        try:
            yield run
            self.done[sampler] = _at_rest(run)
            for oldest in list(self.done)[:-KEPT]:
                del self.done[oldest]
        finally:
            self._running = before

    def call(self, unet: Any, size: Size, step: float, keys: Sequence[Any], execute: Callable[[], Any]) -> Any:
        """What `execute` returns, a UNet call at timestep `step` over latents of `size`; reads of it what is wanted.

        It runs once, undisturbed, whatever another pack makes of it: what that skips, merges or tiles is not read.
        """
        run = self._running
        if run is None or not self.reading:
            return execute()
        distance = abs(step - self.timestep)
        with contextlib.ExitStack() as stack:
            try:
                kept = stack.enter_context(self._reading(run, unet, size, step, keys, run.wanted(distance, keys, size)))
            except TapError:  # a UNet of another build
                return execute()
            answer = execute()
        if kept:
            run.keep(step, distance, kept)
        return answer

    @property
    def present(self) -> Run | None:
        """The run that calls are read into now."""
        return self._running

    def returned(self, samples: Float[Tensor, "b c h w"]) -> list[Run]:
        """The runs that returned `samples`, in the scale of the host's own latents; the latest last."""
        return [run for run in self.done.values() if any(same(samples, known) for known in run.samples)]

    @contextlib.contextmanager
    def _reading(
        self, run: Run, unet: Any, size: Size, step: float, keys: Sequence[Any], shares: Sequence[int]
    ) -> Iterator[Rows]:
        """Fills a dict with what this call shows of `shares`, if there are any."""
        kept: dict[Any, dict[str, Tensor]] = {}
        if not shares:
            yield kept
            return
        with reading(unet, self.blocks, end_early=False) as taps:
            yield kept
        if set(taps) == set(self.blocks):
            of_all = _by_key(taps, keys)
            kept.update({keys[i]: of_all[keys[i]] for i in shares})


class AttentionCapture(Capture):
    """As Capture, of attention: cross-attention is the mean over all steps, self-attention the nearest step's.

    Of each step the first call counts: guidance that disturbs the attention calls again."""

    def __init__(
        self, model: Any, config: AttentionConfig, specs: Mapping[str, TapSpec], reader: Reader = reading_attention
    ) -> None:
        """Of what a head of `config` reads in a host with `specs`, with the host's `reader`."""
        super().__init__(model, (ATTENTION,), config.timestep)
        self.config, self.specs, self.reader = config, specs, reader
        self.cross_blocks = blocks_at((*config.coarse, *config.fine), specs)
        self.self_blocks = blocks_at(config.self_attention, specs) if config.steps else ()

    @contextlib.contextmanager
    def _reading(
        self, run: Run, unet: Any, size: Size, step: float, keys: Sequence[Any], shares: Sequence[int]
    ) -> Iterator[Rows]:
        positive = [i for i, key in enumerate(keys) if key in run.weights] if size == run.size else []
        positive = [i for i in positive if run.latest.get(keys[i]) != step]  # PAG calls again, with others' attention
        kept: dict[Any, dict[str, Tensor]] = {}
        if not positive:
            yield kept
            return

        def choose(output: Tensor) -> Tensor:
            if len(output) % len(keys):
                raise TapError(f"Expected rows in {len(keys)} equal shares, got {len(output)}.")
            return torch.cat([output.chunk(len(keys))[i] for i in positive])

        self_blocks = self.self_blocks if shares and self._fits(size) else ()
        with self.reader(unet, self.cross_blocks, self_blocks, self.specs, size, False, choose) as attention:
            yield kept
        if set(attention.cross) != set(self.cross_blocks):
            return
        chosen = [keys[i] for i in positive]
        for key, maps in _by_key(attention.cross, chosen).items():
            run.average(key, step, maps)
        if set(attention.self_attention) == set(self.self_blocks):
            of_all = _by_key(attention.self_attention, chosen)
            kept.update({keys[i]: of_all[keys[i]] for i in shares if i in positive})

    def _fits(self, size: Size) -> bool:
        """Whether latents of `size` have few enough positions of self-attention."""
        grids = [tap_size(size, self.specs[block].stride) for block in self.self_blocks]
        return all(height * width <= self.config.most_positions for height, width in grids)

    def of_prompts(
        self, run: Run, prompts: Sequence[Typed], phrases: Sequence[str], tokenize: Texts | Tokenize
    ) -> CapturedTexts | None:
        """What `run` shows of those of `phrases` that stand in `prompts`; None where it was made with none of them.

        A phrase that stands in several texts is read from the first.
        """
        texts = tokenize if isinstance(tokenize, Texts) else Texts.of_clip(tokenize)
        parts: list[CapturedAttention] = []
        left = list(phrases)
        for key, places in run.texts_of(prompts).items():
            if key in run.means:
                attention = self.attention(run, key, texts)
                prompt = spoken_in(_rows(places, run.contexts[key], attention, texts), left, texts.spellings)
                parts.append(CapturedAttention(attention, prompt, run.size))
                left = [phrase for phrase in left if phrase not in prompt.phrases]
        return CapturedTexts(tuple(parts)) if parts else None

    def attention(self, run: Run, key: Any, texts: Texts | None = None) -> Attention:
        """What a text was seen to attend to in each picture of the batch."""
        cross, links = (
            {name: maps.float() for name, maps in parts.get(key, {}).items()} for parts in (run.means, run.rows)
        )
        if texts is None or texts.placed is None:
            cross = {name: _folded(maps, run.contexts[key].shape[1]) for name, maps in cross.items()}
        return Attention(cross, links)


def capture_for(
    config: HeadConfig | AttentionConfig, model: Any, specs: Mapping[str, TapSpec], reader: Reader = reading_attention
) -> Capture:
    """An empty capture of what a head of `config` reads in a host with `specs`: taps of the step nearest its timestep,
    or the attention of all steps, with the host's `reader`."""
    if isinstance(config, HeadConfig):
        return Capture(model, list(config.tap_specs), config.timestep)
    return AttentionCapture(model, config, specs, reader)


def same(samples: Tensor, known: Tensor) -> bool:
    """Equal in shape and in every value, as float32 on the CPU."""
    return samples.shape == known.shape and torch.equal(samples.float().cpu(), known.float().cpu())


def _places(context: Float[Tensor, "1 n d"], prompts: Sequence[Typed]) -> dict[int, Typed]:
    """Where in `context` those of `prompts` stand, whose contexts it holds."""
    found: dict[int, Typed] = {}
    for prompt in prompts:
        for start in range(0, context.shape[1], CONTEXT_LENGTH):
            if same(context[:, start : start + prompt.context.shape[1]], prompt.context):
                found.setdefault(start, prompt)
    return found


def _rows(places: Mapping[int, Typed], context: Float[Tensor, "1 n d"], attention: Attention, texts: Texts) -> TextRows:
    """Token ids by row of the text that a network was given, for each of its tokenizers."""
    if texts.placed is None:
        return [_ids(places, context.shape[1])]
    whole = places.get(0)
    if whole is None or whole.context.shape[1] != context.shape[1]:  # several texts, one after the other
        return [[] for _ in texts.spellings]
    return texts.placed(whole.tokens, next(iter(attention.cross.values())).shape[1])


def _ids(places: Mapping[int, Typed], length: int) -> list[int]:
    """Token ids of a text of `length` positions that prompts in their `places` make up; -1 for none."""
    ids = [-1] * length
    for start, prompt in places.items():
        ids[start : start + len(prompt.ids)] = prompt.ids
    return ids


def _folded(maps: Float[Tensor, "b n h w"], tokens: int) -> Float[Tensor, "b tokens h w"]:
    """The attention to each of `tokens`: a host may repeat a text until it is as long as the others of a batch."""
    return maps.unflatten(1, (-1, tokens)).sum(dim=1) if maps.shape[1] % tokens == 0 else maps


def _by_key(parts: Mapping[str, Tensor], keys: Sequence[Any]) -> dict[Any, dict[str, Tensor]]:
    """Of tensors by name whose rows are those of `keys` one after the other."""
    return {key: {name: part.chunk(len(keys))[i] for name, part in parts.items()} for i, key in enumerate(keys)}


def _at_rest(run: Run) -> Run:
    """`run` with its tensors on the CPU: a capture may be kept for long."""
    for kept in (run.rows, run.means):
        for key, parts in kept.items():
            kept[key] = {name: part.to("cpu", torch.float32, copy=True) for name, part in parts.items()}
    run.contexts = {key: context.cpu() for key, context in run.contexts.items()}
    return run
