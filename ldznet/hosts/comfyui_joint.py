"""A transformer that ComfyUI has loaded (SD 3, Flux, Qwen-Image, Z-Image …), as a host of the attention head.

`host_of` makes the host of any MODEL. Everything goes through the objects that ComfyUI hands over, so that this imports
no comfy. Only `nodes/` may import it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from ..attention.joint import reading_joint
from ..attention.joint_named import NamedReader
from ..attention.prompts import Rows, Spelling, Texts
from ..attention.reading import Attention
from ..contracts import FAMILIES, Conditioning, TapSpec
from ..errors import HostError
from ..shapes import Float, Int
from .comfyui import ComfyHost, bare_network, in_model_dimensions, literal_tokens, loaded_parts, without_numbers
from .comfyui_capture import still
from .joint import (
    joint_of,
    pixels_per_latent,
    require_encoders,
    require_width,
    rows_needed,
    rows_of,
    stretches,
    template_of,
)

KEPT = 8  # texts that a host remembers the encoding of


def host_of(model: Any, clip: Any = None, vae: Any = None) -> ComfyHost:
    """The host of a MODEL, and of CLIP and VAE where a call needs them. Raises HostError for a model of no family."""
    kind = JointHost if joint_of(model.model, bare_network(model)) is not None else ComfyHost
    return kind(model, clip, vae)


class JointHost(ComfyHost):
    """A loaded transformer as a `contracts.JointHost`, for the attention head alone.

    Latents are b c h w in model space here; where the model's own have a dimension for frames, they get one of them.
    A timestep is a thousandth of the model's own schedule, its shift included.
    """

    def __init__(self, model: Any, clip: Any = None, vae: Any = None) -> None:
        self.model, self.clip, self.vae = model, clip, vae
        network = bare_network(model)
        joint = joint_of(model.model, network)
        assert joint is not None
        self.family, self.layout, self.encoders = joint
        side = self.layout.side(network)
        self.specs = {name: TapSpec(name, 0, side) for name in self.layout.modules(network)}
        latents = model.model.latent_format
        self.latent_channels: int = latents.latent_channels
        self.pixels_per_latent: int = pixels_per_latent(latents)
        self.context_dim = 0
        self.device, self.dtype = model.load_device, torch.float32
        self._encoded: dict[str, tuple[Any, dict[str, Any]]] = {}

    @torch.no_grad()
    def encode_image(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c _ _"]:
        """As ComfyHost's; picture by picture, for VAEs of videos take a batch for frames."""
        images = (pixels.movedim(1, -1) + 1) / 2
        vae_latents = torch.cat([self.vae.encode(image[None]) for image in images])
        if vae_latents.shape[1] != self.latent_channels:
            raise HostError(
                f"Expected a VAE of {self.latent_channels} latent channels, got one of {vae_latents.shape[1]}: another "
                "model's. Connect the VAE that belongs to the model. (socket: vae)"
            )
        latents = self.model.model.process_latent_in(vae_latents)
        return still(latents).to(self.device, self.dtype)

    @torch.no_grad()
    def decode_latents(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 _ _"]:
        """`pixels` in [-1, 1] of model-space latents."""
        vae_latents = self.model.model.process_latent_out(in_model_dimensions(self.model, latents))
        images = self.vae.decode(vae_latents)
        return images.reshape(-1, *images.shape[-3:]).movedim(-1, 1) * 2 - 1

    @torch.no_grad()
    def condition(self, prompts: Sequence[str]) -> Conditioning:
        """The context of prompts of as many rows each, and what else the model's encoders give."""
        encoded = [self._encode_once(prompt)[1] for prompt in prompts]
        rows = {part["cond"].shape[1] for part in encoded}
        if len(rows) > 1:
            raise HostError(f"Expected prompts of as many rows each, got {sorted(rows)}. Encode them one by one.")
        extras = {name: part for name, part in encoded[0].items() if isinstance(part, Tensor) and name != "cond"}
        for name in extras:
            extras[name] = torch.cat([part[name] for part in encoded]) if len(encoded) > 1 else extras[name]
        return Conditioning(torch.cat([part["cond"] for part in encoded]).to(self.device, self.dtype), extras)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text of any length by the first of the encoders, without template and padding."""
        return self.texts.spellings[0].ids(text)

    @property
    def texts(self) -> Texts:
        """How this network is given a text."""
        names = stretches(self.encoders, self._blank())
        ids = [functools.partial(_ids, self._tokenizer(name)) for name in names]
        spellings = tuple(Spelling(one, self.encoders.after_space) for one in ids)
        return Texts(spellings, self._rows, self._placed, self.encoders.most)

    def reading_attention(self, network: Any, *args: Any, **named: Any) -> AbstractContextManager[Attention]:
        """As `attention.reading.reading_attention`, of this network."""
        reader = NamedReader if self.layout.function else None
        return reading_joint(self.layout, network, *args, **{**named, "reader": reader})

    def step_of(self, sigmas: Tensor) -> list[float]:
        """The timesteps 0..1000 at which the model's schedule has these sigmas."""
        table = self._sampling().sigmas.double().cpu()
        return (1000 * torch.searchsorted(table, sigmas.double().cpu().flatten()) / len(table)).tolist()

    def described(self, config: Any) -> str:
        """A line for a report: the family, which blocks are read, and who says so."""
        blocks = ", ".join(place.rpartition(".")[2] for place in config.coarse)
        method = "concept attention" if config.concepts else "attention"
        return (
            f"{FAMILIES[self.family].title}: {method} of its blocks {blocks} of {len(self.specs)} at t = "
            f"{config.timestep} ({config.source})"
        )

    def _sigmas(self, timesteps: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        table = self._sampling().sigmas
        at = (timesteps.cpu().double() / 1000 * len(table)).round().long().clamp(1, len(table))
        return table.cpu()[at - 1].float()

    def _sampling(self) -> Any:
        return self.model.get_model_object("model_sampling")

    def _pass(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Callable[[], Any]:
        """As ComfyHost's; PixArt's code divides by a size of the latents that is rounded to multiples of 64."""
        run = super()._pass(in_model_dimensions(self.model, latents), timesteps, conditioning)

        def passed() -> Any:
            try:
                return run()
            except ZeroDivisionError as error:
                height, width = (side * self.pixels_per_latent for side in latents.shape[-2:])
                raise HostError(
                    f"Expected a larger picture for {FAMILIES[self.family].title}, got {width} x {height} px, at which "
                    "ComfyUI's code of this model divides by zero. Take the resolution head, which enlarges it, or a "
                    "larger picture."
                ) from error

        return passed

    def _conds(self, latents: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        """As ComfyHost's; a mask that is the same for all rows is given once, for OmniGen2 counts the tokens in it."""
        mask = conditioning.extras.get("attention_mask")
        if mask is not None and torch.equal(mask, mask[:1].expand_as(mask)):
            conditioning = dataclasses.replace(conditioning, extras={**conditioning.extras, "attention_mask": mask[:1]})
        return super()._conds(latents, conditioning)

    def _inputs(self, conds: Mapping[str, Any], sigmas: Float[Tensor, " b"]) -> dict[str, Any]:
        """As ComfyHost's; some of these models' conditions are of one row whatever the batch, and some models ask
        which step comes next: none, the last one is this."""
        rows = {"batch_size": len(sigmas), "device": self.device, "area": None}
        steps = {"sigmas": sigmas, "sample_sigmas": torch.cat([sigmas[:1], torch.zeros_like(sigmas[:1])])}
        inputs = {name: cond.process_cond(**rows).cond for name, cond in conds.items()}
        return {**inputs, "transformer_options": steps}

    def _rows(self, text: str) -> Rows:
        """By a text that this host encodes."""
        tokens, encoded = self._encode_once(text)
        rows: int = max(encoded["cond"].shape[1], rows_needed(self.encoders, tokens))
        if self.encoders.at_end:  # cut or padded at its beginning, by the encoder or after it
            empty = torch.zeros(1, self.latent_channels, 2, 2, dtype=torch.float32, device=self.device)
            conds = self._conds(in_model_dimensions(self.model, empty), Conditioning(encoded["cond"]))
            rows = conds["c_crossattn"].cond.shape[1]
        return self._placed(tokens, rows)

    def _placed(self, tokens: Any, length: int) -> Rows:
        return rows_of(self.encoders, tokens, self._blank(), length)

    def _encode_once(self, text: str) -> tuple[Any, dict[str, Any]]:
        """ComfyUI's tokens of a text by loaded encoder, and what the encoders make of them."""
        if text not in self._encoded:
            tokens = literal_tokens(self.clip, text)
            require_encoders(self.encoders, tokens, FAMILIES[self.family].title)
            clip = self.clip.clone()
            clip.clip_layer(None)
            encoded = clip.encode_from_tokens(without_numbers(tokens), return_dict=True)
            require_width(self.encoders, bare_network(self.model), encoded["cond"].shape[-1])
            self._encoded = dict([*self._encoded.items(), (text, (loaded_parts(self.clip, tokens), encoded))][-KEPT:])
        return self._encoded[text]

    def _blank(self) -> Any:
        """The tokens of no text."""
        blanks = [literal_tokens(self.clip, text) for text in self.encoders.blanks]
        require_encoders(self.encoders, blanks[0], FAMILIES[self.family].title)
        return loaded_parts(self.clip, template_of(blanks))

    def _tokenizer(self, name: str) -> Any:
        """ComfyUI's tokenizer of an encoder."""
        owner = self.clip.tokenizer
        return getattr(owner, name, None) or getattr(owner, f"clip_{name}")


def _ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of a bare piece of text, by ComfyUI's SDTokenizer."""
    ids = tokenizer.tokenizer(text)["input_ids"]
    return list(ids[tokenizer.tokens_start : -1 if tokenizer.tokenizer_adds_end_token else None])
