"""Concept attention: rows of text that read the picture and are read by nothing, compared with it by what they read.

After Helbling et al., ConceptAttention, arXiv 2502.04320, and its code: beside the prompt a transformer of two streams
is given a row for each concept. In every block these attend to each other and to the picture, while prompt and picture
go on as if they were not there; the scalar product of a concept's attention output with the picture's, softmax over the
concepts, is its map. Two things are ours: a concept of several tokens is the mean of their rows, where the paper takes
the first, and the pooled text stays the prompt's. Imports this folder's prompts and config, contracts and shapes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ..contracts import AttentionHost, Conditioning
from ..shapes import Float
from .config import AttentionConfig
from .prompts import Prompt, background_of, prompts_of, texts_of

Run = Callable[..., Tensor]
"""An attention function: queries, keys, values and a mask in, as its owner takes them, what the queries read out."""


def concepts_of(prompt: Prompt, config: AttentionConfig) -> tuple[str, ...]:
    """The concepts that are asked for beside `prompt`: its phrases, then the background words that it holds."""
    return (*prompt.phrases, *background_of(prompt.phrases, config))


def numbered(prompt: Prompt, config: AttentionConfig) -> Prompt:
    """`prompt` as its concepts have it: a row for each phrase, then one for each background word."""
    count, rows = len(prompt.phrases), range(len(concepts_of(prompt, config)))
    return prompt._replace(
        phrase_tokens=tuple((row,) for row in rows[:count]), background_tokens=tuple((row,) for row in rows[count:])
    )


def with_concepts(
    host: AttentionHost, conditioning: Conditioning, concepts: Sequence[str], config: AttentionConfig
) -> Conditioning:
    """`conditioning` with a row for each concept after those of its text: the mean over the content tokens of the
    concept, which is encoded alone."""
    bare, rows = dataclasses.replace(config, opening="", background=()), []
    for concept in concepts:
        (alone,) = prompts_of([concept], bare, texts_of(host))
        rows.append(host.condition([alone.text]).context[0, list(alone.phrase_tokens[0])].mean(dim=0))
    context = conditioning.context
    more = torch.stack(rows).to(context).expand(len(context), -1, -1)
    return dataclasses.replace(conditioning, context=torch.cat([context, more], dim=1))


def attended_apart(
    run: Run, parts: Sequence[Tensor], mask: Tensor | None, concepts: slice, picture: slice
) -> tuple[Tensor, Float[Tensor, "b p c"]]:
    """The output of an attention call in which nothing reads the rows `concepts`, and the maps of these.

    `parts` are queries, keys and values, b n d or b heads n d; `picture` are rows, too, and all others are the
    prompt's. The output has the rows of the queries in their order. Maps are what b pictures' p rows share among c
    concepts: the softmax over concepts of the scalar products of what both have read, in float32.
    """
    others, seen = (slice(0, concepts.start), slice(concepts.stop, None)), (concepts, picture)
    own = run(*(_rows(part, others) for part in parts), _cut(mask, others, others))
    query, key, value = _rows(parts[0], (concepts,)), _rows(parts[1], seen), _rows(parts[2], seen)
    read = run(query, key, value, _cut(mask, (concepts,), seen))
    output = torch.cat([own[..., : concepts.start, :], read, own[..., concepts.start :, :]], dim=-2)
    shown, asked = (_flat(output[..., rows, :]).float() for rows in (picture, concepts))
    return output, (shown @ asked.transpose(1, 2)).softmax(dim=-1)


def _rows(part: Tensor, rows: Sequence[slice]) -> Tensor:
    return torch.cat([part[..., some, :] for some in rows], dim=-2)


def _flat(output: Tensor) -> Float[Tensor, "b n _"]:
    return output if output.ndim == 3 else rearrange(output, "b heads n c -> b n (heads c)")


def _cut(mask: Tensor | None, rows: Sequence[slice], columns: Sequence[slice]) -> Tensor | None:
    """A mask that broadcasts, of some rows and columns."""
    if mask is None:
        return None
    kept = mask if mask.shape[-1] == 1 else _rows(mask.mT, columns).mT
    return kept if kept.shape[-2] == 1 else _rows(kept, rows)


def called_apart(
    run: Run, args: Sequence[Any], named: Mapping[str, Any], concepts: slice, picture: slice
) -> tuple[Tensor, Float[Tensor, "b p c"]]:
    """As `attended_apart`, of a host's call q, k, v, heads, mask and more."""
    rest = list(args[3:])
    mask = rest[1] if len(rest) > 1 else named.get("mask")

    def again(query: Tensor, key: Tensor, value: Tensor, masked: Tensor | None) -> Tensor:
        if len(rest) > 1:
            return run(query, key, value, rest[0], masked, *rest[2:], **named)
        return run(query, key, value, *rest, **{**named, "mask": masked} if "mask" in named else named)

    return attended_apart(again, args[:3], mask, concepts, picture)
