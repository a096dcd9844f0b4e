"""A trained head as a delta head: what it learned beyond the UNet that it started from, in products of low rank.

host + (head - base) is the head where the host is the base, and only there. Differences of matrices and convolutions
are cut off after some singular values (Eckart & Young 1936); norms, biases and the paper's additions are kept whole.
One matrix is in memory at a time. May be imported by the command line and by install.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .. import __version__
from ..config import HeadConfig
from ..errors import CheckpointError, InputError, shown
from ..models.delta import layer_key, layers_of, ldm_name, matrices_of
from .convert import OPENERS, check_settings
from .files import TensorFile, nbytes, sniff, stream_tensors
from .formats import TensorInfo, match, seems_to_be
from .load import OWNER, config_of, layout_of, meta_head, own_metadata

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")  # of a UNet in a file
MEGABYTE = 10**6

Progress = Callable[[int, int], None]


class Shrunk(NamedTuple):
    """What `shrink` wrote: a file of `size` bytes, and the share of the differences' energy that it keeps, whole and by
    the name of each block ("input.1", "time")."""

    target: Path
    size: int
    rank: int  # the largest
    energy: float
    energies: dict[str, float]


def shrink(
    source: str | Path,
    target: str | Path,
    base: str | Path,
    *,
    rank: int | None = None,
    megabytes: float | None = None,
    dtype: torch.dtype = torch.float16,
    force: bool = False,
    progress: Progress | None = None,
) -> Shrunk:
    """Writes the LD-ZNet or ZNet in `source` as a delta head over the UNet in `base`, in `dtype`.

    `rank` is that of every matrix; or the whole file takes `megabytes`, and each matrix the rank at which another one
    would keep less energy a byte. `source` is what `convert` takes; `base` a checkpoint with the LDM's names.
    Raises CheckpointError for other files, InputError for a setting that cannot be met.
    """
    source, base, target = Path(source), Path(base), Path(target)
    for given in (source, base):
        check_settings(given, target, dtype, force)
    if (rank is None) == (megabytes is None) or (rank is not None and rank < 1):
        raise InputError(
            f"Expected a rank of at least 1 or a size in MB, got rank {rank} and {megabytes} MB. Give one."
        )
    with OPENERS[sniff(source)](source) as head, OPENERS[sniff(base)](base) as unet:
        config = config_of(head) or HeadConfig()
        if config.network not in ("ldznet", "znet"):
            raise CheckpointError(f"Expected an LD-ZNet or ZNet to shrink, got a head of the network {config.network}.")
        expected = layout_of(meta_head(config))
        keys = match(head.tensors, expected, source.name, OWNER).keys
        differences = Differences(config, dtype, head, keys, unet, _prefix(unet, config))
        names = matrices_of(config.unet)
        spectra = {}
        for i, name in enumerate(names):
            spectra[name] = differences.spectrum(name)
            if progress:
                progress(i + 1, 2 * len(names))
        blocks = config.blocks if config.network == "ldznet" else ()
        delta = replace(config, network="delta", blocks=blocks, ranks=(0,) * len(names))
        ranks = _ranks(delta, dtype, spectra, rank, megabytes)
        delta = replace(delta, ranks=tuple(ranks[name] for name in names))
        energies = _energies(spectra, ranks)
        layout = {name: TensorInfo(dtype, info.shape) for name, info in layout_of(meta_head(delta)).items()}
        metadata = {"what": f"{source.name} over {base.name}", "converted_by": f"ldznet {__version__}"}
        metadata |= {"base_sha256": differences.digest(), "energy": json.dumps(energies)}
        kept = {key: text for key, text in head.metadata.items() if key in ("licence", "trained_on")}
        size, done = sum(map(nbytes, layout.values())), 0

        def tick(count: int) -> None:
            nonlocal done
            done += count
            if progress:
                progress(len(names) + done * len(names) // size, 2 * len(names))

        stream_tensors(target, layout, differences.reader(ranks), {**metadata, **kept, **own_metadata(delta)}, tick)
    whole = _share(spectra, ranks, list(spectra))
    return Shrunk(target, size, max(ranks.values()), whole, energies)


class Differences:
    """Head minus base, a layer at a time; by the LDM's names."""

    def __init__(
        self,
        config: HeadConfig,
        dtype: torch.dtype,
        head: TensorFile,
        keys: Mapping[str, str],
        unet: TensorFile,
        prefix: str,
    ) -> None:
        self.config, self._dtype, self._head, self._keys, self._unet, self._prefix = (
            config,
            dtype,
            head,
            keys,
            unet,
            prefix,
        )
        self._last: tuple[str, tuple[Tensor, Tensor]] | None = None
        self._own = {layer_key(block): ldm_name(block) for block in config.tap_specs}
        self._layers = {layer_key(name): name for name in layers_of(config.unet)}

    def of(self, name: str) -> Tensor:
        """A parameter's difference, in float32. Raises CheckpointError where it is not finite."""
        difference = self._read_head(name).float() - self._unet.read(self._prefix + name).float()
        if not difference.isfinite().all():
            raise CheckpointError(f"Expected finite weights, got infinity or NaN in {name}. Get head and base anew.")
        return difference

    def spectrum(self, layer: str) -> Tensor:
        """Squares of the singular values of a layer's difference, largest first."""
        return torch.linalg.eigvalsh(_gram(self._matrix(layer))).flip(0).clamp(min=0)

    def factors(self, layer: str, rank: int) -> tuple[Tensor, Tensor]:
        """The product up · down that is nearest to a layer's difference among those of `rank`: m rank, rank n."""
        if self._last is None or self._last[0] != layer:
            matrix = self._matrix(layer)
            vectors = torch.linalg.eigh(_gram(matrix))[1].flip(1)[:, :rank]
            tall = len(matrix) > matrix.shape[1]
            self._last = layer, (matrix @ vectors, vectors.T) if tall else (vectors, vectors.T @ matrix)
        return self._last[1]

    def reader(self, ranks: Mapping[str, int]) -> Callable[[str], Tensor]:
        """Gives each tensor of the delta head, by its name in that."""

        def read(name: str) -> Tensor:
            group, _, rest = name.partition(".")
            key, _, part = rest.partition(".")
            if group == "changes":
                return self._change(self._layers[key], part, ranks).to(self._dtype).contiguous()
            if group == "additions":
                name = (
                    f"{self._own[key]}.{part}"
                    if part.startswith("attentionpool2D")
                    else (f"{self._own[key]}.transformer_blocks.0.{part}")
                )
            return self._read_head(name).to(self._dtype)

        return read

    def digest(self) -> str:
        """SHA-256 of the base's layers, in order."""
        sha = hashlib.sha256()
        for layer, shapes in layers_of(self.config.unet).items():
            for kind in shapes:
                sha.update(self._unet.read(f"{self._prefix}{layer}.{kind}").float().numpy().tobytes())
        return sha.hexdigest()

    def _change(self, layer: str, part: str, ranks: Mapping[str, int]) -> Tensor:
        if part not in ("up", "down"):
            return self.of(f"{layer}.{part}")
        shape = layers_of(self.config.unet)[layer]["weight"]
        up, down = self.factors(layer, ranks[layer])
        balance = (down.norm(dim=1) / up.norm(dim=0).clamp(min=1e-30)).clamp(1e-30, 1e30).sqrt()  # alike, for float16
        return up * balance if part == "up" else (down / balance[:, None]).reshape(-1, *shape[1:])

    def _matrix(self, layer: str) -> Tensor:
        return self.of(f"{layer}.weight").flatten(1).double()

    def _read_head(self, name: str) -> Tensor:
        return self._head.read(self._keys[name])


def _gram(matrix: Tensor) -> Tensor:
    """Of the rows or the columns, whichever are fewer: its eigenvalues are the squares of the singular values."""
    return matrix.T @ matrix if len(matrix) > matrix.shape[1] else matrix @ matrix.T


def _prefix(unet: TensorFile, config: HeadConfig) -> str:
    """Before the LDM's names in a base's file; raises CheckpointError for a file without such a UNet, or another's."""
    wanted = {
        f"{layer}.{kind}": shape for layer, shapes in layers_of(config.unet).items() for kind, shape in shapes.items()
    }
    for prefix in PREFIXES:
        found = [name for name in wanted if prefix + name in unet.tensors]
        if found:
            wrong = [n for n, shape in wanted.items() if unet.tensors.get(prefix + n, _NONE).shape != tuple(shape)]
            if not wrong:
                return prefix
            got = unet.tensors.get(prefix + wrong[0], "none")
            raise CheckpointError(
                f"Expected the UNet that the head started from in {shown(unet.path.name)}, got one that differs in "
                f"{len(wrong)} of {len(wanted)} shapes, first {wrong[0]} ({got}). Give the head's own model."
            )
    raise CheckpointError(
        f"Expected a Stable Diffusion checkpoint with the LDM's names in {shown(unet.path.name)}, got "
        f"{seems_to_be(unet.tensors)}."
    )


_NONE = TensorInfo(torch.float32, ())


def _ranks(
    config: HeadConfig, dtype: torch.dtype, spectra: Mapping[str, Tensor], rank: int | None, megabytes: float | None
) -> dict[str, int]:
    """Each matrix's rank: `rank`, no more than it can have; or what fits into `megabytes`, most energy a byte first."""
    if rank is not None:
        return {name: min(rank, len(values)) for name, values in spectra.items()}
    assert megabytes is not None
    fixed = sum(map(nbytes, layout_of(meta_head(config)).values())) * dtype.itemsize // 4
    left = megabytes * MEGABYTE - fixed
    if left < 0:
        raise InputError(
            f"Expected at least {fixed / MEGABYTE:.1f} MB, which all but products takes, got {megabytes:g} MB."
        )
    layers = layers_of(config.unet)
    costs = {name: _price(layers[name]["weight"], dtype) for name in spectra}
    offers = [(float(v) / costs[name], name) for name, values in spectra.items() for v in values]
    ranks = dict.fromkeys(spectra, 0)
    for _, name in sorted(offers, key=lambda offer: -offer[0]):  # each spectrum falls, so ranks are filled from 1 on
        if costs[name] <= left:
            ranks[name] += 1
            left -= costs[name]
    return ranks


def _price(weight: Sequence[int], dtype: torch.dtype) -> int:
    """Bytes of one rank more."""
    inner = 1
    for side in weight[1:]:
        inner *= side
    return (weight[0] + inner) * dtype.itemsize


def _energies(spectra: Mapping[str, Tensor], ranks: Mapping[str, int]) -> dict[str, float]:
    """By block: the share of the squared differences that is kept."""
    groups: dict[str, list[str]] = {}
    for name in spectra:
        stage, index, *_ = name.split(".")
        group = f"{stage.removesuffix('_blocks')}.{index}" if stage.endswith("_blocks") else stage.split("_")[0]
        groups.setdefault(group, []).append(name)
    return {group: round(_share(spectra, ranks, names), 6) for group, names in groups.items()}


def _share(spectra: Mapping[str, Tensor], ranks: Mapping[str, int], names: Sequence[str]) -> float:
    whole = sum(float(spectra[name].sum()) for name in names)
    kept = sum(float(spectra[name][: ranks[name]].sum()) for name in names)
    return kept / whole if whole else 1.0
