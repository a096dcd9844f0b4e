"""ComfyUI's side of capturing: wrappers around its samplers and UNet calls, and what its users read of a capture.

Vocabulary of ComfyUI: a guider's conditionings carry a `uuid`, and each UNet call says in `transformer_options` which
of them its rows belong to (`uuids`); `WrappersMP.OUTER_SAMPLE` runs around a sampler's whole run, `DIFFUSION_MODEL`
around each UNet call. Imports no comfy, so that stand-ins can test it; `comfyui.py` hangs the wrappers into a MODEL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..capture import FAR, Capture, Run
from ..errors import HostError, InputError
from ..shapes import Float

CROPS = "not captured: every positive conditioning covers only a part of the picture"


def sampling_into(
    capture: Capture, sampler_of: Callable[[], Any], timesteps_of: Callable[[Any], Sequence[float]]
) -> Any:
    """A wrapper of OUTER_SAMPLE; `sampler_of()` says whose run it is, `timesteps_of(sigmas)` where it will go."""

    def sample(
        executor: Any, noise: Any, latent_image: Any, sampler: Any, sigmas: Any, *rest: Any, **named: Any
    ) -> Any:
        """Around a whole sampler run."""
        positive = executor.class_obj.conds.get("positive") or []
        weights = {cond["uuid"]: float(cond.get("strength", 1.0)) for cond in positive}
        contexts = {cond["uuid"]: cond["cross_attn"] for cond in positive if cond.get("cross_attn") is not None}
        nearest = min((abs(step - capture.timestep) for step in timesteps_of(sigmas)), default=float("inf"))
        run = Run(weights, (noise.shape[-2], noise.shape[-1]), contexts, nearest)
        mask, callback, *others = [*rest, None, None][: max(2, len(rest))]
        mask, callback = named.pop("denoise_mask", mask), named.pop("callback", callback)

        def watched(step: int, denoised: Any, x: Any, total: int) -> None:
            run.denoised = denoised
            if callback is not None:
                callback(step, denoised, x, total)

        with capture.running(sampler_of(), run):
            samples = executor(noise, latent_image, sampler, sigmas, mask, watched, *others, **named)
            run.samples = [samples.cpu()]
            if run.denoised is not None:
                run.samples.append(capture.model.model.process_latent_out(run.denoised.cpu()))
                run.denoised = None
        return samples

    return sample


def calling_into(capture: Capture) -> Any:
    """A wrapper of DIFFUSION_MODEL."""

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


def run_of(capture: Capture, samples: Float[Tensor, "b 4 h w"]) -> Run:
    """The run that returned `samples` of a LATENT; raises HostError that says what to do where none or several did."""
    fitting = capture.returned(samples)
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise HostError(
            f"Expected one sampler run that returned this latent, got {len(fitting)}. Give each sampler its own "
            "Capture node. (socket: latent)"
        )
    raise HostError(
        f"Expected features captured while this latent was sampled, got none among {len(capture.done)} runs. Connect "
        "the latent as the sampler with the captured model gave it, give each sampler its own Capture node, and if "
        "its result came from the cache, change its seed once. (socket: capture)"
    )


def require_blocks(capture: Capture, blocks: Sequence[str]) -> None:
    """Raises InputError for a head that needs blocks that were not captured."""
    missing = [block for block in blocks if block not in capture.blocks]
    if missing:
        raise InputError(
            f"Expected a capture of {', '.join(missing)}, which this head reads, got one of "
            f"{', '.join(capture.blocks)}. Connect the same head to both nodes. (socket: head)"
        )


def notes_of(capture: Capture, run: Run) -> list[str]:
    """Lines for the report: nothing captured, or at a level of noise far from the head's."""
    if not run.rows:
        if run.cropped:
            return [CROPS]
        raise HostError(
            "Expected features captured while sampling, got none: no UNet call ran its blocks for the positive "
            "conditioning. Take out packs that cache or compile the model, or use Segment by Text. "
            "(socket: capture)"
        )
    if run.distance > FAR:
        return [
            f"captured at t = {run.step:.0f}, {run.distance:.0f} from the head's {capture.timestep}: expect worse "
            "masks; use more steps, or a higher denoise"
        ]
    return []
