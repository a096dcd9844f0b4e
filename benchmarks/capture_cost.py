"""What Capture While Sampling costs at full size: time inside its wrappers and hooks as a share of a sampler's run.

    python benchmarks/capture_cost.py --comfyui ~/ComfyUI --size 256 --steps 20

Run it with ComfyUI's own interpreter. The model is Stable Diffusion 1.5's UNet of random weights under euler, with a
positive and a negative conditioning, on the CPU. Seconds are the processor's, of all threads of this process, so that
other programs do not disturb them. Hooks run inside the sampler's own UNet calls: what is ours is taken out of the
sampler's time and put on our side.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
SD15 = {  # ComfyUI's configuration of its UNet
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "num_heads": 8,
    "num_head_channels": -1,
    "use_spatial_transformer": True,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "context_dim": 768,
    "legacy": False,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
    "num_classes": None,
}


class Clock:
    """Seconds of the processor by whose code runs: "sampler" or "capture". They nest; each second counts once."""

    def __init__(self) -> None:
        self.spent = {"sampler": 0.0, "capture": 0.0}
        self._owner, self._since = "sampler", time.process_time()

    @contextlib.contextmanager
    def owned(self, owner: str) -> Iterator[None]:
        before = self._switch(owner)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, owner: str) -> str:
        now, before = time.process_time(), self._owner
        self.spent[before] += now - self._since
        self._owner, self._since = owner, now
        return before


class Executor:
    """ComfyUI's executor of what a wrapper wraps, on the sampler's account."""

    def __init__(self, executor: Any, clock: Clock) -> None:
        self.executor, self.class_obj, self.clock = executor, executor.class_obj, clock

    def __call__(self, *rest: Any, **named: Any) -> Any:
        with self.clock.owned("sampler"):
            return self.executor(*rest, **named)


@contextlib.contextmanager
def hooks_on(clock: Clock) -> Iterator[None]:
    """Puts every forward hook that is registered inside on the capture's account."""
    original = torch.nn.Module.register_forward_hook

    def register(module: Any, hook: Any, **named: Any) -> Any:
        def timed(*rest: Any) -> Any:
            with clock.owned("capture"):
                return hook(*rest)

        return original(module, timed, **named)

    torch.nn.Module.register_forward_hook = register  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        torch.nn.Module.register_forward_hook = original  # type: ignore[method-assign]


def timed(model: Any, clock: Clock) -> None:
    """Puts the capture's wrappers of `model`, in place, on its account."""
    for kind, keys in model.wrappers.items():
        for key, wrappers in keys.items():
            model.wrappers[kind][key] = [_timed(wrapper, clock) for wrapper in wrappers]


def _timed(wrapper: Any, clock: Clock) -> Any:
    def wrapped(executor: Any, *rest: Any, **named: Any) -> Any:
        with clock.owned("capture"):
            return wrapper(Executor(executor, clock), *rest, **named)

    return wrapped


def sd15(channels: int) -> Any:
    """A MODEL of Stable Diffusion 1.5's size, but for its width."""
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.SD15({**SD15, "model_channels": channels})
    config.set_inference_dtype(torch.float32, None)
    base = config.get_model({}, "", device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in base.diffusion_model.parameters():
            weight.uniform_(-0.03, 0.03, generator=generator)
    return comfy.model_patcher.ModelPatcher(base, torch.device("cpu"), torch.device("cpu"))


def heads(channels: int) -> dict[str, Any]:
    """The published head, whose weights a capture does not need, and the one without a download."""
    from ldznet.attention import AttentionHead
    from ldznet.checkpoints.load import meta_head
    from ldznet.config import HeadConfig, UNetConfig
    from ldznet.hosts import comfyui

    models = {
        "published (taps)": meta_head(HeadConfig(host_unet=UNetConfig(model_channels=channels))),
        "attention (no download)": AttentionHead(),
    }
    return {n: comfyui.Head(n, SimpleNamespace(model=m, load_device=torch.device("cpu"))) for n, m in models.items()}


def sample(model: Any, size: int, steps: int, clock: Clock) -> None:
    """One picture."""
    import comfy.sample

    side, generator = size // 8, torch.Generator().manual_seed(0)
    noise = torch.randn(1, 4, side, side, generator=generator)
    positive, negative = ([[torch.randn(1, 77, 768, generator=generator), {}]] for _ in range(2))
    settings = (steps, 7.0, "euler", "normal", positive, negative)
    with clock.owned("sampler"):
        comfy.sample.sample(model, noise, *settings, torch.zeros_like(noise), disable_pbar=True, seed=0)


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, help="write the figures here")
    made.add_argument("--comfyui", type=Path, required=True, help="where ComfyUI is")
    made.add_argument("--size", type=int, default=512, help="side of the picture in pixels (default: 512)")
    made.add_argument("--steps", type=int, default=20)
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--channels", type=int, default=320, help="of the UNet's first level, SD 1.x's by default")
    given = made.parse_args()
    sys.path[:0] = [str(given.comfyui.expanduser()), str(ROOT)]
    torch.set_num_threads(given.threads)
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    from helpers import report

    from ldznet.hosts import comfyui

    host = comfyui.ComfyHost(sd15(given.channels))
    print(f"SD 1.5 at {given.size} px, {given.steps} steps, float32 on the CPU, {given.threads} threads", flush=True)
    rows = []
    for name, head in heads(given.channels).items():
        clock, (captured, _) = Clock(), comfyui.capturing(host, head.running().fitted_to(host).head_config)
        timed(captured, clock)
        with hooks_on(clock):
            sample(captured, given.size, given.steps, clock)
        ours, theirs = clock.spent["capture"], clock.spent["sampler"]
        row = {"capture s": ours, "sampler s": theirs, "% of it (target: 3)": 100 * ours / theirs}
        rows.append((name, row))
    report(rows, given.json)


if __name__ == "__main__":
    main()
