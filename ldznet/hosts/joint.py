"""Transformers that read text and picture together: one table of their families, as ComfyUI 0.25 has them.

Each line was read from the class that it names: `comfy/ldm/modules/diffusionmodules/mmdit.py` (SD 3), `ldm/flux`,
`ldm/chroma` and `ldm/chroma_radiance`, `ldm/qwen_image`, `ldm/lumina` (Lumina 2 and Z-Image), `ldm/krea2`, `ldm/anima`
with `ldm/cosmos`, `ldm/wan`, `ldm/aura`, `ldm/hunyuan_video` (Hunyuan Image), `ldm/omnigen`, `ldm/kandinsky5`,
`ldm/ideogram4`, `ldm/lens`, `ldm/boogu`, `ldm/pixeldit`, `ldm/hidream_o1`, `ldm/pixart`, `ldm/hydit` (HunyuanDiT),
`ldm/ernie`, and the encoders in `comfy/text_encoders`. Which blocks are read at which timestep is in
`attention.config.STUDIED`. Imports attention, errors and shapes; `comfyui_joint` imports it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..attention.joint import Layout
from ..attention.prompts import MOST_TOKENS
from ..errors import HostError
from ..shapes import PIXELS_PER_LATENT

Tokens = Mapping[str, Sequence[Sequence[Sequence[Any]]]]
"""ComfyUI's tokens by encoder: rows of (id or embedding, weight, number of the word; 0 for what is no word)."""

LONG = 200  # tokens of one prompt of ours, where the encoder takes hundreds: about what people write


@dataclasses.dataclass(frozen=True)
class Encoders:
    """Which encoders' tokens make the rows of text, and where.

    `all_of`: the names of all encoders that the family's CLIP has tokens for, of each CLIP that fits. `rows`: for each
    stretch of rows the encoder, or several of which the first that is loaded counts (SD 3's CLIP-L and CLIP-G have the
    same tokens in the same rows); empty stands for the only one. `at_end`: the rows end with the encoder's last token,
    since a template was cut off before them or padding put there; else they begin with its first. `stop`: from the last
    such token on they are cut off too. `blanks`: texts whose tokens have the template in common and nothing else, which
    ends with a space before the text where `after_space`.
    `width`: the path of the linear layer that takes the rows, "" where the class itself says what is wrong with them.
    """

    all_of: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...] = ()
    at_end: bool = False
    stop: int | None = None
    blanks: tuple[str, ...] = ("",)
    after_space: bool = False
    most: int = LONG
    width: str = "txt_in"


class Joint(NamedTuple):
    """A family: its name in `contracts.FAMILIES`, and how its network and its text encoders are laid out."""

    family: str
    layout: Layout
    encoders: Encoders


QWEN, GEMMA = "qwen3_4b", "gemma2_2b"
MARKS = (".", ",")  # where an empty text has no template around it, or another
END_OF_TURN = 151645  # Qwen's <|im_end|>
T5_ROWS = (("t5xxl",),)
KERNEL = "optimized_attention"  # what code that hands no options on calls
DOUBLE = {"joint": "double_blocks"}  # of Flux: the blocks after these, with one stream for both, were not studied
OVIS = Encoders(("qwen3_2b",), at_end=True, after_space=True)
LUMINA = Joint(
    "lumina2", Layout({"joint": "layers"}, multiple="pad_tokens_multiple"), Encoders((GEMMA,), width="cap_embedder.1")
)
CHROMA = Joint("chroma", Layout(DOUBLE), Encoders(("t5xxl",), T5_ROWS))
KANDINSKY = Joint(
    "kandinsky5",
    Layout({"joint": "visual_transformer_blocks"}, inner="cross_attention"),
    Encoders(("l qwen25_7b",), (("qwen25_7b",),), at_end=True, width="text_embeddings.in_layer"),
)
WAN = Joint("wan", Layout({"joint": "blocks"}, inner="cross_attn"), Encoders(("umt5xxl",), width="text_embedding.0"))
JOINT: dict[str, Joint] = {  # by the class of ComfyUI's BaseModel
    "SD3": Joint(
        "sd3",
        Layout({"joint": "joint_blocks"}),
        Encoders(("g l t5xxl",), (("l", "g"), ("t5xxl",)), most=MOST_TOKENS, width="context_embedder"),
    ),
    "Flux": Joint("flux", Layout(DOUBLE, references=True), Encoders(("l t5xxl",), T5_ROWS)),
    "Flux2": Joint("flux2", Layout(DOUBLE, references=True), Encoders((QWEN, "qwen3_8b", "mistral3_24b"), at_end=True)),
    "Chroma": CHROMA,
    "ChromaRadiance": CHROMA,
    "QwenImage": Joint(
        "qwen", Layout({"joint": "transformer_blocks"}, references=True), Encoders(("qwen25_7b",), at_end=True)
    ),
    "Lumina2": LUMINA,
    "ZImagePixelSpace": LUMINA,
    "Krea2": Joint(
        "krea2", Layout({"joint": "blocks"}, patch="patch"), Encoders(("qwen3vl_4b",), at_end=True, width="")
    ),
    "Anima": Joint(
        "anima",
        Layout({"joint": "blocks"}, patch="patch_spatial", inner="cross_attn"),
        Encoders(("qwen3_06b t5xxl",), T5_ROWS, width=""),
    ),
    "CosmosPredict2": Joint(
        "cosmos",
        Layout({"joint": "blocks"}, patch="patch_spatial", inner="cross_attn"),
        Encoders(("t5xxl",), T5_ROWS, width="blocks.0.cross_attn.k_proj"),
    ),
    "WAN21": WAN,
    "WAN22": WAN,
    "AuraFlow": Joint(
        "aura",
        Layout({"joint": "single_layers"}, registers="register_tokens"),  # those before hold two streams: 4 of 36
        Encoders(("pile_t5xl",), width="cond_seq_linear"),
    ),
    "HunyuanImage21": Joint(
        "hunyuan",
        Layout(DOUBLE, glyphs="txt_byt5"),
        Encoders(("qwen25_7b", "byt5 qwen25_7b"), (("qwen25_7b",),), at_end=True, width="txt_in.input_embedder"),
    ),
    "Omnigen2": Joint(
        "omnigen2",
        Layout({"joint": "layers"}),
        Encoders(("qwen25_3b",), width="time_caption_embed.caption_embedder.1"),
    ),
    "HiDream": Joint(
        "hidream",
        Layout({"joint": "double_stream_blocks"}, text_first=False, twice="encoder_hidden_states_llama3"),
        Encoders(
            ("g l llama t5xxl",),
            (("t5xxl",), ("llama",), ("llama",)),  # Llama's last layer in every block, then a layer of the block's own
            most=100,
            width="",
        ),
    ),
    "Kandinsky5": KANDINSKY,
    "Kandinsky5Image": KANDINSKY,
    "Ideogram4": Joint(
        "ideogram4",
        Layout({"joint": "layers"}, patch=1),  # its latents hold patches of 2 x 2 as channels
        Encoders(("qwen3vl_8b",), width="llm_cond_proj"),
    ),
    "Lens": Joint(
        "lens",
        Layout({"joint": "transformer_blocks"}, text_first=False, patch=1),
        Encoders(("gpt_oss",), at_end=True, blanks=MARKS),
    ),
    "LongCatImage": Joint(
        "longcat",
        Layout(DOUBLE, references=True),
        Encoders(("qwen25_7b",), at_end=True, stop=END_OF_TURN),
    ),
    "PixArt": Joint(
        "pixart",
        Layout({"joint": "blocks"}, inner="cross_attn", function=KERNEL),
        Encoders(("t5xxl",), T5_ROWS, width="y_embedder.y_proj.fc1"),
    ),
    "HunyuanDiT": Joint(
        "hydit",
        Layout({"joint": "blocks"}, inner="attn2", function=KERNEL),
        Encoders(
            ("hydit_clip mt5xl",),
            (("hydit_clip",), ("mt5xl",)),
            most=MOST_TOKENS,
            width="blocks.0.attn2.kv_proj",
        ),
    ),
    "ErnieImage": Joint(
        "ernie",
        Layout({"joint": "layers"}, text_first=False, function=KERNEL),
        Encoders(("ministral3_3b",), width="text_proj"),
    ),
    "Boogu": Joint(
        "boogu",
        Layout({"joint": "single_stream_layers"}),  # those before hold two streams: 8 of 40
        Encoders(("qwen3vl_8b",), blanks=MARKS, width="time_caption_embed.caption_embedder.1"),
    ),
    "HiDreamO1": Joint(
        "hidream_o1",
        Layout({"joint": "language_model.layers"}, handed="optimized_attention"),
        Encoders(("hidream_o1",), width=""),
    ),
    "PixelDiTT2I": Joint(
        "pixeldit",
        Layout({"joint": "patch_blocks"}),  # those after hold the pixels of the picture alone
        Encoders((GEMMA,), at_end=True, blanks=MARKS, after_space=True, width="y_embedder.proj"),
    ),
}
UNSAID = {"Wan22": 16, "HunyuanImage21": 32, "ChromaRadiance": 1}  # pixels a latent, where ComfyUI 0.3.64 does not say
OTHERS = ("clip_text_pooled_proj", "img_emb")  # of relatives: NewBie has two encoders, a Wan that reads a picture


def joint_of(base: Any, network: Any) -> Joint | None:
    """The family of ComfyUI's BaseModel `base` around `network`; None for any other, relatives of these included."""
    found = JOINT.get(type(base).__name__)
    if found is None or any(getattr(network, part, None) is not None for part in OTHERS):
        return None
    if found.family == "lumina2" and getattr(network, "pad_tokens_multiple", None):
        return found._replace(family="zimage", encoders=dataclasses.replace(found.encoders, all_of=(QWEN,)))
    if found.family == "flux" and getattr(network, "txt_norm", None) is not None:
        return found._replace(family="ovis", encoders=OVIS)
    return found


def pixels_per_latent(latent_format: Any) -> int:
    """How many pixels wide and high a latent of ComfyUI's `latent_format` is."""
    unsaid = UNSAID.get(type(latent_format).__name__, PIXELS_PER_LATENT)
    return int(getattr(latent_format, "spacial_downscale_ratio", unsaid))


def require_encoders(encoders: Encoders, names: Iterable[str], title: str) -> None:
    """Raises HostError unless a CLIP that makes tokens for `names` is one of the family called `title`."""
    got = " ".join(sorted(names))
    if got not in encoders.all_of:
        wanted = " or ".join(encoders.all_of)
        raise HostError(
            f"Expected {title}'s text encoders ({wanted}) in the socket clip, got {got or 'none'}. Connect the CLIP "
            "that belongs to the model."
        )


def require_width(encoders: Encoders, network: Any, width: int) -> None:
    """Raises HostError where a network takes rows of text of another width."""
    layer = network.get_submodule(encoders.width) if encoders.width else None
    wanted = getattr(layer, "in_features", width)
    if wanted != width:
        raise HostError(
            f"Expected rows of text {wanted} wide from the socket clip, got {width}. Connect the CLIP that belongs to "
            "the model."
        )


def stretches(encoders: Encoders, tokens: Tokens) -> list[str]:
    """The encoder of each stretch of rows that is there. Raises HostError where none is."""
    found = [next((name for name in names if name in tokens), "") for names in encoders.rows or (tuple(tokens),)]
    if not any(found):
        raise HostError("Expected a text encoder in the socket clip, got one without any. Load the model's own CLIP.")
    return [name for name in found if name]


def rows_of(encoders: Encoders, tokens: Tokens, blank: Tokens, length: int) -> list[list[int]]:
    """For each encoder, the ids of a text's own tokens in the `length` rows that the network is given, -1 elsewhere.

    `blank` are the tokens of an empty text: what they share with those of the text, at their beginning and at their
    end, is the template. Raises HostError where the tokens do not fit into the rows.
    """
    rows, start = [], 0
    for name in stretches(encoders, tokens):
        every = _flat(tokens[name])
        if encoders.at_end:
            start = length - _length(every, encoders.stop)
        row = [-1] * length
        for i in _own(every, _flat(blank[name])):
            if not 0 <= start + i < length:
                raise HostError(
                    f"Expected at most {length} rows of text, got {len(every)} tokens of {name}. Connect the model's "
                    "own CLIP. (socket: clip)"
                )
            row[start + i] = every[i][0] if isinstance(every[i][0], int) else -1
        rows.append(row)
        start += len(every)
    return rows


def numbered(tokens: Mapping[str, list[list[Any]]]) -> dict[str, list[list[Any]]]:
    """Tokens (id, weight, number of the word) by encoder; those of a tokenizer that numbers none are all of one."""
    return {name: [[(*token, 1)[:3] for token in row] for row in rows] for name, rows in tokens.items()}


def template_of(blanks: Sequence[dict[str, list[list[Any]]]]) -> dict[str, list[list[Any]]]:
    """What the tokens of several texts have in common at both ends; those of one text are all of it."""
    first = blanks[0]
    for other in blanks[1:]:
        first = {name: [_common(*(_words(_flat(tokens[name])) for tokens in (first, other)))] for name in first}
    return first


def rows_needed(encoders: Encoders, tokens: Tokens) -> int:
    """How many rows the tokens take, where all stretches stand one after the other."""
    return sum(len(_flat(tokens[name])) for name in stretches(encoders, tokens))


def _flat(rows: Sequence[Sequence[Sequence[Any]]]) -> list[Sequence[Any]]:
    return [token for row in rows for token in row]


def _own(tokens: Sequence[Sequence[Any]], blank: Sequence[Sequence[Any]]) -> list[int]:
    """Which of a text's tokens are its words: those of no word (start, end, padding) and of the template are not."""
    words = [i for i, token in enumerate(tokens) if token[2]]
    head, tail = _ends([tokens[i][0] for i in words], [token[0] for token in _words(blank)])
    return words[head : len(words) - tail]


def _words(tokens: Sequence[Sequence[Any]]) -> list[Sequence[Any]]:
    return [token for token in tokens if token[2]]


def _common(tokens: Sequence[Sequence[Any]], others: Sequence[Sequence[Any]]) -> list[Any]:
    """Those of `tokens` that begin and end `others` too."""
    head, tail = _ends([token[0] for token in tokens], [token[0] for token in others])
    return [*tokens[:head], *tokens[len(tokens) - tail :]]


def _ends(left: Sequence[Any], right: Sequence[Any]) -> tuple[int, int]:
    """How many values both begin with, and how many of the rest both end with."""
    head = _shared(left, right)
    return head, _shared(left[head:][::-1], right[head:][::-1])


def _length(tokens: Sequence[Sequence[Any]], stop: int | None) -> int:
    """How many tokens stand before the last `stop`; all where there is none."""
    ids = [token[0] for token in tokens]
    places = [i for i, token in enumerate(ids) if stop is not None and _same(token, stop)]
    return places[-1] if places else len(ids)


def _shared(left: Sequence[Any], right: Sequence[Any]) -> int:
    """How many values both begin with; embeddings are equal to nothing."""
    count = 0
    while count < min(len(left), len(right)) and _same(left[count], right[count]):
        count += 1
    return count


def _same(left: Any, right: Any) -> bool:
    return isinstance(left, int) and isinstance(right, int) and left == right
