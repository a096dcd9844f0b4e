"""What the attention head reads of every family of transformers, against ComfyUI's own classes. Run by its interpreter.

`python checks.py FOLDER OUT FAMILY…`: FOLDER is ComfyUI. Writes JSON: by family, figures that test_families.py judges.
Queries and keys of the explicit computation are recorded where the classes call their attention functions, which is
another place than the library looks at.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import families  # noqa: E402

SIZE = (12, 20)  # of the latents, not square; in patches of two
SIDES = {
    **dict.fromkeys(("flux2", "hunyuan_image", "ideogram4", "lens", "ernie"), 1),
    **dict.fromkeys(("chroma_radiance", "pixeldit", "zimage_pixel"), 16),
    "hidream_o1": 32,
}  # of a patch, where it is not 2
CROSS = ("anima", "cosmos_predict2", "wan2.1", "wan2.2")  # true cross-attention, to 512 rows
PIXART = ("pixart_alpha", "pixart_sigma")
LARGER = dict.fromkeys(PIXART, (28, 40))  # latents with sides below a mean of 32 have its class divide by zero
INNER = {**dict.fromkeys(CROSS, "cross_attn"), **dict.fromkeys(("kandinsky5", "kandinsky5_image"), "cross_attention")}
HYDIT = ("hydit", "hydit1")
INNER |= {**dict.fromkeys(PIXART, "cross_attn"), **dict.fromkeys(HYDIT, "attn2")}
CODE = {**dict.fromkeys(PIXART, "pixart.blocks"), **dict.fromkeys(HYDIT, "hydit.attn_layers"), "ernie": "ernie.model"}
CODE = {name: f"comfy.ldm.{code}" for name, code in CODE.items()}  # whose function they call, and hand no options
FRAMES = ("qwen", "krea2", *CROSS, "kandinsky5")  # whose latents have a dimension for frames
PROMPT = "a photo of a red dog and the green grass"
BRACKETS = "a dog (brown) and grass"
WORDS = {"dog": "dog", "grass": "grass"}


@contextlib.contextmanager
def intercepting(blocks: list[Any], inner: str, instead: Any) -> Iterator[None]:
    """In the place of every attention call inside a block: `instead(number, original, q, k, v, heads, …)`."""
    running: list[int] = []
    patched, handles = [], []

    def interceptor(original: Any) -> Any:
        def call(q: Any, k: Any, v: Any, heads: int, *args: Any, **named: Any) -> Any:
            if running:
                return instead(running[-1], original, q, k, v, heads, *args, **named)
            return original(q, k, v, heads, *args, **named)

        return call

    for name, module in list(sys.modules.items()):
        if name.startswith("comfy.ldm.") and name != "comfy.ldm.modules.attention":
            for function in ("optimized_attention", "optimized_attention_masked"):
                if hasattr(module, function):
                    patched.append((module, function, getattr(module, function)))
                    setattr(module, function, interceptor(getattr(module, function)))
    for i, block in enumerate(blocks):
        part = getattr(block, inner) if inner else block
        handles.append(part.register_forward_pre_hook(lambda *_, i=i: running.append(i)))
        handles.append(part.register_forward_hook(lambda *_: running.clear()))
    try:
        yield
    finally:
        for module, function, original in patched:
            setattr(module, function, original)
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def recording(network: Any, blocks: list[Any], inner: str) -> Iterator[dict[int, list[Any]]]:
    """By number of block, queries and keys b heads n c and the mask of every attention call inside it, in float64."""
    seen: dict[int, list[Any]] = {}

    def record(block: int, original: Any, q: Any, k: Any, v: Any, heads: int, *args: Any, **named: Any) -> Any:
        split = [part if part.ndim == 4 else part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (q, k)]
        mask = args[0] if args else named.get("mask")
        seen.setdefault(block, []).append((*(part.double().clone() for part in split), mask))
        return original(q, k, v, heads, *args, **named)

    with intercepting(blocks, inner, record):
        yield seen


def explicit(call: Any, text: slice, picture: slice, keys: slice | None = None) -> torch.Tensor:
    """Head mean of softmax(q k / sqrt c) over all keys, or over `keys` alone: b rows text."""
    q, k, mask = call
    scores = q @ k.transpose(2, 3) * q.shape[3] ** -0.5
    if mask is not None:
        scores = scores + mask.double().unflatten(0, (-1, 1)) if mask.ndim == 3 else scores + mask.double()
    if keys is not None:
        return scores[..., keys].softmax(-1).mean(1)[:, picture]
    return scores.softmax(-1).mean(1)[:, picture, text]


class Case:
    """A family's model and encoder, with what a test knows of it by itself."""

    def __init__(self, name: str) -> None:
        import comfy.supported_models

        from ldznet.hosts.comfyui_joint import host_of

        self.name = name
        self.family = name.partition("+")[0]
        self.model, self.clip = families.model(self.family), families.clip(name)
        self.host: Any = host_of(self.model, self.clip)
        self.network = self.model.model.diffusion_model
        self.blocks = list(self.network.get_submodule(next(iter(self.host.layout.stages.values()))))
        self.inner = INNER.get(name, "")
        self.picture_first = name in ("hidream", "lens", "ernie") or (
            name == "hunyuan_image" and not hasattr(comfy.supported_models, "Flux2")
        )
        self.side = SIDES.get(name, 2)
        self.size = tuple(side * max(1, self.side // 2) for side in LARGER.get(name, SIZE))
        self.grid = (self.size[0] // self.side, self.size[1] // self.side)
        self.pixels = self.grid[0] * self.grid[1]
        generator = torch.Generator("cpu").manual_seed(3)
        self.latents = torch.randn(2, self.host.latent_channels, *self.size, generator=generator, dtype=torch.float32)

    def spans(self, rows: int) -> tuple[slice, slice]:
        """Where text of `rows` rows and picture are: what this test says of each class."""
        if self.inner:
            rows += 256 * (self.name in HYDIT)  # of mT5 after BERT's
            return slice(0, 512 if self.name in CROSS else rows), slice(0, self.pixels)
        if self.picture_first:
            rows += 2 * 128 * (self.name == "hidream")  # rows of T5, and twice those of Llama
            return slice(self.pixels, self.pixels + rows), slice(0, self.pixels)
        first = 8 if self.name == "aura" else 0  # registers
        start = first + (-(-rows // 32) * 32 if self.family.startswith("zimage") else rows)
        return slice(first, first + rows), slice(start, start + self.pixels)

    def conditioning(self, batch: int) -> Any:
        """Of PROMPT, for a batch."""
        from ldznet.attention.head import rescaled
        from ldznet.attention.prompts import Prompt

        return rescaled(self.host.condition([PROMPT]), Prompt(PROMPT, (), (), ()), 1.0, batch)

    def read(self, latents: torch.Tensor, conditioning: Any, **named: Any) -> tuple[Any, dict[int, list[Any]]]:
        """The library's maps of every block, and what was recorded of the same pass."""
        steps = torch.full((len(latents),), 500)
        names = list(self.host.specs)

        def observer(network: Any) -> Any:
            return self.host.reading_attention(network, names, names[-1:], self.host.specs, self.size, **named)

        with recording(self.network, self.blocks, self.inner) as seen:
            found = self.host.observe(latents, steps, conditioning, observer)
        if self.name == "hidream_o1":  # its calls lack the queries of the text: zeros
            seen = {i: [(_all_rows(q, k), k, mask) for q, k, mask in calls] for i, calls in seen.items()}
        return found, seen


def _all_rows(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Queries with zeros for the first rows of keys, which they lack."""
    return torch.nn.functional.pad(query, (0, 0, key.shape[2] - query.shape[2], 0))


def joint_call(calls: list[Any]) -> Any:
    """The call of text and picture: the first in a block."""
    return calls[0]


def maps(case: Case) -> dict[str, Any]:
    """Maps against the explicit ones, with variants that must differ."""
    conditioning = case.conditioning(2)
    found, seen = case.read(case.latents, conditioning)
    rows = 512 if case.name == "flux2" else conditioning.context.shape[1]
    text, picture = case.spans(rows)
    last = len(case.blocks) - 1

    def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
        if ours.shape != theirs.shape:
            return float("inf")
        return float((ours.double() - theirs).abs().max())

    ours = {i: found.cross[f"joint.{i}"].flatten(2).transpose(1, 2) for i in range(len(case.blocks))}
    result: dict[str, Any] = {
        "blocks": len(ours),
        "calls": [len(seen[i]) for i in range(len(case.blocks))],
        "error": max(distance(ours[i], explicit(joint_call(seen[i]), text, picture)) for i in ours),
        "largest": float(ours[0].max()),
    }
    if not case.inner:
        own = found.self_attention[f"joint.{last}"]
        result["self"] = distance(own, explicit(joint_call(seen[last]), picture, picture))
    call = joint_call(seen[0])
    wrong = {"another block": explicit(joint_call(seen[1]), text, picture)}
    wrong["softmax over the text alone"] = explicit(call, text, picture, text)
    if not case.inner:
        n = call[0].shape[2]
        words = text.stop - text.start
        swapped = slice(case.pixels, case.pixels + words), slice(0, case.pixels)
        if case.picture_first:
            swapped = slice(0, words), slice(words, words + case.pixels)
        wrong["the other order"] = explicit(call, *swapped)
        if case.name == "aura":
            wrong["registers forgotten"] = explicit(call, slice(0, rows), slice(rows, rows + case.pixels))
        if case.name == "longcat":  # 512 rows, most of which are padding
            written, (q, k, mask) = len(PROMPT.split()), call
            shown = explicit((q, torch.cat([k[:, :, :written], k[:, :, rows:]], 2), mask), slice(0, written), picture)
            wrong["caption padding left out"] = torch.nn.functional.pad(shown, (0, rows - written))
        if text.stop < picture.start:
            wrong["caption padding counted"] = explicit(call, slice(0, picture.start), picture)
            shifted = slice(text.stop, text.stop + case.pixels)
            wrong["caption padding forgotten"] = explicit(call, text, shifted)
        if picture.stop not in (n, text.start):
            wrong["picture padding kept"] = explicit(call, text, slice(picture.start, n))
    else:
        wrong = {"another block": wrong["another block"]}
        if case.name in HYDIT:
            for text_of, keys in (("BERT's", slice(0, 77)), ("mT5's", slice(77, 333))):
                shown = torch.nn.functional.pad(explicit(call, text, picture, keys), (keys.start, 333 - keys.stop))
                wrong[f"softmax over {text_of} rows alone"] = shown
        elif case.name not in CROSS:  # one row, of a template or T5's end, stands after the words
            words = explicit(call, slice(0, rows - 1), picture, slice(0, rows - 1))
            wrong["softmax over the words alone"] = torch.nn.functional.pad(words, (0, 1))
    result["wrong"] = {name: distance(ours[0], other) for name, other in wrong.items()}
    with no_rotary():
        if case.name in HYDIT or (not case.inner and case.family not in ("sd3", "aura")):
            _, without = case.read(case.latents, conditioning)
            if not torch.equal(joint_call(without[0])[0], call[0]):  # ComfyUI 0.3.64 has it inside other functions
                result["wrong"]["rotary left out"] = distance(ours[0], explicit(joint_call(without[0]), text, picture))
    return result


@contextlib.contextmanager
def no_rotary() -> Iterator[None]:
    """Rotary embeddings that leave queries and keys alone."""
    changed = []
    replacements = {"apply_rope": lambda q, k, *_, **named: (q, k), "apply_rope1": lambda x, pe: x}
    replacements["apply_rotary_emb"] = lambda x, *more, **_: (x, more[0]) if len(more) > 1 else x
    replacements["apply_rope_split_half"] = replacements["apply_rope"]  # of ERNIE-Image
    kernels = getattr(sys.modules.get("comfy.quant_ops"), "ck", None)
    for name, module in [*sys.modules.items(), ("comfy.ldm.kernels", kernels)]:
        if name.startswith(("comfy.ldm.", "comfy.text_encoders.llama")):
            for function, identity in replacements.items():
                if hasattr(module, function):
                    changed.append((module, function, getattr(module, function)))
                    setattr(module, function, identity)
    try:
        yield
    finally:
        for module, function, original in changed:
            setattr(module, function, original)


def places(case: Case) -> dict[str, Any]:
    """Which keys of the first block change with a row of the text, and with a patch of the picture."""
    conditioning, names = case.conditioning(1), ["context_refiner", "noise_refiner"]
    names += ["double_layers", "text_transformer_blocks", "double_stream_layers"]
    owners = {"krea2": "txtfusion", "hunyuan_image": "txt_in.individual_token_refiner"}
    inside = {"krea2": "refiner_blocks", "hunyuan_image": "blocks"}
    owner = case.network.get_submodule(owners.get(case.name, ""))
    names = [inside.get(case.name, ""), *names]
    kept = {name: getattr(owner, name) for name in names if hasattr(owner, name)}
    for name in kept:  # which mix rows with each other
        setattr(owner, name, torch.nn.ModuleList())
    if case.inner:
        for block in case.blocks:
            names = ("self_attn.o", "self_attn.output_proj", "self_attention.out_layer", "attn.proj", "attn1.out_proj")
            next(part for name, part in block.named_modules() if name in names).weight.zero_()
    try:
        latents = case.latents[:1]
        _, before = case.read(latents, conditioning)
        row, at = 5 if case.name in HYDIT else conditioning.context.shape[1] - 3, (2, 5)
        changed = conditioning.context.clone()
        changed[:, row] += 5 * torch.randn(changed.shape[2], generator=torch.Generator("cpu").manual_seed(1))
        after = dataclasses.replace(conditioning, context=changed)
        if case.name == "hidream_o1":
            ids = conditioning.extras["text_input_ids"].clone()
            ids[:, row] += 1
            after = dataclasses.replace(conditioning, extras={**conditioning.extras, "text_input_ids": ids})
        if case.name == "anima":
            weights = conditioning.extras["t5xxl_weights"].clone()
            weights[row] *= 3
            after = dataclasses.replace(conditioning, extras={**conditioning.extras, "t5xxl_weights": weights})
        if case.name in HYDIT:
            second = conditioning.extras["conditioning_mt5xl"].clone()
            second[:, 6] *= -5
            after = dataclasses.replace(after, extras={**conditioning.extras, "conditioning_mt5xl": second})
        _, text = case.read(latents, after)
        patched = latents.clone()
        patched[:, :, at[0] * case.side, at[1] * case.side] += 5
        _, picture = case.read(patched, conditioning)
    finally:
        for name, modules in kept.items():
            setattr(owner, name, modules)

    def changed_rows(after: Any, part: int) -> list[int]:
        difference = (joint_call(after[0])[part] - joint_call(before[0])[part]).abs().amax(dim=(0, 1, 3))
        return torch.nonzero(difference > 1e-9).flatten().tolist()

    padded = conditioning.context.shape[1]
    offset = max(0, 512 - padded) if case.name == "flux2" else 0
    spans = case.spans(padded + offset)
    offset += spans[0].start
    patch = spans[1].start + at[0] * case.grid[1] + at[1]
    part = 0 if case.inner else 1
    expected = [row + offset, *[77 + 6] * (case.name in HYDIT)]
    return {"text": [changed_rows(text, 1), expected], "picture": [changed_rows(picture, part), [patch]]}


def words(case: Case) -> dict[str, Any]:
    """The rows of the words of PROMPT, against the rows of the encoders' outputs that change most with the word."""
    from ldznet.attention.prompts import prompts_of, spoken_in
    from ldznet.errors import HostError
    from ldznet.hosts.comfyui import typed

    texts = case.host.texts
    rows = texts.rows(PROMPT)
    prompt = spoken_in(rows, list(WORDS), texts.spellings)
    known = typed(case.clip, PROMPT)
    again = spoken_in(texts.placed(known.tokens, len(rows[0])), list(WORDS), texts.spellings)
    found = dict(zip(prompt.phrases, map(list, prompt.phrase_tokens), strict=True))
    (made,) = prompts_of(["the dog", "a green tree"], config_of(case), texts)
    result: dict[str, Any] = {"found": found, "same": again == prompt, "made": [len(t) for t in made.phrase_tokens]}
    (ids, *_), spelling, bracketed = texts.rows(BRACKETS), texts.spellings[0], BRACKETS.split()
    literal = [token for i, word in enumerate(bracketed) for token in spelling.word(word, i == 0)]
    result["brackets"] = [i for i in ids if i >= 0] == literal
    try:
        prompts_of(['a sign that says "go on" and more'], config_of(case), texts)
    except HostError as error:
        result["quoted"] = str(error)
    before, changes = network_text(case, PROMPT), {}
    for word in WORDS:
        after = network_text(case, PROMPT.replace(word, "cat"))
        difference = (after - before).abs().sum(dim=(0, 2))
        changes[word] = [first_of(part, start) for start, part in parts_of(case, difference)]
    return {**result, "changed": changes}


def parts_of(case: Case, difference: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
    """Each encoder's stretch of rows."""
    starts = {"sd3+t5": [0, 77], "hidream": [0, 128, 256], **{key: [0, 77] for key in HYDIT}}.get(case.name, [0])
    return [(i, difference[i:j]) for i, j in zip(starts, [*starts[1:], None], strict=True)]


def first_of(difference: torch.Tensor, start: int) -> int:
    """The row that changes most, as a word's own does where every row sees every other, or the first that does."""
    total = difference / difference.max()
    first = int(torch.nonzero(total > 1e-5)[0])
    most = int(total.argmax())
    return start + (most if total[:most].min() > 1e-5 else first)


def network_text(case: Case, text: str) -> torch.Tensor:
    """The rows of text that the first block is given: T5's embeddings for Anima, T5's and twice Llama's for HiDream,
    else the context."""
    encoded = case.host.condition([text])
    conds = case.host._conds(case.latents[:1, :, None] if case.name in FRAMES else case.latents[:1], encoded)
    if case.name == "hidream":
        llama = conds["encoder_hidden_states_llama3"].cond
        return torch.cat([conds["c_crossattn"].cond, llama[:, 2], llama[:, 0]], dim=1)
    if case.name in HYDIT:
        words = encoded.extras["attention_mask"][:, :, None] * conds["c_crossattn"].cond
        return torch.cat([words, conds["encoder_hidden_states_t5"].cond], dim=1)
    if case.name != "anima":
        return conds["c_crossattn"].cond
    return case.network.preprocess_text_embeds(encoded.context, encoded.extras["t5xxl_ids"][None])


def config_of(case: Case) -> Any:
    """The head's constants for the case."""
    from ldznet.attention.config import config_for

    return config_for(case.host)


def kept_keys(case: Case) -> dict[str, Any]:
    """Two passes of one prompt, of which the second is made with keys of the text that the network kept."""
    conditioning, rows = case.conditioning(1), []
    handle = case.blocks[0].register_forward_pre_hook(
        lambda _, args, named: rows.append(named["x"].shape[1]), with_kwargs=True
    )
    case.network.clear_kv_cache()
    try:
        found = [case.read(case.latents[:1], conditioning, end_early=False) for _ in range(2)]
    finally:
        handle.remove()
        case.network.clear_kv_cache()
    text, picture = case.spans(conditioning.context.shape[1])
    ours = [maps.cross["joint.1"].flatten(2).mT for maps, _ in found]
    errors = [
        float((maps - explicit(joint_call(seen[1]), text, picture)).abs().max())
        for maps, (_, seen) in zip(ours, found, strict=True)
    ]
    return {"rows": rows, "errors": errors, "differ": float((ours[0] - ours[1]).abs().max())}


def references(case: Case) -> dict[str, Any]:
    """With a reference picture after the picture: maps of the picture alone, softmax over all keys."""
    conditioning = case.conditioning(1)
    steps, names = torch.full((1,), 500), list(case.host.specs)
    reference = torch.randn(1, case.host.latent_channels, 8, 8, generator=torch.Generator("cpu").manual_seed(9))
    reference = reference[:, :, None] if case.name == "qwen" else reference
    original = case.model.model.extra_conds

    def with_reference(**named: Any) -> Any:
        return original(**named, reference_latents=[reference])

    def observer(network: Any) -> Any:
        return case.host.reading_attention(network, names, (), case.host.specs, case.size)

    case.model.model.extra_conds = with_reference
    try:
        with recording(case.network, case.blocks, case.inner) as seen:
            found = case.host.observe(case.latents[:1], steps, conditioning, observer)
    finally:
        del case.model.model.extra_conds
    text, picture = case.spans(512 if case.name == "flux2" else conditioning.context.shape[1])
    ours = found.cross["joint.0"].flatten(2).transpose(1, 2)
    call = joint_call(seen[0])
    kept = explicit(call, text, slice(picture.start, call[0].shape[2]))
    return {
        "error": float((ours - explicit(call, text, picture)).abs().max()),
        "rows": [ours.shape[1], kept.shape[1]],
    }


def concepts(case: Case) -> dict[str, Any]:
    """Concept attention against two passes without it: of the prompt, and of the concepts as if they were the prompt,
    in which the picture's keys and values are those of the first."""
    from ldznet.attention.concepts import with_concepts

    names, prompt = ["dog", "grass", "sky"], case.conditioning(2)
    both = with_concepts(case.host, prompt, names, config_of(case))
    alone = dataclasses.replace(both, context=both.context[:, -len(names) :])
    steps, ours = torch.full((2,), 500), case.read(case.latents, both, concepts=len(names))[0].cross
    pictures: dict[int, tuple[Any, ...]] = {}

    def passed(conditioning: Any, instead: Any, observer: Any = contextlib.nullcontext) -> dict[int, Any]:
        read: dict[int, Any] = {}

        def call(block: int, original: Any, q: Any, k: Any, v: Any, *args: Any, **named: Any) -> Any:
            k, v = instead(block, k, v)
            read[block] = original(q, k, v, *args, **named)
            return read[block].clone()

        with intercepting(case.blocks, case.inner, call):
            case.host.observe(case.latents, steps, conditioning, observer)
        return read

    def keep(block: int, k: Any, v: Any) -> tuple[Any, Any]:
        pictures[block] = tuple(part[:, :, -case.pixels :].clone() for part in (k, v))
        return k, v

    def replay(block: int, k: Any, v: Any) -> tuple[Any, Any]:
        parts = zip((k, v), pictures[block], strict=True)
        return tuple(torch.cat([part[:, :, : -case.pixels], kept], dim=2) for part, kept in parts)

    def beside(network: Any) -> Any:
        return case.host.reading_attention(
            network, list(case.host.specs), (), case.host.specs, case.size, end_early=False, concepts=len(names)
        )

    def as_it_is(block: int, k: Any, v: Any) -> tuple[Any, Any]:
        return k, v

    shown = passed(prompt, keep)
    asked, otherwise = passed(alone, replay), passed(alone, as_it_is)
    kept, changed = passed(both, as_it_is, beside), passed(both, as_it_is)
    scores = {i: _picture(case, shown[i]) @ asked[i][:, : len(names)].transpose(1, 2) for i in shown}
    wrong = {i: _picture(case, shown[i]) @ otherwise[i][:, : len(names)].transpose(1, 2) for i in shown}

    def distance(scores: dict[int, Any]) -> float:
        of = [(ours[f"joint.{i}"].flatten(2).mT - scores[i].softmax(-1)).abs().max() for i in scores]
        return float(max(of))

    return {
        "error": distance(scores),
        "scores": float(max(part.abs().max() for part in scores.values())),
        "another picture": distance(wrong),
        "picture": max(float((_picture(case, kept[i]) - _picture(case, shown[i])).abs().max()) for i in shown),
        "read by it": max(float((_picture(case, changed[i]) - _picture(case, shown[i])).abs().max()) for i in shown),
    }


def _picture(case: Case, output: torch.Tensor) -> torch.Tensor:
    """The picture's rows of what a block's attention gives."""
    return output[:, -case.pixels :]


def glyphs(case: Case) -> dict[str, Any]:
    """With rows of a text in quotes, which a second encoder reads, after those of the prompt."""
    conditioning = case.conditioning(1)
    quoted = torch.randn(1, 7, 1472, generator=torch.Generator("cpu").manual_seed(13))
    extras = {**conditioning.extras, "conditioning_byt5small": quoted}
    rows = conditioning.context.shape[1]
    found, seen = case.read(case.latents[:1], dataclasses.replace(conditioning, extras=extras))
    ours, call = found.cross["joint.0"].flatten(2).transpose(1, 2), joint_call(seen[0])
    text, picture = case.spans(rows)
    if case.picture_first:  # then what follows moves nothing
        return {"error": float((ours - explicit(call, text, picture)).abs().max()), "forgotten": 1.0}
    places = [slice(rows + skipped, rows + skipped + case.pixels) for skipped in (7, 0)]
    errors = [float((ours - explicit(call, text, place)).abs().max()) for place in places]
    return dict(zip(("error", "forgotten"), errors, strict=True))


def two_networks(case: Case) -> dict[str, Any]:
    """One step of ComfyUI's guider of two networks, whose second is given no text: pictures with and without a
    capture, and what is kept beside what a guider of one network leaves."""
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import DualModelGuider

    from ldznet.hosts.comfyui import capturing
    from ldznet.predictor import Predictor

    def sampled(guider: Any) -> torch.Tensor:
        sampler, sigmas = comfy.samplers.sampler_object("euler"), torch.tensor([1.0, 0.0])
        return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=1)

    noise = torch.randn(1, case.host.latent_channels, *case.size, generator=torch.Generator("cpu").manual_seed(17))
    positive = case.clip.encode_from_tokens_scheduled(case.clip.tokenize(PROMPT))
    captured, capture = capturing(case.host, Predictor(case.host, attention_head()).config)
    other = families.model(case.family)
    means: list[dict[str, Any]] = []
    with torch.inference_mode():
        pictures = [sampled(DualModelGuider.execute(case.model, positive, 3.0, other)[0])]
        for second in (other, None):
            pictures.append(sampled(DualModelGuider.execute(captured, positive, 3.0, second)[0]))
            means += [kept for run in capture.done.values() for kept in run.means.values()]
    first, alone = means
    return {
        "bit_equal": bool(torch.equal(pictures[0], pictures[1])),
        "same": {name: bool(torch.equal(first[name], alone[name])) for name in alone},
    }


def attention_head() -> Any:
    """The head without a download."""
    from ldznet import attention

    return attention.AttentionHead()


def sampling(case: Case) -> dict[str, Any]:
    """A sampler's picture with and without a capture and a second pack's override, and what the capture says."""
    import comfy.sample
    from comfy.patcher_extension import WrappersMP

    from ldznet.hosts.comfyui import capturing, model_space, typed
    from ldznet.hosts.comfyui_capture import run_of, words_of
    from ldznet.predictor import Predictor

    predictor = Predictor(case.host, attention_head())
    captured, capture = capturing(case.host, predictor.config)
    calls, left = {"before": 0, "inside": 0}, True

    def other(key: str, there: Any = None) -> Any:
        def override(kernel: Any, *args: Any, **named: Any) -> Any:
            calls[key] += 1
            return (there or (lambda kernel, *args, **named: kernel(*args, **named)))(kernel, *args, **named)

        return override

    def inside(executor: Any, *args: Any, **named: Any) -> Any:
        options = next((a for a in args if isinstance(a, dict) and "uuids" in a), None) or named["transformer_options"]
        options["optimized_attention_override"] = other("inside", options.get("optimized_attention_override"))
        return executor(*args, **named)

    generator = torch.Generator("cpu").manual_seed(11)
    latent = torch.zeros(3, case.host.latent_channels, *case.size)
    noise = torch.randn(latent.shape, generator=generator)
    latent, noise = (x[:, :, None] if case.name in FRAMES else x for x in (latent, noise))
    positive, negative = (case.clip.encode_from_tokens_scheduled(case.clip.tokenize(text)) for text in (PROMPT, ""))

    code = sys.modules.get(CODE.get(case.family, ""))
    kernel = getattr(code, "optimized_attention", None)

    def sampled(model: Any) -> torch.Tensor:
        given = noise.clone(), 3, 3.0, "euler", "simple", positive, negative, latent.clone()
        if case.name == "hidream_o1":  # which keeps keys of the prompt from one run to the next
            case.network.clear_kv_cache()
        return comfy.sample.sample(model, *given, seed=1, disable_pbar=True)

    with torch.inference_mode():
        plain = sampled(case.model)
        seen = sampled(captured)
    clone = captured.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = other("before")
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "second pack", inside)
    if code is not None:
        left = code.optimized_attention is kernel
        code.optimized_attention = another = functools.partial(other("before"), kernel)
    with torch.inference_mode():
        beside = sampled(clone)
    if code is not None:
        left = left and code.optimized_attention is another
        code.optimized_attention = kernel
    samples = beside[:, :, 0] if beside.ndim == 5 else beside
    run = run_of(capture, samples)
    said = words_of(capture, run, [typed(case.clip, PROMPT)], ["dog", "grass"], case.host)
    predictor.set_latents(model_space(case.model, samples), captured=said.captured)
    result = predictor.predict(["dog", "grass"])
    predictor.set_latents(model_space(case.model, samples))
    own = predictor.predict(["dog", "grass"])
    return {
        "bit_equal": [bool(torch.equal(plain, seen)), bool(torch.equal(plain, beside))],
        "others": calls,
        "name left": left,
        "notes": said.notes,
        "steps": max(run.counts.values()) if run and run.counts else 0,
        "captured": list(result.probabilities.shape),
        "finite": bool(torch.isfinite(result.logits).all() and torch.isfinite(own.logits).all()),
        "differ": float((result.logits - own.logits).abs().max()),
        "described": case.host.described(predictor.config),
        "noise": float(case.host._sigmas(torch.tensor([predictor.config.timestep]))[0]),
        "step": case.host.step_of(case.host._sigmas(torch.tensor([predictor.config.timestep])))[0],
    }


def measured(name: str) -> dict[str, Any]:
    """All figures of a family."""
    case = Case(name)
    found = {"maps": maps(case), "places": places(case), "words": words(case)}
    if name in ("flux", "flux2", "qwen", "longcat"):
        found["references"] = references(case)
    if name in ("flux", "chroma"):
        found["concepts"] = concepts(case)
    if name == "hunyuan_image":
        found["glyphs"] = glyphs(case)
    if name == "hidream_o1":
        found["kept keys"] = kept_keys(case)
    if name == "ideogram4":
        found["two networks"] = two_networks(case)
    found["sampling"] = sampling(case)
    return found


def main() -> None:
    """See the module."""
    folder, out, *names = sys.argv[1:]
    families.prepare(Path(folder))
    torch.set_grad_enabled(False)
    results = {}
    for name in names:
        try:
            results[name] = measured(name)
        except Exception as error:
            import traceback

            results[name] = {"failed": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()[-1500:]}
        Path(out).write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
