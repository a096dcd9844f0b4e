"""Attention of transformers that hold text and picture in one sequence, seen as their host hands it to a kernel.

A host of such models passes every attention call through `transformer_options["optimized_attention_override"]`
(ComfyUI's `wrap_attn`), with queries and keys after their norms and rotary embeddings. A block's forward pre-hook puts
a reader around whatever stands under that key, for the time of that block alone: so a call belongs to the block that is
running, and what other packs put there still runs. Imports contracts, errors, shapes, taps and this folder's
concepts and reading.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import operator
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..contracts import TapSpec
from ..errors import TapError
from ..shapes import Float, Size, tap_size
from ..taps import exclusively, watching
from .concepts import Run, called_apart
from .reading import MOST_SCORES, Attention, mean_softmax

OVERRIDE, OPTIONS = "optimized_attention_override", "transformer_options"
PICTURES = ("image_cond", "time_dim_replace", "ref_patches")  # what networks of some relatives are given a picture by


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a transformer keeps its blocks, and how their attention holds text and picture.

    `stages`: names of lists of blocks by the stage that their names begin with ("joint.3"); blocks that see the text
    alone, or the picture alone, are in none of them. `inner`: the block's module that attends from picture to text,
    "" where the block has one attention for both. `patch`: the side of a patch in latent pixels, or the attribute that
    holds it. `multiple`: the attribute that holds what rows of text are padded to a multiple of, "" where they are not.
    `registers`: the parameter whose rows stand before the text. `glyphs`: what the network is given further rows by
    that stand after the text. `twice`: what it is given b layers n c by, whose n rows are text too and stand twice
    after the others. `references`: whether reference pictures may follow the picture; elsewhere a pass with
    them is not read. `handed`: the argument by which a block is given its attention function, where it is given no
    options. `function`: the name by which the blocks' own code calls its attention, where it hands no options
    on (`attention.joint_named`).
    """

    stages: Mapping[str, str]
    patch: str | int = "patch_size"
    inner: str = ""
    text_first: bool = True
    multiple: str = ""
    registers: str = ""
    glyphs: str = ""
    twice: str = ""
    references: bool = False
    handed: str = ""
    function: str = ""

    def modules(self, network: Any) -> dict[str, nn.Module]:
        """By block name, the modules whose attention is read, in the order in which they run."""
        found = {}
        for stage, name in self.stages.items():
            for i, block in enumerate(operator.attrgetter(name)(network)):
                found[f"{stage}.{i}"] = getattr(block, self.inner) if self.inner else block
        return found

    def side(self, network: Any) -> int:
        """Of a patch, in latent pixels."""
        side = self.patch if isinstance(self.patch, int) else getattr(network, self.patch)
        return side if isinstance(side, int) else int(side[-1])  # of a patch of several frames, height and width last

    def spans(self, network: Any, text: int, picture: int, glyphs: int = 0) -> tuple[slice, slice]:
        """Where in the sequence the rows of text and those of the picture are."""
        first = next((operator.attrgetter(name)(network)[0] for name in self.stages.values()), None)
        if not self.text_first or getattr(first, "flipped_img_txt", False):  # so Hunyuan Image in ComfyUI 0.3.64
            return slice(picture, picture + text), slice(0, picture)
        start = getattr(network, self.registers).shape[1] if self.registers else 0
        multiple = int((self.multiple and getattr(network, self.multiple, None)) or 1)  # ComfyUI 0.3.64 has none
        end = start + -(-text // multiple) * multiple + glyphs
        return slice(start, start + text), slice(end, end + picture)


class Call(NamedTuple):
    """One attention call: queries and keys b heads n c, a mask or None, and what scores are multiplied with."""

    query: Float[Tensor, "b heads n c"]
    key: Float[Tensor, "b heads m c"]
    mask: Tensor | None
    scale: float

    @classmethod
    def of(cls, choose: Callable[[Tensor], Tensor], args: Sequence[Any], named: Mapping[str, Any]) -> Call:
        """From the arguments that a host gives a kernel: q, k, v, heads, mask; b n (heads c) or b heads n c.

        `choose` gives the rows b that are read.
        """
        heads = args[3] if len(args) > 3 else named["heads"]
        mask = args[4] if len(args) > 4 else named.get("mask")
        batch = len(args[0])
        query, key = (_by_head(choose(part.detach()), heads) for part in args[:2])
        if key.shape[1] != query.shape[1]:  # grouped queries
            key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        if mask is not None:
            mask = mask[(None,) * (4 - mask.ndim)] if mask.ndim < 3 else mask.unflatten(0, (-1, *[1] * (4 - mask.ndim)))
            mask = choose(mask) if len(mask) == batch else mask
        return cls(query, key, mask, float(named.get("scale") or query.shape[-1] ** -0.5))


@torch.no_grad()
def joint_probabilities(
    call: Call,
    text: slice,
    picture: slice,
    with_self: bool = False,
    most_scores: int = MOST_SCORES,
    skipped: int = 0,
) -> tuple[Float[Tensor, "b p t"], Float[Tensor, "b p p"] | None]:
    """How much each row of the picture attends to each of the text, and with `with_self` to each of the picture.

    softmax over *all* keys in float32, averaged over heads: no more than `most_scores` scores are held at once, and
    what is kept is one head's size. Where text and picture are all, the two sum to 1 over keys. Queries may lack the
    first `skipped` rows, which a network keeps keys of.
    """
    asking = slice(picture.start - skipped, picture.stop - skipped)

    def masked(scores: Tensor, heads: slice, rows: slice) -> Tensor:
        return scores if call.mask is None else _masked(scores, call.mask, heads, rows, asking.start)

    query, columns = call.query[:, :, asking], slice(None) if with_self else text
    mean = mean_softmax(query, call.key, call.scale, most_scores, columns, masked)
    return (mean[..., text], mean[..., picture]) if with_self else (mean, None)


@contextlib.contextmanager
def reading_joint(
    layout: Layout,
    network: nn.Module,
    cross_blocks: Sequence[str],
    self_blocks: Sequence[str],
    specs: Mapping[str, TapSpec],
    latent_size: Size,
    end_early: bool = True,
    choose: Callable[[Tensor], Tensor] = lambda rows: rows,
    reader: type[Reader] | None = None,
    concepts: int = 0,
) -> Iterator[Attention]:
    """As `reading_attention`, of a transformer with `layout`; the text has as many rows as the network is given.

    `reader` knows where its host's attention is seen; None is ComfyUI's. With `concepts` the last so many rows of the
    text are concepts (`attention.concepts`), which nothing reads in this pass, and the maps are theirs.
    Raises TapError, or without `end_early` leaves out, what a pass shows otherwise than `layout` says: latents of
    another size or of several frames, reference pictures where they may not be, attention that never reaches the key.
    """
    known = layout.modules(network)
    missing = [block for block in (*cross_blocks, *self_blocks) if block not in known]
    if missing:
        raise TapError(f"Expected blocks of {', '.join(known)}, got {', '.join(missing)}. Use the head's own model.")
    names = [block for block in known if block in {*cross_blocks, *self_blocks}]
    seeing = (reader or Reader)(layout, network, frozenset(self_blocks), latent_size, choose, end_early, concepts)
    entered = list(known) if concepts else names  # none of the blocks before may read a concept
    found = Attention({}, {})

    def read(name: str, output: Any) -> None:
        cross, own = seeing.taken(name)
        if cross is not None and name in cross_blocks:
            found.cross[name] = cross
        if own is not None and name in self_blocks:
            found.self_attention[name] = own

    with exclusively(network), contextlib.ExitStack() as hooks:
        for module, hook in ((network, seeing.start), *((known[name], seeing.around(name)) for name in entered)):
            handle = module.register_forward_pre_hook(hook, with_kwargs=True)
            hooks.callback(handle.remove)
        hooks.enter_context(seeing.listening())
        with watching({name: known[name] for name in names}, read, end_early):
            yield found


class Reader:
    """The state of one pass: how its text and picture lie, and what its blocks' attention showed."""

    unseen = "no attention call reached transformer_options: this host may hand it on otherwise"

    def __init__(
        self,
        layout: Layout,
        network: nn.Module,
        self_blocks: frozenset[str],
        size: Size,
        choose: Callable[[Tensor], Tensor],
        strict: bool,
        concepts: int = 0,
    ) -> None:
        self.layout, self.network, self.self_blocks = layout, network, self_blocks
        self.size, self.choose, self.strict, self.concepts = size, choose, strict, concepts
        self.side = layout.side(network)
        self.grid = tap_size(size, self.side)
        self.thread = threading.get_ident()
        self.text, self.glyphs, self.fault = 0, 0, "the network itself did not run"
        self.maps: dict[str, tuple[Tensor, Tensor | None]] = {}

    def listening(self) -> contextlib.AbstractContextManager[Any]:
        """What must be in force while the network runs, beside the hooks: nothing in ComfyUI."""
        return contextlib.nullcontext()

    def start(self, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Before the network runs: looks at its latents and its text."""
        if threading.get_ident() != self.thread:
            return
        latents = args[0] if args else named["x"]
        context = named["context"] if "context" in named else args[2]
        self.maps.clear()
        glyphs = named.get(self.layout.glyphs)
        if context is None:  # Ideogram 4 makes its pass without a text so
            self.fault = "a pass with a text was expected"
            return
        self.text, self.glyphs, self.fault = context.shape[1], 0 if glyphs is None else glyphs.shape[1], ""
        if self.layout.twice:
            self.text += 2 * named[self.layout.twice].shape[2]
        if tuple(latents.shape[-2:]) != self.size:
            self.fault = f"latents of {self.size} were expected, and {tuple(latents.shape[-2:])} came"
        elif latents.ndim == 5 and latents.shape[2] != 1:
            self.fault = f"one frame was expected, and {latents.shape[2]} came"
        elif any(named.get(name) is not None for name in PICTURES) or (
            not self.layout.references and named.get("ref_latents")
        ):
            self.fault = "a pass without reference pictures was expected"

    def around(self, name: str) -> Callable[..., Any]:
        """A pre-hook that has the attention of the block `name` looked at."""

        def enter(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
            options, handed = named.get(OPTIONS), named.get(self.layout.handed)
            if threading.get_ident() != self.thread or self.fault:
                return None
            self.maps.pop(name, None)
            if handed is not None:
                return args, {**named, self.layout.handed: self._looking(name, handed)}
            if options is None:
                return None
            there = options.get(OVERRIDE)

            def override(kernel: Callable[..., Tensor], *args: Any, **named: Any) -> Tensor:
                return self.attended(name, kernel if there is None else functools.partial(there, kernel), args, named)

            return args, {**named, OPTIONS: {**options, OVERRIDE: override}}

        return enter

    def _looking(self, name: str, kernel: Run) -> Run:
        """`kernel`, whose calls are the block `name`'s."""
        return lambda *args, **named: self.attended(name, kernel, args, named)

    def attended(self, name: str, run: Run, args: Sequence[Any], named: Mapping[str, Any]) -> Tensor:
        """The output of an attention call in the block `name`, whose maps are kept."""
        if self.concepts:
            text, picture = self.layout.spans(self.network, self.text, self.grid[0] * self.grid[1])
            concepts = slice(text.stop - self.concepts, text.stop)
            output, maps = called_apart(run, args, named, concepts, picture)
            self.maps[name] = self._on_grid(self.choose(maps)), None
            return output
        if name not in self.maps:
            self.look(name, args, named)
        return run(*args, **named)

    def look(self, name: str, args: Sequence[Any], named: Mapping[str, Any]) -> None:
        """Keeps the maps of an attention call, if it is the one of text and picture."""
        picture = self.grid[0] * self.grid[1]
        with_self, skipped = name in self.self_blocks, 0
        if self.layout.inner:
            text, rows = slice(0, args[1].shape[-2]), slice(0, picture)
            if args[0].shape[-2] != picture:
                return
        else:
            text, rows = self.layout.spans(self.network, self.text, picture, self.glyphs)
            skipped = args[1].shape[-2] - args[0].shape[-2]
            if args[1].shape[-2] < max(text.stop, rows.stop) or (skipped and not self.layout.handed):
                return  # the picture's own, as SD 3.5 medium has a second of in its block
        cross, own = joint_probabilities(Call.of(self.choose, args, named), text, rows, with_self, skipped=skipped)
        self.maps[name] = self._on_grid(cross), own

    def taken(self, name: str) -> tuple[Tensor | None, Tensor | None]:
        """What the block `name`, which has run, showed: b t h w, and b (h w) (h w) where it was asked for."""
        if name in self.maps:
            return self.maps.pop(name)
        if self.strict:
            fault = self.fault or self.unseen
            raise TapError(f"Expected attention of text and picture in {name}, got none: {fault}.")
        return None, None

    def _on_grid(self, cross: Float[Tensor, "b p t"]) -> Float[Tensor, "b t h w"]:
        """Maps on the grid of patches, without what the network padded latents with to whole patches."""
        maps = rearrange(cross, "b (h w) t -> b t h w", h=self.grid[0])
        if not any(side % self.side for side in self.size):
            return maps
        whole = F.interpolate(maps, scale_factor=self.side, mode="bilinear", align_corners=False)
        return F.interpolate(whole[..., : self.size[0], : self.size[1]], size=self.grid, mode="area")


def _by_head(part: Tensor, heads: int) -> Float[Tensor, "b heads n c"]:
    return part if part.ndim == 4 else rearrange(part, "b n (heads c) -> b heads n c", heads=heads)


def _masked(
    scores: Float[Tensor, "b heads r m"], mask: Tensor, heads: slice, rows: slice, start: int
) -> Float[Tensor, "b heads r m"]:
    """Scores of some `heads` and `rows`, counted from row `start` on, under a mask that broadcasts: what is True, or a
    number to add."""
    mask = mask if mask.shape[1] == 1 else mask[:, heads]
    part = mask if mask.shape[2] == 1 else mask[:, :, start + rows.start : start + rows.stop]
    return scores.masked_fill(~part, float("-inf")) if part.dtype == torch.bool else scores + part.float()
