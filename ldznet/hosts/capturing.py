"""What a sampler's own UNet calls leave behind: which calls, which rows, which run. Knows nothing of comfy.

`hosts/comfyui.py` wraps a MODEL with this. Vocabulary of ComfyUI: a guider's conditionings carry a `uuid`, and each
UNet call says in `transformer_options` which of them its rows belong to (`uuids`) and at which `sigmas` it runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..attention.reading import Attention, reading_attention
from ..contracts import TapSpec
from ..errors import HostError, InputError, TapError
from ..shapes import Float, Size
from ..taps import reading

FAR = 150  # timesteps between the captured step and the head's own, beyond which masks suffer
KEPT = 8  # runs: ComfyUI gives a Capture node's output to every graph that has the same inputs to it
ATTENTION = "attention"  # what an AttentionCapture reads, in the place of blocks
CROPS = "not captured: every positive conditioning covers only a part of the picture"


@dataclass
class Run:
    """One sampler run: what the step nearest `timestep` showed, for the positive conditionings alone."""

    weights: Mapping[Any, float]  # strength of each positive conditioning by its uuid
    size: Size  # of the latents, so that crops can be told
    contexts: Mapping[Any, Tensor] = field(default_factory=dict)  # of each, as the sampler was given it
    aim: float = float("inf")  # how near the schedule comes to the head's timestep
    rows: dict[Any, dict[str, Tensor]] = field(default_factory=dict)  # by uuid
    means: dict[Any, dict[str, Tensor]] = field(default_factory=dict)  # by uuid: over all steps so far
    steps: dict[Any, int] = field(default_factory=dict)  # that `means` are of
    latest: dict[Any, float] = field(default_factory=dict)  # the timestep that `means` took in last
    step: float = float("inf")  # the timestep that `rows` were taken at
    cropped: bool = False
    denoised: Tensor | None = None  # the last estimate of the clean latents, in model space
    samples: list[Tensor] = field(default_factory=list)  # what the sampler returned, before the scale factor

    def wants(self, distance: float, own: float, uuids: Sequence[Any], size: Size) -> list[int]:
        """Which of a call's rows are new and nearer than those that are here; crops are noted and left."""
        positive = [i for i, uuid in enumerate(uuids) if uuid in self.weights]
        if positive and size != self.size:
            self.cropped = True
            return []
        if distance > max(self.aim, FAR):
            return []  # a nearer one will come
        if distance < own:
            return positive
        return [i for i in positive if uuids[i] not in self.rows] if distance == own else []

    def near(self, step: float, rows: Mapping[Any, dict[str, Tensor]], distance: float, own: float) -> None:
        """Keeps `rows` of timestep `step`, in the place of what is farther."""
        if distance < own:
            self.rows, self.step = {}, step
        self.rows.update(rows)

    def average(self, uuid: Any, step: float, maps: Mapping[str, Tensor]) -> None:
        """Takes the maps of one more step into the means of a conditioning."""
        means, count = self.means.setdefault(uuid, {}), self.steps.get(uuid, 0) + 1
        self.latest[uuid] = step
        for name, new in maps.items():
            means[name] = means[name] + (new - means[name]) / count if name in means else new.clone()
        self.steps[uuid] = count

    def taps(self) -> dict[str, Float[Tensor, "b c h w"]]:
        """The mean over conditionings by strength; empty where nothing was captured."""
        total = sum(self.weights[uuid] for uuid in self.rows) or 1
        blocks = next(iter(self.rows.values()), {})
        return {
            block: torch.stack([taps[block] * (self.weights[uuid] / total) for uuid, taps in self.rows.items()]).sum(0)
            for block in blocks
        }


class Capture:
    """A LDZNET_CAPTURE: what each sampler that ran with the wrapped MODEL left, the latest run of each.

    `timestep` is the head's t. `model` gives the latents' scale. Nothing is kept of a run that was cancelled.
    """

    def __init__(self, model: Any, blocks: Sequence[str], timestep: int) -> None:
        self.model, self.blocks, self.timestep = model, tuple(blocks), timestep
        self._done: dict[Any, Run] = {}
        self._running: Run | None = None

    @contextlib.contextmanager
    def running(self, key: Any, run: Run) -> Any:
        """Makes `run` the one that calls are read into, and that of `key` once it has come to its end."""
        before, self._running = self._running, run
        self._done.pop(key, None)
        try:
            yield run
            self._done[key] = _at_rest(run)
            for oldest in list(self._done)[:-KEPT]:
                del self._done[oldest]
        finally:
            self._running = before

    def call(self, unet: Any, size: Size, step: float, uuids: Sequence[Any], execute: Callable[[], Any]) -> Any:
        """What `execute` returns, a UNet call at timestep `step` over latents of `size`; reads of it what is wanted."""
        run = self._running
        if run is None:
            return execute()
        distance, own = abs(step - self.timestep), abs(run.step - self.timestep)
        rows = run.wants(distance, own, uuids, size)
        answer = execute
        try:
            with self._reading(run, unet, size, step, uuids, rows) as kept:
                answer = execute()
        except TapError:  # a pack that skips or merges what is read: then this call leaves nothing
            return execute() if answer is execute else answer
        if rows:
            run.near(step, kept, distance, own)
        return answer

    @contextlib.contextmanager
    def _reading(self, run: Run, unet: Any, size: Size, step: float, uuids: Sequence[Any], rows: Sequence[int]) -> Any:
        """Fills a dict, by uuid, with what this call shows of `rows`, if there are any."""
        kept: dict[Any, dict[str, Tensor]] = {}
        if not rows:
            yield kept
            return
        with reading(unet, self.blocks, end_early=False) as taps:
            yield kept
        of_all = _by_uuid(taps, uuids)
        kept.update({uuids[i]: of_all[uuids[i]] for i in rows})

    def of(self, samples: Float[Tensor, "b 4 h w"]) -> Run:
        """The run that returned `samples`; raises HostError that says what to do where none or several did."""
        fitting = [run for run in self._done.values() if any(_same(samples, own) for own in run.samples)]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise HostError(
                f"Expected one sampler run that returned this latent, got {len(fitting)}. Give each sampler its own "
                "Capture node. (socket: latent)"
            )
        raise HostError(
            f"Expected features captured while this latent was sampled, got none among {len(self._done)} runs. Connect "
            "the latent as the sampler with the captured model gave it, give each sampler its own Capture node, and if "
            "its result came from the cache, change its seed once. (socket: capture)"
        )

    def notes(self, run: Run) -> list[str]:
        """Lines for the report: nothing captured, or at a level of noise far from the head's."""
        if not run.rows:
            if run.cropped:
                return [CROPS]
            raise HostError(
                "Expected features captured while sampling, got none: no UNet call ran its blocks for the positive "
                "conditioning. Take out packs that cache or compile the model, or use Segment by Text. "
                "(socket: capture)"
            )
        far = abs(run.step - self.timestep)
        if far > FAR:
            return [
                f"captured at t = {run.step:.0f}, {far:.0f} from the head's {self.timestep}: expect worse masks; use "
                "more steps, or a higher denoise"
            ]
        return []


class AttentionCapture(Capture):
    """As Capture, of attention: cross-attention is the mean over all steps, self-attention the nearest step's.

    Of each step the first call counts: guidance that disturbs the attention calls again."""

    def __init__(
        self, model: Any, cross: Sequence[str], selves: Sequence[str], specs: Mapping[str, TapSpec], timestep: int
    ) -> None:
        super().__init__(model, (ATTENTION,), timestep)
        self.cross, self.selves, self.specs = tuple(cross), tuple(selves), specs

    @contextlib.contextmanager
    def _reading(self, run: Run, unet: Any, size: Size, step: float, uuids: Sequence[Any], rows: Sequence[int]) -> Any:
        positive = [i for i, uuid in enumerate(uuids) if uuid in run.weights] if size == run.size else []
        positive = [i for i in positive if run.latest.get(uuids[i]) != step]  # PAG calls again, with others' attention
        kept: dict[Any, dict[str, Tensor]] = {}
        if not positive:
            yield kept
            return

        def choose(output: Tensor) -> Tensor:
            return torch.cat([output.chunk(len(uuids))[i] for i in positive])

        selves = self.selves if rows else ()
        with reading_attention(unet, self.cross, selves, self.specs, size, False, choose) as attention:
            yield kept
        chosen = [uuids[i] for i in positive]
        for uuid, maps in _by_uuid(attention.cross, chosen).items():
            run.average(uuid, step, maps)
        of_all = _by_uuid(attention.selves, chosen)
        kept.update({uuids[i]: of_all[uuids[i]] for i in rows if i in positive})

    def attention(self, run: Run, uuid: Any, image: int) -> Attention:
        """What the prompt of a conditioning was seen to attend to in one image of the batch."""
        cross, selves = (
            {name: maps[image : image + 1].float() for name, maps in parts.get(uuid, {}).items()}
            for parts in (run.means, run.rows)
        )
        return Attention({name: _folded(maps, run.contexts[uuid].shape[1]) for name, maps in cross.items()}, selves)

    def prompted(self, run: Run, context: Float[Tensor, "1 n d"]) -> Any:
        """The uuid of the conditioning whose text has this `context`; None where none of `run` has."""
        return next((uuid for uuid, own in run.contexts.items() if uuid in run.means and _same(context, own)), None)


def _folded(maps: Float[Tensor, "b n h w"], tokens: int) -> Float[Tensor, "b tokens h w"]:
    """The attention to each of `tokens`: ComfyUI repeats a text until it is as long as the others of a batch."""
    return maps.unflatten(1, (-1, tokens)).sum(dim=1) if maps.shape[1] % tokens == 0 else maps


def sampling_into(capture: Capture, key: Callable[[], Any], timesteps_of: Callable[[Any], Sequence[float]]) -> Any:
    """A wrapper of ComfyUI's OUTER_SAMPLE; `key()` says whose run it is, `timesteps_of(sigmas)` where it will go."""

    def sample(
        executor: Any, noise: Any, latent_image: Any, sampler: Any, sigmas: Any, *rest: Any, **named: Any
    ) -> Any:
        """Around a whole sampler run."""
        positive = executor.class_obj.conds.get("positive") or []
        weights = {cond["uuid"]: float(cond.get("strength", 1.0)) for cond in positive}
        contexts = {cond["uuid"]: cond["cross_attn"] for cond in positive if cond.get("cross_attn") is not None}
        aim = min((abs(step - capture.timestep) for step in timesteps_of(sigmas)), default=float("inf"))
        run = Run(weights, (noise.shape[-2], noise.shape[-1]), contexts, aim)
        mask, callback, *others = [*rest, None, None][: max(2, len(rest))]
        mask, callback = named.pop("denoise_mask", mask), named.pop("callback", callback)

        def watched(step: int, denoised: Any, x: Any, total: int) -> None:
            run.denoised = denoised
            if callback is not None:
                callback(step, denoised, x, total)

        with capture.running(key(), run):
            samples = executor(noise, latent_image, sampler, sigmas, mask, watched, *others, **named)
            run.samples = [samples.cpu()]
            if run.denoised is not None:
                run.samples.append(capture.model.model.process_latent_out(run.denoised.cpu()))
                run.denoised = None
        return samples

    return sample


def calling_into(capture: Capture) -> Any:
    """A wrapper of ComfyUI's DIFFUSION_MODEL."""

    def call(executor: Any, x: Any, timesteps: Any, *rest: Any, **named: Any) -> Any:
        """Around one UNet call; `timesteps` are what the UNet gets, 0..999 for SD 1.x."""
        options = next((part for part in rest if isinstance(part, dict) and "uuids" in part), None)
        options = options or named.get("transformer_options") or {}
        size, uuids = (x.shape[-2], x.shape[-1]), options.get("uuids") or []

        def execute() -> Any:
            return executor(x, timesteps, *rest, **named)

        if not uuids or len(x) % len(uuids):
            return execute()
        return capture.call(executor.class_obj, size, float(timesteps.flatten()[0]), uuids, execute)

    return call


def require_blocks(capture: Capture, blocks: Sequence[str]) -> None:
    """Raises InputError for a head that needs blocks that were not captured."""
    missing = [block for block in blocks if block not in capture.blocks]
    if missing:
        raise InputError(
            f"Expected a capture of {', '.join(missing)}, which this head reads, got one of "
            f"{', '.join(capture.blocks)}. Connect the same head to both nodes. (socket: head)"
        )


def _by_uuid(parts: Mapping[str, Tensor], uuids: Sequence[Any]) -> dict[Any, dict[str, Tensor]]:
    """Of tensors by name whose rows are those of `uuids` one after the other."""
    return {uuid: {name: part.chunk(len(uuids))[i] for name, part in parts.items()} for i, uuid in enumerate(uuids)}


def _at_rest(run: Run) -> Run:
    """`run` with its tensors on the CPU: a capture may be kept for long."""
    for kept in (run.rows, run.means):
        for uuid, parts in kept.items():
            kept[uuid] = {name: part.to("cpu", torch.float32, copy=True) for name, part in parts.items()}
    run.contexts = {uuid: context.cpu() for uuid, context in run.contexts.items()}
    return run


def _same(samples: Tensor, own: Tensor) -> bool:
    return samples.shape == own.shape and torch.equal(samples.float().cpu(), own.float().cpu())
