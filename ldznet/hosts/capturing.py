"""Taps that a sampler's own UNet calls leave behind: which calls, which rows, which run. Knows nothing of comfy.

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

from ..errors import HostError, InputError, TapError
from ..shapes import Float, Size
from ..taps import reading

FAR = 150  # timesteps between the captured step and the head's own, beyond which masks suffer
KEPT = 8  # runs: ComfyUI gives a Capture node's output to every graph that has the same inputs to it
CROPS = "not captured: every positive conditioning covers only a part of the picture"


@dataclass
class Run:
    """One sampler run: the taps of the step nearest `timestep`, for the positive conditionings alone."""

    weights: Mapping[Any, float]  # strength of each positive conditioning by its uuid
    size: Size  # of the latents, so that crops can be told
    rows: dict[Any, dict[str, Tensor]] = field(default_factory=dict)  # by uuid
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
        if distance < own:
            return positive
        return [i for i in positive if uuids[i] not in self.rows] if distance == own else []

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
        """What `execute` returns, a UNet call at timestep `step` over latents of `size`; reads its taps if wanted."""
        run = self._running
        if run is None:
            return execute()
        distance = abs(step - self.timestep)
        wanted = run.wants(distance, abs(run.step - self.timestep), uuids, size)
        if not wanted:
            return execute()
        answer: Any = None
        with contextlib.suppress(TapError):  # a pack that skips blocks: then this call leaves nothing
            with reading(unet, self.blocks, end_early=False) as taps:
                answer = execute()
            if distance < abs(run.step - self.timestep):
                run.rows, run.step = {}, step
            for i in wanted:
                run.rows[uuids[i]] = {block: tap.chunk(len(uuids))[i] for block, tap in taps.items()}
        return answer

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


def sampling_into(capture: Capture, key: Callable[[], Any]) -> Any:
    """A wrapper of ComfyUI's OUTER_SAMPLE; `key()` says whose run it is."""

    def sample(
        executor: Any, noise: Any, latent_image: Any, sampler: Any, sigmas: Any, *rest: Any, **named: Any
    ) -> Any:
        """Around a whole sampler run."""
        positive = executor.class_obj.conds.get("positive") or []
        weights = {cond["uuid"]: float(cond.get("strength", 1.0)) for cond in positive}
        run = Run(weights, (noise.shape[-2], noise.shape[-1]))
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


def _at_rest(run: Run) -> Run:
    """`run` with its tensors on the CPU: a capture may be kept for long."""
    run.rows = {
        uuid: {block: tap.float().cpu().clone() for block, tap in taps.items()} for uuid, taps in run.rows.items()
    }
    return run


def _same(samples: Tensor, own: Tensor) -> bool:
    return samples.shape == own.shape and torch.equal(samples.float().cpu(), own.float().cpu())
