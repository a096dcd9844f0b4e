"""SD 3, SD 3.5 and Flux.1 through diffusers: transformers that read text and picture together, for the attention head.

Knows models, tokenizers and schedulers by what they do, so it imports neither diffusers nor transformers;
`hf_diffusers` alone imports it. Which rows and constants are diffusers' is said where they stand.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..attention.joint import Layout, reading_joint
from ..attention.joint_torch import TorchReader
from ..attention.prompts import Rows, Spelling, Texts
from ..attention.reading import Attention
from ..clip_bpe import CONTEXT_LENGTH
from ..contracts import Conditioning, Observer, T, Taps, TapSpec
from ..errors import HostError, InputError, shown
from ..images import require_pixels
from ..shapes import Float, Int
from .encoders import POOLED, evaluating
from .joint import LONG
from .loading import mode_of

T5_ROWS = 256  # diffusers' default for SD 3, and the most that Flux.1 schnell takes
GUIDANCE = 3.5  # of Flux.1 dev, which is told how much: the default of diffusers and of ComfyUI
NUM_TIMESTEPS = 1000


class Encoder(NamedTuple):
    """A text encoder and its tokenizer; `rows` ids a text, padding included."""

    model: Any
    tokenizer: Any
    rows: int

    @classmethod
    def clip(cls, model: Any, tokenizer: Any) -> Encoder:
        """CLIP takes as many rows as its tokenizer says, 77 at most."""
        return cls(model, tokenizer, min(CONTEXT_LENGTH, tokenizer.model_max_length))

    @classmethod
    def t5(cls, model: Any, tokenizer: Any) -> Encoder:
        return cls(model, tokenizer, T5_ROWS)

    def ids(self, text: str) -> list[int]:
        """Of a text of any length, without start, end and padding."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def padded(self, texts: Sequence[str], device: torch.device, cut: bool = False) -> Int[Tensor, "b n"]:
        """What the encoder is given. Too many tokens are `cut` off, or raise InputError with their count."""
        found = self.tokenizer(list(texts), padding="max_length", max_length=self.rows, truncation=cut).input_ids
        for text, row in zip(texts, found, strict=True):
            if len(row) > self.rows:
                count = len(self.ids(text))
                most = self.rows - (len(row) - count)
                raise InputError(f'Expected at most {most} tokens, got {count}: shorten "{text[:40]}…".')
        return torch.tensor(found, dtype=torch.int64, device=device)

    def places(self, text: str) -> list[int]:
        """The ids of a text's own tokens by row, -1 for start, end and padding."""
        (row,) = self.tokenizer([text], padding="max_length", max_length=self.rows, truncation=False).input_ids
        own = self.ids(text)
        start = next((i for i in range(len(row)) if list(row[i : i + len(own)]) == own), 0)
        return [-1] * start + own + [-1] * (len(row) - start - len(own))

    @torch.no_grad()
    def run(self, texts: Sequence[str], device: torch.device, cut: bool = False) -> Any:
        """The encoder's output, hidden states included; `cut` as in `padded`."""
        with evaluating(self.model):
            return self.model(self.padded(texts, device, cut), output_hidden_states=True)


@dataclasses.dataclass(frozen=True)
class Form:
    """A family of transformers in diffusers: how a pass is called, and where its sequence has what.

    `inputs` of a network, latents b c h w and a conditioning are its arguments, the time aside; `time`: what a share of
    noise is multiplied with to be the argument `timestep`. `condition` makes a conditioning of the encoders, in the
    order of `encoders`, which names them as pipelines do; T5 may be missing where `t5_may_miss`.
    """

    family: str
    text_first: bool
    encoders: tuple[str, ...]
    condition: Callable[[Sequence[Encoder], Sequence[str], torch.device, Any], Conditioning]
    inputs: Callable[[Any, Tensor, Conditioning], dict[str, Tensor]]
    time: float
    packed: int  # the side of the squares of latents that make a row of the picture, beside the network's own patches
    t5_may_miss: bool = False

    def side(self, network: Any) -> int:
        """Of a row's square of latent pixels."""
        return self.packed * int(network.config.patch_size)

    def channels(self, network: Any) -> int:
        """Of the latents."""
        return int(network.config.in_channels) // self.packed**2


def _sd3_condition(encoders: Sequence[Encoder], prompts: Sequence[str], device: torch.device, config: Any) -> Any:
    """Both CLIPs' states before the last layer side by side, with zeros up to T5's width, then T5's rows if there are
    any; the projected texts of both together."""
    outputs = [encoder.run(prompts, device) for encoder in encoders]
    states = torch.cat([out.hidden_states[-2] for out in outputs[:2]], dim=-1)
    rows = [F.pad(states, (0, config.joint_attention_dim - states.shape[-1]))]
    rows += [out[0].to(states.dtype) for out in outputs[2:]]
    return Conditioning(torch.cat(rows, dim=1), {POOLED: torch.cat([out[0] for out in outputs[:2]], dim=-1)})


def _flux_condition(encoders: Sequence[Encoder], prompts: Sequence[str], device: torch.device, config: Any) -> Any:
    """T5's rows, and CLIP's state of the end token, of as much of a text as CLIP can hold."""
    clip, t5 = encoders
    pooled = clip.run(prompts, device, cut=True).pooler_output
    return Conditioning(t5.run(prompts, device)[0], {POOLED: pooled})


def _sd3_inputs(network: Any, latents: Tensor, conditioning: Conditioning) -> dict[str, Tensor]:
    return {
        "hidden_states": latents,
        "encoder_hidden_states": conditioning.context.to(latents),
        "pooled_projections": conditioning.extras[POOLED].to(latents),
    }


def _flux_inputs(network: Any, latents: Tensor, conditioning: Conditioning) -> dict[str, Tensor]:
    """Squares of 2 x 2 latent pixels as rows, and for the rotary embedding where each is; text is at 0."""
    height, width = latents.shape[2] // 2, latents.shape[3] // 2
    places = torch.zeros(height, width, 3, dtype=latents.dtype, device=latents.device)
    places[..., 1] += torch.arange(height, dtype=latents.dtype, device=latents.device)[:, None]
    places[..., 2] += torch.arange(width, dtype=latents.dtype, device=latents.device)[None]
    inputs = {
        "hidden_states": rearrange(latents, "b c (h i) (w j) -> b (h w) (c i j)", i=2, j=2),
        "encoder_hidden_states": conditioning.context.to(latents),
        "pooled_projections": conditioning.extras[POOLED].to(latents),
        "img_ids": places.flatten(0, 1),
        "txt_ids": places.new_zeros(conditioning.context.shape[1], 3),
    }
    if network.config.guidance_embeds:
        inputs["guidance"] = torch.full((len(latents),), GUIDANCE, dtype=torch.float32, device=latents.device)
    return inputs


THREE = ("text_encoder", "text_encoder_2", "text_encoder_3")
FORMS: dict[str, Form] = {  # by the class of diffusers' transformer
    "SD3Transformer2DModel": Form("sd3", False, THREE, _sd3_condition, _sd3_inputs, 1000.0, 1, t5_may_miss=True),
    "FluxTransformer2DModel": Form("flux", True, THREE[:2], _flux_condition, _flux_inputs, 1.0, 2),
}


class JointDiffusersHost:
    """A transformer of diffusers as a `contracts.JointHost`: it shows its attention, and has no taps.

    A timestep is a thousandth of the model's own schedule, its shift included. The modules are used where they are and
    left as they were. Move a pipeline before it is opened, not after.
    """

    def __init__(
        self,
        network: Any,
        vae: Any,
        encoders: Sequence[Encoder],
        schedule: Mapping[str, Any],
        device: torch.device | None = None,
    ) -> None:
        """`encoders` as the network's `Form` names them, T5 at the end or missing; `schedule`: the configuration of the
        pipeline's scheduler; `device`: the network's if None. Raises HostError for another network or VAE."""
        self._network = getattr(network, "_orig_mod", network)  # hooks would not run inside what torch.compile wraps
        self._form = form_of(type(self._network).__name__, self._network.config)
        self._vae, self._encoders, self._schedule = vae, tuple(encoders), schedule
        self.family = self._form.family
        self.layout = Layout(
            {"joint": "transformer_blocks"}, patch=self._form.side(self._network), text_first=self._form.text_first
        )
        side = self.layout.side(self._network)
        self.specs = {name: TapSpec(name, 0, side) for name in self.layout.modules(self._network)}
        self.latent_channels: int = self._form.channels(self._network)
        self.pixels_per_latent: int = 2 ** (len(vae.config.block_out_channels) - 1)
        if vae.config.latent_channels != self.latent_channels:
            raise HostError(
                f"Expected a VAE of {self.latent_channels} latent channels, got one of {vae.config.latent_channels}. "
                "Open the text-to-image pipeline of the model, with its own VAE."
            )
        self.latent_side: int = self._network.config.get("sample_size") or 1024 // self.pixels_per_latent
        self.context_dim = 0
        self.device: torch.device = self._network.device if device is None else device
        self.dtype: torch.dtype = self._network.dtype

    @torch.no_grad()
    def encode_image(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c _ _"]:
        """Model-space latents of `pixels` in [-1, 1], sides in multiples of the VAE's cells: the posterior's mode,
        shifted and scaled."""
        require_pixels(pixels, self.pixels_per_latent)
        with evaluating(self._vae):
            latents = mode_of(self._vae, pixels.to(self.device))
        return ((latents - self._shift) * self._vae.config.scaling_factor).to(self.dtype)

    @torch.no_grad()
    def decode_latents(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 _ _"]:
        """`pixels`, about [-1, 1] and not clamped, of model-space latents."""
        self._require_latents(latents)
        with evaluating(self._vae):
            scaled = latents.to(self.device, self._vae.dtype) / self._vae.config.scaling_factor + self._shift
            return self._vae.decode(scaled, return_dict=False)[0].to(self.dtype)

    def encode_text(self, phrases: Sequence[str]) -> Float[Tensor, "b n d"]:
        """The rows of text of each phrase; too many tokens raise InputError with their count."""
        return self.condition(phrases).context.to(self.dtype)

    def condition(self, prompts: Sequence[str]) -> Conditioning:
        """The rows of text of each prompt and the pooled text; too many tokens raise InputError with their count."""
        return self._form.condition(self._encoders, prompts, self.device, self._network.config)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text of any length by the first of the encoders whose rows are read."""
        return self._read_encoders[0].ids(text)

    @property
    def texts(self) -> Texts:
        """How this network is given a text."""
        encoders = self._read_encoders
        most = min(min(LONG, encoder.rows - 2) for encoder in encoders)
        return Texts(tuple(Spelling(encoder.ids) for encoder in encoders), self._rows, most=most)

    def add_noise(
        self, latents: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], timesteps: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """(1 - s) * latents + s * noise, s being the share of noise at `timesteps` of the model's own schedule."""
        shares = self._shares(timesteps, latents).to(latents)[:, None, None, None]
        return (1 - shares) * latents + shares * noise

    def extract(
        self,
        latents: Float[Tensor, "b c h w"],
        timesteps: Int[Tensor, " b"],
        context: Float[Tensor, "b n d"],
        blocks: Sequence[str],
    ) -> Taps:
        """Raises HostError: no head reads what these blocks give on."""
        raise HostError('Expected an SD 1.x or 2.x model for taps, got a transformer. Use the head "attention".')

    @torch.no_grad()
    def observe(
        self,
        latents: Float[Tensor, "b c h w"],
        timesteps: Int[Tensor, " b"],
        conditioning: Conditioning,
        observer: Observer[T],
    ) -> T:
        """What `observer` yields, after a pass over noised latents inside it."""
        self._require_latents(latents)
        network, sample = self._network, latents.to(self.device, self.dtype)
        times = self._form.time * self._shares(timesteps, latents).to(self.device, torch.float32)
        inputs = self._form.inputs(network, sample, conditioning)
        with evaluating(network), observer(network) as seen:
            network.forward(**inputs, timestep=times, return_dict=False)  # past `compile()`
        return seen

    def reading_attention(self, network: Any, *args: Any, **named: Any) -> AbstractContextManager[Attention]:
        """As `attention.reading.reading_attention`, of this network."""
        return reading_joint(self.layout, network, *args, **{**named, "reader": TorchReader})

    @property
    def _shift(self) -> float:
        return getattr(self._vae.config, "shift_factor", None) or 0.0

    @property
    def _read_encoders(self) -> tuple[Encoder, ...]:
        """Those whose tokens have rows of their own; CLIP-L's and CLIP-G's share theirs."""
        return self._encoders[1:] if self._form.text_first else (self._encoders[0], *self._encoders[2:])

    def _rows(self, text: str) -> Rows:
        """The ids of a text's tokens by row of the context, for each of those encoders."""
        encoders = self._read_encoders
        lengths = [encoder.rows for encoder in encoders]
        return [
            [-1] * sum(lengths[:i]) + encoder.places(text) + [-1] * sum(lengths[i + 1 :])
            for i, encoder in enumerate(encoders)
        ]

    def _shares(self, timesteps: Int[Tensor, " b"], latents: Tensor) -> Float[Tensor, " b"]:
        """The share of noise of each timestep: FlowMatchEulerDiscreteScheduler's, static or by the picture's size."""
        schedule, t = self._schedule, timesteps.cpu().double() / NUM_TIMESTEPS
        factor = float(schedule.get("shift") or 1.0)
        if schedule.get("use_dynamic_shifting"):
            rows = (latents.shape[2] * latents.shape[3]) // self.layout.side(self._network) ** 2
            low, high = schedule.get("base_image_seq_len", 256), schedule.get("max_image_seq_len", 4096)
            least, most = schedule.get("base_shift", 0.5), schedule.get("max_shift", 1.15)
            mu = least + (rows - low) * (most - least) / (high - low)
            factor = mu if schedule.get("time_shift_type") == "linear" else math.exp(mu)
        return (factor * t / (1 + (factor - 1) * t)).float()

    def _require_latents(self, latents: Tensor) -> None:
        side = self.layout.side(self._network)
        if latents.ndim != 4 or latents.shape[1] != self.latent_channels or any(s % side for s in latents.shape[2:]):
            raise InputError(
                f"Expected latents b {self.latent_channels} h w in model space, sides in multiples of {side}, got "
                f"{tuple(latents.shape)}."
            )


def form_of(name: str, config: Mapping[str, Any]) -> Form:
    """The form of a transformer by its class and configuration. Raises HostError for any other."""
    form = FORMS.get(name)
    if form is None:
        raise HostError(
            f"Expected the transformer of SD 3 or Flux.1 ({', '.join(FORMS)}), got a {shown(name)}. Open one of these."
        )
    given = config.get("out_channels") or config.get("in_channels")
    if given != config.get("in_channels"):
        raise HostError(
            f"Expected a text-to-image transformer, got one that takes {config.get('in_channels')} channels for "
            f"{given}: it wants a picture or a mask too. Open the text-to-image model."
        )
    return form
