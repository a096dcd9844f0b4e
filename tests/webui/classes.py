"""The tiny world's weights in a host's own UNet class, masks of it through that host's adapter: run by its interpreter.

`python classes.py HOST FOLDER LATENTS OUT`: HOST is A1111, Forge, reForge, ComfyUI or diffusers, FOLDER where it lies
(any for diffusers), LATENTS an npy. Writes an npz with the probabilities of both heads for PHRASES, and the taps.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[2]
PHRASES = ("a purple cat", "grass", "sky")


def tiny_sizes() -> dict[str, Any]:
    """The configuration of ComfyUI's class, which the Forges' are made with too."""
    from ldznet.hosts.comfyui_tiny import unet_config

    return unet_config()


def a1111(folder: Path) -> Any:
    """ldm's class, as the LDM calls it."""
    sys.path.insert(0, str(folder / "repositories" / "stable-diffusion-stability-ai"))
    from ldm.modules.diffusionmodules.openaimodel import UNetModel

    same = ("image_size", "in_channels", "out_channels", "model_channels", "channel_mult", "num_heads", "context_dim")
    sizes = {name: tiny_sizes()[name] for name in same}
    unet = UNetModel(
        **sizes,
        num_res_blocks=2,
        attention_resolutions=[4, 2, 1],
        use_spatial_transformer=True,
        transformer_depth=1,
        legacy=False,
    )

    def apply_model(x: Any, t: Any, given: Any) -> Any:
        return unet(torch.cat([x, *given["c_concat"]], dim=1), t, context=torch.cat(given["c_crossattn"], dim=1))

    parts = {"model": SimpleNamespace(diffusion_model=unet), "first_stage_model": torch.nn.Identity()}
    return unet, SimpleNamespace(**parts, apply_model=apply_model, alphas_cumprod=alphas(), parameterization="eps")


def forge(folder: Path) -> Any:
    """backend.nn.unet's class."""
    sys.argv = ["", "--always-cpu"]
    sys.path[:0] = [str(folder), str(folder / "packages_3rdparty")]
    from backend.nn.unet import IntegratedUNet2DConditionModel

    left_out = ("image_size", "legacy", "use_temporal_attention")
    unet = IntegratedUNet2DConditionModel(**{k: v for k, v in tiny_sizes().items() if k not in left_out})
    predictor = SimpleNamespace(alphas_cumprod=alphas(), prediction_type="epsilon")
    kind = SimpleNamespace(diffusion_model=unet, predictor=predictor, computation_dtype=torch.float32)
    return unet, SimpleNamespace(forge_objects=objects(kind))


def reforge(folder: Path) -> Any:
    """ldm_patched's class."""
    sys.path.insert(0, str(folder))
    from ldm_patched.modules.args_parser import args

    args.always_cpu = True
    import ldm_patched.modules.ops as ops
    from ldm_patched.ldm.modules.diffusionmodules.openaimodel import UNetModel

    unet = UNetModel(**tiny_sizes(), operations=ops.disable_weight_init)
    kind = SimpleNamespace(diffusion_model=unet, manual_cast_dtype=None, get_dtype=lambda: torch.float32)
    return unet, SimpleNamespace(forge_objects=objects(kind), alphas_cumprod=alphas(), parameterization="eps")


def objects(kind: Any) -> Any:
    """`forge_objects` around a model; the memory management of a host that runs is left out."""
    from ldznet.hosts import webui

    webui.MEMORY = ()
    vae = SimpleNamespace(first_stage_model=torch.nn.Identity())
    return SimpleNamespace(unet=SimpleNamespace(model=kind, load_device=torch.device("cpu")), vae=vae)


def comfyui(folder: Path) -> Any:
    """All of ComfyUI's own classes."""
    sys.argv = ["", "--cpu"]
    sys.path.insert(0, str(folder))
    import comfy.options

    comfy.options.enable_args_parsing()
    from ldznet.hosts.comfyui import ComfyHost
    from ldznet.hosts.comfyui_world import tiny_models

    return ComfyHost(*tiny_models())


def diffusers(folder: Path) -> Any:
    """UNet2DConditionModel."""
    sys.path.insert(0, str(ROOT / "tests"))
    from diffusers import UNet2DConditionModel
    from hosts.small import ldm_unet_name

    from ldznet.hosts.hf_diffusers import DiffusersHost
    from ldznet.hosts.tiny import TinyHost

    tiny, sizes = TinyHost.load(), tiny_sizes()
    widths = tuple(sizes["model_channels"] * factor for factor in sizes["channel_mult"])
    unet = UNet2DConditionModel(
        block_out_channels=widths, cross_attention_dim=sizes["context_dim"], attention_head_dim=sizes["num_heads"]
    )
    weights = tiny.models.unet.state_dict()
    unet.load_state_dict(
        {n: weights[ldm_unet_name(n, 1 if n.startswith("up_blocks.0") else 2)] for n in unet.state_dict()}
    )
    return DiffusersHost(unet.eval().requires_grad_(False), torch.nn.Identity(), None)  # type: ignore[arg-type]


def alphas() -> torch.Tensor:
    """Stable Diffusion's schedule."""
    from ldznet import schedule

    return schedule.alphas_cumprod().float()


def opened(name: str, folder: Path) -> Any:
    """The adapter around the host's class with the tiny world's weights; text is the tiny world's."""
    from ldznet.hosts import open_host
    from ldznet.hosts.tiny import TinyHost

    if name == "ComfyUI":
        return comfyui(folder)
    tiny = TinyHost.load()
    if name == "diffusers":
        return spoken_to(diffusers(folder), tiny)
    unet, model = {"A1111": a1111, "Forge": forge, "reForge": reforge}[name](folder)
    unet.load_state_dict(tiny.models.unet.state_dict())
    unet.eval().requires_grad_(False)
    return spoken_to(open_host(model), tiny)


def spoken_to(host: Any, tiny: Any) -> Any:
    """`host` with the tiny world's text encoder."""
    host.encode_text, host.condition, host.tokenize = tiny.encode_text, tiny.condition, tiny.tokenize
    return host


def shrunken() -> Any:
    """*tiny* as changes of rank 32 to the tiny UNet."""
    from ldznet import load_head
    from ldznet.checkpoints.load import WEIGHTS
    from ldznet.checkpoints.shrink import shrink

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "delta.safetensors"
        shrink(WEIGHTS / "ldznet.safetensors", path, WEIGHTS / "unet.safetensors", rank=32)
        return load_head(path, device="cpu")


def measured(host: Any, latents: torch.Tensor) -> dict[str, np.ndarray]:
    """Masks of three heads, the delta head made from the trained one, and the taps."""
    from ldznet import load_head
    from ldznet.attention import CONFIGS, AttentionHead
    from ldznet.predictor import Predictor

    found = {}
    heads = {"trained": load_head("tiny"), "attention": AttentionHead(CONFIGS["tiny"]), "delta": shrunken()}
    for name, head in heads.items():
        predictor = Predictor(host, head)
        predictor.set_latents(latents)
        found[name] = predictor.predict(PHRASES).probabilities.numpy()
    steps, context = torch.tensor([400]), host.encode_text(["a purple cat"])
    taps = host.extract(host.add_noise(latents, torch.ones_like(latents), steps), steps, context, list(host.specs))
    return {**found, **{f"tap {block}": tap.numpy() for block, tap in taps.items()}}


if __name__ == "__main__":
    host_name, where, given, out = sys.argv[1:]
    sys.path.insert(0, str(ROOT))
    np.savez(out, **measured(opened(host_name, Path(where)), torch.from_numpy(np.load(given))))
