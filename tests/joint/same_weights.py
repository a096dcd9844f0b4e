"""Outputs and maps of ComfyUI's classes for weights and inputs that a test made. Run by ComfyUI's interpreter.

`python same_weights.py FOLDER IN OUT`: FOLDER is ComfyUI; IN holds `weights.safetensors`, `inputs.safetensors` and
`config.json` (family, sizes of the class); OUT gets the output, and the maps of every block by name.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import families  # noqa: E402


def main() -> None:
    """See the module."""
    folder, given, out = sys.argv[1:]
    families.prepare(Path(folder))
    torch.set_grad_enabled(False)
    from ldznet.attention.joint import reading_joint
    from ldznet.hosts.joint import JOINT

    config = json.loads((Path(given) / "config.json").read_text(encoding="utf-8"))
    inputs = load_file(Path(given) / "inputs.safetensors")
    network = families.model(config["family"], **config["sizes"]).model.diffusion_model
    network.load_state_dict(load_file(Path(given) / "weights.safetensors"), strict=True)
    layout = {joint.family: joint.layout for joint in JOINT.values()}[config["family"]]
    blocks = list(layout.modules(network))
    arguments = (inputs["latents"], inputs["time"])
    named = {name: inputs[name] for name in ("context", "y", "guidance") if name in inputs}
    size = tuple(inputs["latents"].shape[2:])
    with reading_joint(layout, network, blocks, blocks, {}, size, end_early=False) as found:
        output = network(*arguments, **named, transformer_options={})
    maps = {f"cross.{name}": maps.contiguous() for name, maps in found.cross.items()}
    maps |= {f"self.{name}": maps.contiguous() for name, maps in found.self_attention.items()}
    if config["family"] == "flux":  # the last rows of the text as concepts
        with reading_joint(layout, network, blocks, (), {}, size, concepts=3) as found:
            network(*arguments, **named, transformer_options={})
        maps |= {f"concepts.{name}": maps.contiguous() for name, maps in found.cross.items()}
    save_file({"output": output.contiguous(), **maps}, out)


if __name__ == "__main__":
    main()
