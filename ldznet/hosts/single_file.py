"""An SD 1.x checkpoint in one file, as CompVis, A1111 and ComfyUI save it: recognised, and cut into its networks.

Names are the LDM's here; hf_diffusers.py, the one that imports this, turns them into diffusers'.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checkpoints.files import TensorFile, open_safetensors, sniff
from ..checkpoints.formats import TensorInfo
from ..checkpoints.pickles import open_pickle
from ..errors import CheckpointError

UNET, VAE, TEXT_ENCODER = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
V_PREDICTION = "v_pred"  # an empty tensor of this name marks v-prediction, as ComfyUI reads it


def open_file(path: Path) -> AbstractContextManager[TensorFile]:
    """The file's tensors, unread; a pickle's code never runs. Raises CheckpointError that says what the file seems."""
    return open_pickle(path) if sniff(path) == "zip" else open_safetensors(path)


def unet_facts(tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """What names and shapes tell of the UNet, in the words of a diffusers configuration.

    Raises CheckpointError for a file without a UNet that reads text.
    """
    shapes = {name.removeprefix(UNET): info.shape for name, info in tensors.items() if name.startswith(UNET)}
    widths = [shape[-1] for name, shape in shapes.items() if "attn2.to_k" in name]
    if not widths or "input_blocks.0.0.weight" not in shapes:
        names = ", ".join(list(tensors)[:3]) or "no tensor"
        raise CheckpointError(f"Expected an SD 1.x checkpoint with {UNET}input_blocks.…, got a file with {names}, ….")
    return {
        "cross_attention_dim": widths[0],
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "use_linear_projection": any(len(s) == 2 for name, s in shapes.items() if name.endswith("proj_in.weight")),
        "addition_embed_type": "text_time" if any(name.startswith("label_emb.") for name in shapes) else None,
    }


def prediction_type(tensors: Mapping[str, TensorInfo]) -> str:
    """ "epsilon", or "v_prediction" where the file is marked so; an unmarked file cannot tell."""
    return "v_prediction" if V_PREDICTION in tensors else "epsilon"


def read_part(file: TensorFile, prefix: str) -> dict[str, Tensor]:
    """The tensors of one network, under their names in the file; raises CheckpointError where there are none."""
    found = {name: file.read(name) for name in file.tensors if name.startswith(prefix)}
    if not found:
        raise CheckpointError(
            f"Expected a whole checkpoint with UNet, VAE and text encoder, found nothing under {prefix}… in "
            f"{file.path.name}: take the full file or a diffusers folder."
        )
    return found


def read_text_encoder(file: TensorFile) -> dict[str, Tensor]:
    """The text encoder under transformers' flat names ("embeddings.…"): prefixes vary by the version that saved it."""
    found = read_part(file, TEXT_ENCODER)
    names = {name: name.removeprefix(TEXT_ENCODER).removeprefix("text_model.") for name in found}
    return {short: found[name] for name, short in names.items() if not short.endswith("position_ids")}
