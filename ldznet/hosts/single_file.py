"""A Stable Diffusion checkpoint in one file, as CompVis, Stability, A1111 and ComfyUI save it: recognised, and cut into
its networks.

Names are the LDM's here, and OpenCLIP's for two of the text encoders; hf_diffusers.py, the one that imports this, turns
the LDM's into diffusers'.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..checkpoints.files import TensorFile, open_safetensors, sniff
from ..checkpoints.formats import TensorInfo, listing
from ..checkpoints.pickles import open_pickle
from ..clip_bpe import END
from ..errors import CheckpointError, shown

UNET, VAE = "model.diffusion_model.", "first_stage_model."
V_PREDICTION = "v_pred"  # an empty tensor of this name marks v-prediction, as ComfyUI reads it


class Encoder(NamedTuple):
    """A text encoder in a file: under which `prefix`, whether it is OpenCLIP's, and whether it projects."""

    name: str
    prefix: str
    open_clip: bool = False
    projects: bool = False

    @property
    def pad(self) -> str:
        """What its texts are padded with: the end token, or OpenCLIP's id 0."""
        return "!" if self.open_clip else END


ENCODERS: dict[str, tuple[Encoder, ...]] = {
    "sd1": (Encoder("text_encoder", "cond_stage_model.transformer."),),
    "sd2": (Encoder("text_encoder", "cond_stage_model.model.", open_clip=True),),
    "sdxl": (
        Encoder("text_encoder", "conditioner.embedders.0.transformer."),
        Encoder("text_encoder_2", "conditioner.embedders.1.model.", open_clip=True, projects=True),
    ),
}
CONFIGURATIONS = {  # of each network, in this folder: what a file lacks
    "sd1": {"unet": "sd1/unet.json", "vae": "sd1/vae.json", "text_encoder": "sd1/text_encoder.json"},
    "sd2": {"unet": "sd2/unet.json", "vae": "sd1/vae.json", "text_encoder": "sd2/text_encoder.json"},
    "sdxl": {
        "unet": "sdxl/unet.json",
        "vae": "sdxl/vae.json",
        "text_encoder": "sd1/text_encoder.json",
        "text_encoder_2": "sdxl/text_encoder_2.json",
    },
}
MERGES = "sd1/clip_merges.txt.gz"  # one vocabulary serves all of them
MOST_TENSORS = 4000  # of a network; SDXL's UNet has 1,680. Turning names into diffusers' takes their number squared
ODD = re.compile(r"\d{3}")  # in a name: no network has a hundred blocks or layers
LAYER = re.compile(r"transformer\.resblocks\.(\d{1,4})\.")
OPEN_CLIP = (  # names there, and in transformers
    ("transformer.resblocks.", "encoder.layers."),
    ("token_embedding.", "embeddings.token_embedding."),
    ("positional_embedding", "embeddings.position_embedding.weight"),
    ("ln_final.", "final_layer_norm."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
    (".attn.", ".self_attn."),
)
SPARE = ("logit_scale", "attn_mask", "position_ids")  # in many files, of no use to a text's hidden states
PROJECTION = "text_projection"


def open_file(path: Path) -> AbstractContextManager[TensorFile]:
    """The file's tensors, unread; a pickle's code never runs. Raises CheckpointError that says what the file seems."""
    return open_pickle(path) if sniff(path) == "zip" else open_safetensors(path)


def unet_facts(tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """What names and shapes tell of the UNet, in the words of a diffusers configuration.

    Raises CheckpointError for a file without a UNet that reads text.
    """
    shapes = {name.removeprefix(UNET): info.shape for name, info in tensors.items() if name.startswith(UNET)}
    widths = [shape[-1] for name, shape in shapes.items() if "attn2.to_k" in name and len(shape) == 2]
    first = shapes.get("input_blocks.0.0.weight", ())
    if not widths or len(first) != 4:
        raise CheckpointError(
            f"Expected a Stable Diffusion checkpoint with {UNET}input_blocks.…, got a file with "
            f"{listing(list(tensors), 3) or 'no tensor'}."
        )
    return {
        "cross_attention_dim": widths[0],
        "in_channels": first[1],
        "use_linear_projection": any(len(s) == 2 for name, s in shapes.items() if name.endswith("proj_in.weight")),
        "addition_embed_type": "text_time" if any(name.startswith("label_emb.") for name in shapes) else None,
    }


def prediction_type(tensors: Mapping[str, TensorInfo]) -> str:
    """ "epsilon", or "v_prediction" where the file is marked so; an unmarked file cannot tell."""
    return "v_prediction" if V_PREDICTION in tensors else "epsilon"


def read_part(file: TensorFile, prefix: str) -> dict[str, Tensor]:
    """The tensors of one network, under their names in the file; raises CheckpointError where there are none."""
    names = [name for name in file.tensors if name.startswith(prefix)]
    odd = [name for name in names if ODD.search(name)]
    if odd or len(names) > MOST_TENSORS:
        raise CheckpointError(
            f"Expected a published network under {prefix}… in {shown(file.path.name)}, got {len(names):,} tensors such "
            f"as {listing(odd or names, 3)}: take another file."
        )
    found = {name: file.read(name) for name in names}
    if not found:
        raise CheckpointError(
            f"Expected a whole checkpoint with UNet, VAE and text encoder, found nothing under {prefix}… in "
            f"{shown(file.path.name)}: take the full file or a diffusers folder."
        )
    return found


def read_text_encoder(file: TensorFile, encoder: Encoder, layers: int) -> dict[str, Tensor]:
    """A text encoder under transformers' flat names ("embeddings.…", "text_projection.weight").

    Of OpenCLIP's layers the first `layers` are taken: SD 2.x reads its last but one, and diffusers drops the last.
    """
    part = read_part(file, encoder.prefix)
    named = {name.removeprefix(encoder.prefix).removeprefix("text_model."): part[name] for name in part}
    found = dict(_from_open_clip(named, layers)) if encoder.open_clip else named
    unread = SPARE if encoder.projects else (*SPARE, PROJECTION)
    return {name: tensor for name, tensor in found.items() if not any(word in name for word in unread)}


def _from_open_clip(state: Mapping[str, Tensor], layers: int) -> Iterator[tuple[str, Tensor]]:
    """Each tensor under its name in transformers; queries, keys and values, which lie in one there, apart."""
    for name, tensor in state.items():
        layer = LAYER.match(name)
        if layer and int(layer[1]) >= layers:
            continue
        for open_clip, transformers in OPEN_CLIP:
            name = name.replace(open_clip, transformers)
        if ".in_proj_" in name:
            before, _, kind = name.partition("in_proj_")
            yield from ((f"{before}{x}_proj.{kind}", part) for x, part in zip("qkv", tensor.chunk(3), strict=True))
        elif name == PROJECTION:
            yield f"{PROJECTION}.weight", tensor.t().contiguous()  # OpenCLIP multiplies from the right
        else:
            yield name, tensor
