"""What opening a diffusers model takes beside diffusers: configurations read, weights put into modules, all checked.

Classes of diffusers and transformers come as arguments, so it imports neither; `hf_diffusers` and `hf_diffusers_joint`
alone import it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.formats import listing
from ..errors import CheckpointError, cause, shown
from ..placing import device_of, dtype_of
from ..shapes import Float

MOST_LAYERS, MOST_NUMBER = 128, 2**17  # in a configuration; CLIP's vocabulary has 49,408 words


def placed(device: torch.device | str | None, dtype: torch.dtype | None) -> tuple[torch.device, torch.dtype]:
    """Where and as what weights go: None is the CPU, and float32 there, float16 elsewhere."""
    device, dtype = device_of(device), dtype_of(dtype)
    return device, dtype or (torch.float32 if device.type == "cpu" else torch.float16)


def read_json(path: Path) -> dict[str, Any]:
    """A configuration. Raises CheckpointError for one that is missing or broken."""
    if not path.is_file():
        raise CheckpointError(f"Expected a diffusers folder with {path.parent.name}/{path.name}, found none in {path}.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"Expected JSON in {path}, got: {cause(error)}.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"Expected a configuration in {path}, got {shown(repr(config))}.")
    return config


def pretrained(kind: Any, folder: Path) -> Any:
    """A whole `kind` from its folder; half-precision weights are taken where there are no others."""
    _require_modest(folder / "config.json")
    files = list(folder.glob("*.safetensors")) + list(folder.glob("*.bin"))
    variant = None if any("." not in file.stem for file in files) else "fp16"
    try:
        model, report = kind.from_pretrained(folder, variant=variant, local_files_only=True, output_loading_info=True)
    except Exception as error:  # of what is in the files, and of what is not
        raise CheckpointError(
            f"Expected the weights of a {kind.__name__} in {folder}, got: {cause(error)} Download the folder again."
        ) from error
    if report["missing_keys"]:
        raise CheckpointError(
            f"Expected a whole {kind.__name__} in {folder}, {listed(report['missing_keys'])} missing."
        )
    return model


def _require_modest(path: Path) -> None:
    """Raises CheckpointError for a configuration that would build networks of sizes which none has."""
    for name, value in read_json(path).items():
        values = value if isinstance(value, list) else [value]
        most = MOST_LAYERS if "layers" in name else MOST_NUMBER
        if len(values) > MOST_LAYERS or any(isinstance(v, (int, float)) and abs(v) > most for v in values):
            raise CheckpointError(
                f"Expected numbers up to {most:,} as {shown(name)} in {path}, got {shown(repr(value))}. Take the "
                "model's own folder."
            )


def mode_of(vae: Any, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c _ _"]:
    """What a VAE of diffusers makes of `pixels`: the posterior's mode, or TAESD's latents, which come bare."""
    encoded = vae.encode(pixels.to(vae.dtype))
    latents: Tensor = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
    return latents


def ready(module: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """`module` in its place for inference."""
    nn.Module.to(module, device, dtype)  # diffusers' own `to` warns of any dtype
    return module.eval().requires_grad_(False)


def renamed(
    convert: Callable[[dict[str, Tensor], Any], dict[str, Tensor]], state: dict[str, Tensor], config: Any
) -> dict[str, Tensor]:
    """`state` under diffusers' names, by one of its own functions. Raises CheckpointError where that finds none."""
    try:
        return convert(state, config)
    except Exception as error:  # it counts on published names
        raise CheckpointError(
            f"Expected the names of a published Stable Diffusion, got others ({type(error).__name__}: {cause(error)}). "
            "Take the model's diffusers folder, which says what it is."
        ) from error


def fill(module: Any, state: Mapping[str, Tensor]) -> None:
    """Makes the tensors of `state` those of a module on the meta device, if names and shapes are exactly its own."""
    expected = module.state_dict()
    state = {name: tensor for name, tensor in state.items() if tensor is not None}  # as diffusers marks what it misses
    wrong = [f"{name} missing" for name in expected if name not in state]
    wrong += [f"{name} unexpected" for name in state if name not in expected]
    for name in expected.keys() & state.keys():
        got, wanted = state[name], expected[name]
        if got.shape != wanted.shape:
            wrong.append(f"{name} {tuple(got.shape)} for {tuple(wanted.shape)}")
        elif got.is_floating_point() != wanted.is_floating_point():
            wrong.append(f"{name} {got.dtype} for {wanted.dtype}")
    if wrong:
        raise CheckpointError(
            f"Expected the published weights of a {type(module).__name__}, got {listed(wrong)}. "
            "Take the model's diffusers folder, which says what it is."
        )
    module.load_state_dict(state, assign=True)


def fill_text_encoder(model: Any, state: Mapping[str, Tensor]) -> None:
    """As `fill`, from the names that transformers gave before and after 5.6, which took "text_model." away."""
    known = model.state_dict()
    fill(model, {name if name in known else _prefixed(model, name): tensor for name, tensor in state.items()})
    embeddings = getattr(model, "text_model", model).embeddings
    positions = torch.arange(embeddings.position_ids.shape[-1], dtype=torch.int64, device="cpu")
    embeddings.position_ids = positions[None]  # in no file; was on meta


def _prefixed(model: Any, name: str) -> str:
    return f"text_model.{name}" if hasattr(model, "text_model") else name


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first few of `names`, and how many more there are."""
    return listing(sorted(names), most)
