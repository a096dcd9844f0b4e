"""What Capture While Sampling costs at full size: time inside its wrappers and hooks as a share of a sampler's run.

    python benchmarks/capture_cost.py --comfyui ~/ComfyUI --size 256 --steps 20
    python benchmarks/capture_cost.py --comfyui ~/ComfyUI --family flux --size 1024 --steps 1

Run it with ComfyUI's own interpreter. The model is Stable Diffusion 1.5's UNet of random weights under euler, with a
positive and a negative conditioning, on the CPU; or a transformer of full width and few blocks, each of which is read,
with a positive one alone. Seconds are the processor's, of all threads of this process, so that other programs do not
disturb them. Hooks run inside the sampler's own calls of the network: what is ours is taken out of the sampler's time
and put on our side.
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

MODELS: dict[str, tuple[str, int, dict[str, Any]]] = {  # class, rows of text, ComfyUI's configuration
    "sd15": ("SD15", 77, SD15),
    "flux": (
        "Flux",
        256,
        {
            "image_model": "flux",
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 16,
            "vec_in_dim": 768,
            "context_in_dim": 4096,
            "hidden_size": 3072,
            "mlp_ratio": 4.0,
            "num_heads": 24,
            "depth": 2,
            "depth_single_blocks": 0,
            "axes_dim": [16, 56, 56],
            "theta": 10000,
            "qkv_bias": True,
            "guidance_embed": True,
            "txt_ids_dims": [],
        },
    ),
    "zimage": (
        "ZImage",
        256,
        {
            "image_model": "lumina2",
            "patch_size": 2,
            "in_channels": 16,
            "dim": 3840,
            "n_layers": 2,
            "n_refiner_layers": 0,
            "n_heads": 30,
            "n_kv_heads": 30,
            "multiple_of": 256,
            "qk_norm": True,
            "cap_feat_dim": 2560,
            "axes_dims": [32, 48, 48],
            "axes_lens": [1536, 512, 512],
            "pad_tokens_multiple": 32,
            "z_image_modulation": True,
            "time_scale": 1000.0,
        },
    ),
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
    """Puts every forward hook that is registered inside on the capture's account, and looks at attention calls."""
    from ldznet.attention.joint import Reader

    original, look = torch.nn.Module.register_forward_hook, Reader.look

    def looking(*rest: Any) -> None:
        with clock.owned("capture"):
            look(*rest)

    def register(module: Any, hook: Any, **named: Any) -> Any:
        def timed(*rest: Any) -> Any:
            with clock.owned("capture"):
                return hook(*rest)

        return original(module, timed, **named)

    torch.nn.Module.register_forward_hook = register  # type: ignore[assignment, method-assign]
    Reader.look = looking  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        Reader.look = look  # type: ignore[method-assign]
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


def model_of(family: str, channels: int | None) -> Any:
    """A MODEL of Stable Diffusion 1.5's size, or a transformer's, but for its width."""
    import comfy.model_patcher
    import comfy.supported_models

    kind, _, sizes = MODELS[family]
    if channels:
        changed = {name: channels for name in ("model_channels", "hidden_size", "dim") if name in sizes}
        if family != "sd15":  # a transformer's rotary embeddings are for heads of 128
            changed |= {name: channels // 128 for name in ("num_heads", "n_heads", "n_kv_heads") if name in sizes}
        sizes = {**sizes, **changed}
    config = getattr(comfy.supported_models, kind)(sizes)
    config.set_inference_dtype(torch.float32, None)
    base = config.get_model({}, "", device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in base.diffusion_model.parameters():
            weight.uniform_(-0.03, 0.03, generator=generator)
    return comfy.model_patcher.ModelPatcher(base, torch.device("cpu"), torch.device("cpu"))


def heads(family: str, channels: int | None) -> dict[str, Any]:
    """The published head, whose weights a capture does not need, and the one without a download: of a transformer the
    latter alone."""
    from ldznet.attention import AttentionHead
    from ldznet.checkpoints.load import meta_head
    from ldznet.config import HeadConfig, UNetConfig
    from ldznet.hosts import comfyui_heads

    models: dict[str, Any] = {"attention (no download)": AttentionHead()}
    if family == "sd15":
        published = HeadConfig(host_unet=UNetConfig(model_channels=channels or 320))
        models = {"published (taps)": meta_head(published), **models}
    return {
        n: comfyui_heads.Head(n, SimpleNamespace(model=m, load_device=torch.device("cpu"))) for n, m in models.items()
    }


def sample(model: Any, family: str, size: int, steps: int, clock: Clock) -> None:
    """One picture."""
    import comfy.sample

    side, generator = size // 8, torch.Generator().manual_seed(0)
    _, rows, sizes = MODELS[family]
    transformer = family != "sd15"
    width = next(sizes[name] for name in ("context_dim", "context_in_dim", "cap_feat_dim") if name in sizes)
    noise = torch.randn(1, sizes["in_channels"], side, side, generator=generator)
    extras = {"pooled_output": torch.randn(1, 768, generator=generator)} if transformer else {}
    positive, negative = ([[torch.randn(1, rows, width, generator=generator), extras]] for _ in range(2))
    cfg, scheduler = (1.0, "simple") if transformer else (7.0, "normal")
    settings = (steps, cfg, "euler", scheduler, positive, negative)
    with clock.owned("sampler"):
        comfy.sample.sample(model, noise, *settings, torch.zeros_like(noise), disable_pbar=True, seed=0)


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, help="write the figures here")
    made.add_argument("--comfyui", type=Path, required=True, help="where ComfyUI is")
    made.add_argument("--size", type=int, default=512, help="side of the picture in pixels (default: 512)")
    made.add_argument("--steps", type=int, default=20)
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--family", choices=MODELS, default="sd15")
    made.add_argument("--channels", type=int, help="of the UNet's first level, or of a transformer (default: its own)")
    given = made.parse_args()
    sys.path[:0] = [str(given.comfyui.expanduser()), str(ROOT)]
    torch.set_num_threads(given.threads)
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    from helpers import report

    from ldznet.contracts import FAMILIES
    from ldznet.hosts import comfyui, comfyui_joint

    host = comfyui_joint.host_of(model_of(given.family, given.channels))
    title = FAMILIES[host.family].title
    print(f"{title} at {given.size} px, {given.steps} steps, float32 on the CPU, {given.threads} threads", flush=True)
    rows = []
    for name, head in heads(given.family, given.channels).items():
        clock, (captured, _) = Clock(), comfyui.capturing(host, head.running().fitted_to(host).head_config)
        timed(captured, clock)
        with hooks_on(clock):
            sample(captured, given.family, given.size, given.steps, clock)
        ours, theirs = clock.spent["capture"], clock.spent["sampler"]
        row = {"capture s": ours, "sampler s": theirs, "% of it (target: 3)": 100 * ours / theirs}
        rows.append((name, row))
    report(rows, given.json)


if __name__ == "__main__":
    main()
