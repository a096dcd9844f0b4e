"""diffusers' classes and ComfyUI's of the same weights: the same output, and the same maps by our two readers."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from comfyui import host
from hosts import small_joint
from joint.renaming import renamed
from safetensors.torch import load_file, save_file

from ldznet.attention.joint import reading_joint
from ldznet.attention.joint_torch import TorchReader
from ldznet.checkpoints.load import WEIGHTS
from ldznet.hosts.hf_diffusers_joint import Layout, form_of
from ldznet.tinyworld import joint

pytestmark = [pytest.mark.host, pytest.mark.slow]
CASES = ("tiny", "sd3", "flux")


def network(case: str) -> Any:
    """The tiny world's transformer with its trained weights, random ones where none are shipped; or small ones."""
    if case != "tiny":
        return small_joint.transformer(case)
    if (WEIGHTS / "sd3.safetensors").exists():
        return joint.load()
    return small_joint.randomised(joint.fresh(), seed=5)


def sizes(case: str, config: Any) -> dict[str, Any]:
    """Of ComfyUI's class."""
    if case == "flux":
        return {"vec_in_dim": 32, "context_in_dim": 64, "mlp_ratio": 4.0}
    width = config.joint_attention_dim
    return {
        "in_channels": config.in_channels,
        "depth": config.num_attention_heads,
        "num_blocks": config.num_layers,
        "adm_in_channels": config.pooled_projection_dim,
        "context_embedder_config": {
            "target": "torch.nn.Linear",
            "params": {"in_features": width, "out_features": config.caption_projection_dim},
        },
        "pos_embed_max_size": config.pos_embed_max_size,
        "num_patches": config.pos_embed_max_size**2,
        "x_block_self_attn_layers": list(config.dual_attention_layers),
    }


def inputs(config: Any, form: Any, rows: int = 40) -> dict[str, torch.Tensor]:
    """Latents, which are not square, and a text."""
    generator = torch.Generator().manual_seed(2)
    made = {
        "latents": torch.randn(2, form.channels(type("N", (), {"config": config})), 12, 16, generator=generator),
        "time": torch.tensor([260.0, 700.0]) * (form.time / 1000),
        "context": torch.randn(2, rows, config.joint_attention_dim, generator=generator),
        "y": torch.randn(2, config.pooled_projection_dim, generator=generator),
    }
    return made | ({"guidance": torch.full((2,), 3.5)} if form.family == "flux" else {})


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_outputs_and_maps_are_those_of_comfyui_s_class(case: str, tmp_path: Path) -> None:
    if reason := host.reason_to_skip():
        pytest.skip(reason)
    from ldznet.contracts import Conditioning

    model = network(case)
    form = form_of(type(model).__name__, model.config)
    given = inputs(model.config, form)
    about = {"family": form.family, "sizes": sizes(case, model.config)}
    (tmp_path / "config.json").write_text(json.dumps(about), encoding="utf-8")
    save_file(renamed(model.state_dict(), form.family), tmp_path / "weights.safetensors")
    save_file(given, tmp_path / "inputs.safetensors")
    folder = host.folder()
    assert folder is not None
    script, out = Path(__file__).parent / "same_weights.py", tmp_path / "out.safetensors"
    command = [str(host.interpreter(folder)), str(script), str(folder), str(tmp_path), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = load_file(out)

    conditioning = Conditioning(given["context"], {"pooled": given["y"]})
    layout = Layout({"joint": "transformer_blocks"}, patch=form.side(model), text_first=form.text_first)
    blocks = list(layout.modules(model))
    with reading_joint(layout, model, blocks, blocks, {}, (12, 16), end_early=False, reader=TorchReader) as found:
        arguments = form.inputs(model, given["latents"], conditioning)
        output = model(**arguments, timestep=given["time"], return_dict=False)[0]
    arguments = {**arguments, "timestep": given["time"], "return_dict": False}
    if case == "flux":
        with reading_joint(layout, model, blocks, (), {}, (12, 16), reader=TorchReader, concepts=3) as asked:
            model(**arguments)
        apart = {b: float((asked.cross[b] - theirs[f"concepts.{b}"]).abs().max()) for b in blocks}
        print("concepts", apart)
        assert max(apart.values()) < 1e-3, apart  # a softmax of numbers up to a thousand
        assert float((asked.cross[blocks[0]] - theirs[f"concepts.{blocks[-1]}"]).abs().max()) > 0.1
        output = output.reshape(2, 6, 8, 16, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(2, 16, 12, 16)
    errors = {"output": float((output - theirs["output"]).abs().max())}
    for kind, maps in (("cross", found.cross), ("self", found.self_attention)):
        assert list(maps) == blocks
        errors |= {f"{kind}.{b}": float((maps[b] - theirs[f"{kind}.{b}"]).abs().max()) for b in blocks}
    print(case, errors)
    assert float(theirs["output"].std()) > 1e-2
    assert errors.pop("output") < 1e-4, errors
    assert max(errors.values()) < 1e-5, errors
    swapped = found.cross[blocks[0]] - theirs[f"cross.{blocks[-1]}"]
    assert float(swapped.abs().max()) > 1e-4  # another block's maps are others
