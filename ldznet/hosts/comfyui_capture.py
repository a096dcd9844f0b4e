"""ComfyUI's side of capturing: wrappers around its samplers and UNet calls, and what its users read of a capture.

Vocabulary of ComfyUI: a guider's conditionings carry a `uuid`, and each UNet call says in `transformer_options` which
of them its rows belong to (`uuids`); `WrappersMP.OUTER_SAMPLE` runs around a sampler's whole run, `DIFFUSION_MODEL`
around each UNet call. Imports no comfy, so that stand-ins can test it; `comfyui.py` hangs the wrappers into a MODEL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..attention.prompts import texts_of
from ..capture import FAR, AttentionCapture, Capture, Run, Typed
from ..contracts import Captured
from ..errors import InputError
from ..models import CapturedTaps
from ..phrases import read, terms_of
from ..prompted import phrases_of
from ..shapes import Float

is_compiling = getattr(torch.compiler, "is_compiling", lambda: False)  # not in the oldest torch that works here

OWN_PASS = "; all phrases took a pass of the UNet"  # as Segment by Text takes it: masks are right, and cost one
REGION = "ldznet_region"  # of a conditioning that Region Prompts While Sampling adds: its number
CROPS = "nothing was captured: every positive conditioning covers only a part of the picture"
NOTHING = "nothing was captured while sampling: another node or pack caches, compiles or replaces the model's calls"
UNKNOWN = (
    "nothing was captured of this latent: no sampler with the captured model returned it as it is, or its result came "
    "from the cache (then a new seed captures again)"
)
NOT_FOUND = (
    "the prompt was not found in the graph: all phrases took a pass of the UNet; connect the text of the positive "
    "prompt to prompt, and its words are read from the sampling itself"
)
OTHER_TEXT = (
    "the prompt is not the text that was sampled with, or was averaged, scheduled or changed by another node: all "
    "phrases took a pass of the UNet"
)
LONGEST = 200  # letters of a prompt in a report
LINKS = "; self-attention from a pass of the UNet of its own, since another node or pack merges, tiles or skips it"


def sampling_into(
    capture: Capture, sampler_of: Callable[[], Any], timesteps_of: Callable[[Any], Sequence[float]]
) -> Any:
    """A wrapper of OUTER_SAMPLE; `sampler_of()` says whose run it is, `timesteps_of(sigmas)` where it will go."""

    def sample(
        executor: Any, noise: Any, latent_image: Any, sampler: Any, sigmas: Any, *rest: Any, **named: Any
    ) -> Any:
        """Around a whole sampler run."""
        positive = [cond for cond in executor.class_obj.conds.get("positive") or [] if REGION not in cond]
        weights = {cond["uuid"]: float(cond.get("strength", 1.0)) for cond in positive}
        contexts = {cond["uuid"]: cond["cross_attn"] for cond in positive if cond.get("cross_attn") is not None}
        nearest = min((abs(step - capture.timestep) for step in timesteps_of(sigmas)), default=float("inf"))
        run = Run(weights, (noise.shape[-2], noise.shape[-1]), contexts, nearest)
        with capture.running(sampler_of(), run):
            samples, denoised = run_through(executor, noise, latent_image, sampler, sigmas, *rest, **named)
            run.samples = [still(samples.cpu())]
            if denoised is not None:
                run.samples.append(still(capture.model.model.process_latent_out(denoised.cpu())))
        return samples

    return sample


def run_through(
    executor: Any, noise: Any, latent_image: Any, sampler: Any, sigmas: Any, *rest: Any, **named: Any
) -> tuple[Tensor, Tensor | None]:
    """What a sampler's run returns, and its last estimate of the clean latents in model space, of which SamplerCustom
    makes its `denoised_output`."""
    mask, callback, *others = [*rest, None, None][: max(2, len(rest))]
    mask, callback = named.pop("denoise_mask", mask), named.pop("callback", callback)
    last: list[Tensor] = []

    def watched(step: int, denoised: Any, x: Any, total: int) -> None:
        last[:] = [denoised]
        if callback is not None:
            callback(step, denoised, x, total)

    samples = executor(noise, latent_image, sampler, sigmas, mask, watched, *others, **named)
    return samples, last[0] if last else None


def calling_into(capture: Capture) -> Any:
    """A wrapper of DIFFUSION_MODEL."""

    def call(executor: Any, x: Any, timesteps: Any, *rest: Any, **named: Any) -> Any:
        """Around one UNet call; `timesteps` are what the UNet gets, 0..999 for SD 1.x.

        Nothing is read of a call that `torch.compile` traces: inside of it hooks run once, and never again.
        """
        if is_compiling():
            return executor(x, timesteps, *rest, **named)
        size, uuids = (x.shape[-2], x.shape[-1]), _uuids(x, rest, named)

        def execute() -> Any:
            return executor(x, timesteps, *rest, **named)

        if not uuids:
            return execute()
        return capture.call(executor.class_obj, size, float(timesteps.flatten()[0]), uuids, execute)

    return call


def applying_into(capture: Capture, steps_of: Callable[[Any], Sequence[float]]) -> Any:
    """A wrapper of APPLY_MODEL, for networks that are not wrapped themselves; `steps_of(sigmas)` are timesteps."""

    def call(executor: Any, x: Any, sigmas: Any, *rest: Any, **named: Any) -> Any:
        """Around one call of the model; a network that `torch.compile` wraps is not read."""
        network, uuids = executor.class_obj.diffusion_model, _uuids(x, rest, named)

        def execute() -> Any:
            return executor(x, sigmas, *rest, **named)

        if not uuids or is_compiling() or hasattr(network, "_orig_mod"):
            return execute()
        return capture.call(network, (x.shape[-2], x.shape[-1]), steps_of(sigmas[:1])[0], uuids, execute)

    return call


def _uuids(x: Tensor, rest: Sequence[Any], named: Mapping[str, Any]) -> Sequence[Any]:
    """Whose conditionings the rows of a call belong to, in as many equal parts; empty where the call does not say."""
    options = next((part for part in rest if isinstance(part, dict) and "uuids" in part), None)
    uuids = (options or named.get("transformer_options") or {}).get("uuids") or []
    return uuids if uuids and len(x) % len(uuids) == 0 else []


def run_of(capture: Capture, samples: Float[Tensor, "b c h w"]) -> Run | None:
    """The latest run that returned `samples` of a LATENT, of several one that left something; None where none did."""
    fitting = capture.returned(samples)
    return next((run for run in reversed(fitting) if run.rows or run.means), fitting[-1] if fitting else None)


def require_blocks(capture: Capture, blocks: Sequence[str]) -> None:
    """Raises InputError for a head that needs blocks that were not captured."""
    missing = [block for block in blocks if block not in capture.blocks]
    if missing:
        raise InputError(
            f"Expected a capture of {', '.join(missing)}, which this head reads, got one of "
            f"{', '.join(capture.blocks)}. Connect the same head to both nodes. (socket: head)"
        )


class Seen(NamedTuple):
    """What spares a head its passes, None where nothing does, and lines for the report."""

    captured: Captured | None
    notes: list[str]


def taps_of(run: Run | None, timestep: int) -> Seen:
    """Of a run, for a trained head of `timestep`."""
    if run is None or not run.rows:
        return Seen(None, [_reason(run)])
    return Seen(CapturedTaps(run.taps()), _far(run, timestep))


def words_of(
    capture: AttentionCapture, run: Run | None, prompts: Sequence[Typed], phrases: Sequence[str], host: Any
) -> Seen:
    """Of a run, for the attention head: those terms of `phrases` that stand in `prompts`; `host` is a `ComfyHost`."""
    if run is None or not run.means:
        return Seen(None, [_reason(run)])
    if not prompts:
        return Seen(None, [NOT_FOUND])
    seen = capture.of_prompts(run, prompts, terms_of(read(phrases)), texts_of(host))
    if seen is None:
        return Seen(None, [OTHER_TEXT])
    words = ", ".join(f'"{phrase}"' for phrase in seen.phrases)
    lines = [f"read from the sampling itself: {words or 'no phrase, none stands in the prompt'}"]
    if seen.lacks_links(capture.config):
        return Seen(seen, [lines[0] + LINKS])
    return Seen(seen, [*(_far(run, capture.timestep) if capture.self_blocks and run.rows else []), *lines])


def said_in(run: Run | None, prompts: Sequence[Typed]) -> list[Typed]:
    """Those of `prompts` that `run` was made with, each once."""
    places = [] if run is None else run.texts_of(prompts).values()
    return list({typed.text: typed for found in places for typed in found.values()}.values())


def every_phrase(prompts: Sequence[Typed]) -> list[str]:
    """Of several prompts, each once. Raises InputError where there is none."""
    found = {phrase.lower(): phrase for typed in reversed(prompts) for phrase in reversed(phrases_of(typed.text))}
    if not found:
        got = " and ".join(f'"{typed.text[:LONGEST]}"' for typed in prompts) or "no prompt that leads to the sampler"
        raise InputError(
            f"Expected a prompt with phrases in it, got {got}. Write what to find, one phrase a line. (socket: text)"
        )
    return list(reversed(found.values()))


def quoted(prompts: Sequence[Typed]) -> list[str]:
    """A line of a report for each prompt that was read."""
    return [f'the prompt: "{shortened}"' for typed in prompts if (shortened := _shortened(typed.text))]


def still(samples: Tensor) -> Tensor:
    """Latents b c h w of those with a dimension for frames, if there is one frame; others as they are."""
    return samples[:, :, 0] if samples.ndim == 5 and samples.shape[2] == 1 else samples


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"


def _reason(run: Run | None) -> str:
    """Why a run left nothing."""
    if run is None:
        return UNKNOWN + OWN_PASS
    return (CROPS if run.cropped else NOTHING) + OWN_PASS


def _far(run: Run, timestep: int) -> list[str]:
    if run.distance <= FAR:
        return []
    return [
        f"captured at t = {run.step:.0f}, {run.distance:.0f} from the head's {timestep}: expect worse masks; use more "
        "steps, or a higher denoise"
    ]
