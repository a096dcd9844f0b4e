"""Weights that are to be multiplied by a scale which lies beside them, as ComfyUI and others save models in float8.

Imports formats alone; what opens a file hands it on through `with_scales`.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ..errors import CheckpointError, shown
from .formats import TensorFile, TensorInfo

SCALES = ("scale_weight", "weight_scale")  # ComfyUI's two names: one number, or one for each row
UNUSED = ("scale_input", "input_scale")  # for products in float8, of which there are none here
MARKER = "scaled_fp8"  # the end of a tensor's name that says that a file is of this kind


def with_scales(file: TensorFile) -> TensorFile:
    """`file` with its scaled weights in float32, multiplied as they are read; what scaled them is gone from it.

    Raises CheckpointError for a scale that is not understood, for then its weight would be wrong without a word.
    """
    scales: dict[str, str] = {}  # of weights, by their names
    gone = {name for name in file.tensors if name.rpartition(".")[2] == MARKER}
    for name in file.tensors:
        parent, dot, last = name.rpartition(".")
        weight = file.tensors.get(f"{parent}{dot}weight")
        if weight is None or "scale" not in last:
            continue
        if last in SCALES and _scales(file.tensors[name], weight):
            scales[f"{parent}{dot}weight"] = name
        elif last in SCALES or (last not in UNUSED and weight.dtype.itemsize == 1):
            raise CheckpointError(
                f"Expected weights, with one scale each or one for each of their rows, in {shown(file.path.name)}, got "
                f"{shown(name)} ({shown(file.tensors[name])}) beside {shown(weight)}. Take the model in float16."
            )
        if last in (*SCALES, *UNUSED):
            gone.add(name)
    if not gone:
        return file
    infos = {name: info for name, info in file.tensors.items() if name not in gone}
    infos |= {name: TensorInfo(torch.float32, infos[name].shape) for name in scales}
    return dataclasses.replace(file, tensors=infos, read=lambda name: _read(file, name, scales.get(name)))


def _scales(scale: TensorInfo, weight: TensorInfo) -> bool:
    sides = [side for side in scale.shape if side != 1]
    floats = scale.dtype.is_floating_point and weight.dtype.is_floating_point
    return floats and bool(weight.shape) and sides in ([], [weight.shape[0]])


def _read(file: TensorFile, name: str, scale: str | None) -> Tensor:
    if scale is None:
        return file.read(name)
    weight, factors = file.read(name).float(), file.read(scale).float()
    if not (factors.isfinite().all() and (factors > 0).all()):
        raise CheckpointError(f"Expected a positive scale in {shown(scale)}, got another. Download the file again.")
    return weight * factors.reshape(-1, *[1] * (weight.ndim - 1))
