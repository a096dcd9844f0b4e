"""A model that ComfyUI has loaded, as a host.

Only `nodes/` may import this; with `comfyui_heads` and `comfyui_world` it alone imports comfy. Weights belong to
ComfyUI: they move by its rules, LoRAs stay applied, and nothing here outlives a call except the objects that it
returns.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_management as memory
import comfy.samplers
import comfy.utils
import torch
from comfy.patcher_extension import WrappersMP
from comfy_execution.graph_utils import GraphBuilder
from comfy_execution.utils import get_executing_context
from torch import Tensor

from ..attention import AttentionConfig
from ..attention.reading import reader_of
from ..capture import Capture, Typed, capture_for
from ..clip_bpe import require_length
from ..config import HeadConfig
from ..contracts import FAMILIES, PUBLISHED_WIDTHS, Conditioning, JointHost, Observer, T, Taps, TapSpec, named_width
from ..errors import HostError
from ..shapes import PIXELS_PER_LATENT, Float, Int
from ..taps import exclusively, extract_taps, ldm_specs
from ..tinyworld import world
from .comfyui_capture import applying_into, calling_into, sampling_into
from .comfyui_world import TinySD15
from .families import no_loaded_model
from .joint import joint_of, numbered

__all__ = [
    "ComfyHost",
    "GraphBuilder",
    "Progress",
    "capturing",
    "colours_of",
    "cross_attention",
    "executing_node",
    "graph_of",
    "model_space",
    "raise_if_cancelled",
    "running_prompt",
    "sampler_names",
    "typed",
    "with_wrappers",
]

POOLED = "pooled_output"
BRACKET = re.compile(r"(?<!\\)([()])")  # ComfyUI reads bare brackets as weights
CAPTURE_KEY = "ldznet_capture"
OVERHEAD = 1.5  # of the host's own estimate of a pass, as its samplers allow for


class ComfyHost:
    """A loaded SD 1.x as a `contracts.Host`: MODEL, and CLIP and VAE where a call needs them.

    SD 2.x and SDXL too, as a `contracts.AttentionHost`: `Head.fitted_to` refuses them to heads that were trained.
    Tensors go in and come out in float32 on the model's device. Noised latents are ComfyUI's (x = latents + sigma ·
    noise for SD 1.x), so `extract` takes what this host's `add_noise` gave.
    """

    def __init__(self, model: Any, clip: Any = None, vae: Any = None) -> None:
        """Raises HostError that names the socket for a MODEL of another family."""
        self.model, self.clip, self.vae = model, clip, vae
        self.family = family_of(model)
        self.context_dim: int = model.model.model_config.unet_config["context_dim"]
        self.specs: Mapping[str, TapSpec] = ldm_specs(bare_network(model))
        self.device: torch.device = model.load_device
        self.dtype = torch.float32

    @torch.no_grad()
    def encode_image(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c _ _"]:
        """Model-space latents of `pixels` in [-1, 1]: the mode of the posterior, as ComfyUI's VAE gives it.

        Raises HostError for another model's VAE, as far as its channels tell.
        """
        vae_latents, channels = self.vae.encode((pixels.movedim(1, -1) + 1) / 2), latent_channels(self.model)
        if vae_latents.shape[1] != channels:
            raise HostError(
                f"Expected a VAE of {channels} latent channels, got one of {vae_latents.shape[1]}: another model's. "
                "Connect the VAE of the checkpoint that model comes from. (socket: vae)"
            )
        return self.model.model.process_latent_in(vae_latents).to(self.device, self.dtype)

    @torch.no_grad()
    def decode_latents(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """`pixels` in [-1, 1] of model-space latents."""
        image = self.vae.decode(self.model.model.process_latent_out(latents))
        return image.movedim(-1, 1) * 2 - 1

    @torch.no_grad()
    def encode_text(self, phrases: Sequence[str]) -> Float[Tensor, "b 77 d"]:
        """Context of each phrase from the family's own layer, whatever "CLIP Set Last Layer" says; literal brackets.

        Raises InputError with the count of over 75 tokens, HostError for a CLIP of another family.
        """
        return self.condition(phrases).context

    @torch.no_grad()
    def condition(self, prompts: Sequence[str]) -> Conditioning:
        """As `encode_text`, with SDXL's pooled text."""
        clip = self.clip.clone()
        clip.clip_layer(None)
        encoded = [self._encode(clip, prompt) for prompt in prompts]
        context = torch.cat([part["cond"] for part in encoded]).to(self.device, self.dtype)
        if self.family != "sdxl":
            return Conditioning(context)
        pooled = torch.cat([part[POOLED] for part in encoded]).to(self.device, self.dtype)
        return Conditioning(context, {POOLED: pooled})

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text of any length, without start, end and padding; -1 for a textual inversion."""
        rows = next(iter(literal_tokens(self.clip, text).values()))
        return [token if isinstance(token, int) else -1 for row in rows for token, _, word in row if word]

    def unknown_words(self, texts: Sequence[str]) -> list[str]:
        """The words of `texts` that the model has never seen: the tiny world's vocabulary is small, no other is."""
        return world.unknown_words(texts) if self.family == "tiny" else []

    def typed(self, prompt: str) -> Typed:
        """What "CLIP Text Encode" makes of a prompt, weights and all."""
        return typed(self.clip, prompt)

    def add_noise(
        self, latents: Float[Tensor, "b c h w"], noise: Float[Tensor, "b c h w"], timesteps: Int[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """Latents noised to `timesteps` by the model's own `noise_scaling`, whatever it predicts."""
        sampling = self.model.get_model_object("model_sampling")
        sigma = self._sigmas(timesteps).to(latents)[:, None, None, None]
        return sampling.noise_scaling(sigma, noise, latents)

    def _sigmas(self, timesteps: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Noise levels of timesteps, on the CPU."""
        return self.model.get_model_object("model_sampling").sigma(timesteps.cpu())

    def step_of(self, sigmas: Tensor) -> list[float]:
        """The timesteps 0..999 of noise levels."""
        return self.model.get_model_object("model_sampling").timestep(sigmas).flatten().tolist()

    def extract(
        self,
        latents: Float[Tensor, "b c h w"],
        timesteps: Int[Tensor, " b"],
        context: Float[Tensor, "b n d"],
        blocks: Sequence[str],
    ) -> Taps:
        """Taps of one pass over noised latents, ended after the last block asked for.

        Weights as patched (LoRAs); attention and block patches and other packs' wrappers are left out. An inpainting
        model is told to repaint all of a grey image, as ComfyUI does for text-to-image. Stops where the user cancels.
        """
        run = self._pass(latents, timesteps, Conditioning(context))
        with _uncompiled(self.model.model) as unet:
            return extract_taps(unet, blocks, run)

    def observe(
        self,
        latents: Float[Tensor, "b c h w"],
        timesteps: Int[Tensor, " b"],
        conditioning: Conditioning,
        observer: Observer[T],
    ) -> T:
        """What `observer` yields, after a pass as that of `extract` inside it."""
        run = self._pass(latents, timesteps, conditioning)
        with torch.no_grad(), _uncompiled(self.model.model) as unet, observer(unet) as seen:
            run()
        return seen

    def _pass(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Callable[[], Any]:
        """A UNet call that is ready to run, with the model where ComfyUI wants it."""
        memory.throw_exception_if_processing_interrupted()
        base = self.model.model
        memory.load_models_gpu([self.model], memory_required=OVERHEAD * base.memory_required(list(latents.shape)))
        latents = latents.to(self.device)
        sigmas = self._sigmas(timesteps).to(self.device, torch.float32)
        inputs = self._inputs(self._conds(latents, conditioning), sigmas)
        return lambda: base.apply_model(latents, sigmas, **inputs)

    def _inputs(self, conds: Mapping[str, Any], sigmas: Float[Tensor, " b"]) -> dict[str, Any]:
        """What the model is called with, beside latents and `sigmas`."""
        return {name: cond.cond for name, cond in conds.items()}

    def _conds(self, latents: Tensor, conditioning: Conditioning) -> dict[str, Any]:
        """What the model makes of a conditioning, as its samplers ask it."""
        height, width = (PIXELS_PER_LATENT * side for side in latents.shape[-2:])
        sizes = {"height": height, "width": width, "target_height": height, "target_width": width}  # what SDXL asks
        extras: dict[str, Any] = {name: extra.to(self.device) for name, extra in conditioning.extras.items()}
        extras.setdefault(POOLED, None)  # which ComfyUI's conditionings have where there is none, too
        return self.model.model.extra_conds(
            noise=latents,
            latent_image=latents,
            device=self.device,
            cross_attn=conditioning.context.to(self.device),
            **sizes,
            **extras,
        )

    def _encode(self, clip: Any, phrase: str) -> dict[str, Tensor]:
        tokens = literal_tokens(clip, phrase)
        if len(tokens) != (2 if self.family == "sdxl" else 1):
            encoders = ", ".join(tokens)
            wanted = PUBLISHED_WIDTHS.get(self.context_dim, "SD 1.x")
            raise HostError(
                f"Expected {wanted}'s CLIP in the socket clip, got one of {encoders}. Connect the model's own."
            )
        rows = next(iter(tokens.values()))
        require_length(phrase, sum(word != 0 for row in rows for _, _, word in row))
        encoded = clip.encode_from_tokens(without_numbers(tokens), return_dict=True)
        if encoded["cond"].shape[-1] != self.context_dim:
            raise HostError(
                f"Expected a context of width {self.context_dim} from the socket clip, got "
                f"{encoded['cond'].shape[-1]}. Connect the CLIP that belongs to the model."
            )
        return encoded


def typed(clip: Any, prompt: str) -> Typed:
    """What "CLIP Text Encode" makes of a prompt with this CLIP: its layer, its LoRAs, weights and all."""
    tokens = numbered(clip.tokenize(prompt, return_word_ids=True))
    rows = next(iter(tokens.values()))
    ids = [token if word and isinstance(token, int) else -1 for row in rows for token, _, word in row]
    return Typed(clip.encode_from_tokens(without_numbers(tokens)), ids, prompt, loaded_parts(clip, tokens))


def sampler_names() -> tuple[list[str], list[str]]:
    """What a KSampler offers: samplers, and schedulers."""
    return list(comfy.samplers.KSampler.SAMPLERS), list(comfy.samplers.KSampler.SCHEDULERS)


class Progress:
    """Counts chunks into ComfyUI's progress bar, and raises where the user has cancelled."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        self._bar = self._bar or comfy.utils.ProgressBar(total)
        self._bar.update_absolute(done, total)
        memory.throw_exception_if_processing_interrupted()


def raise_if_cancelled() -> None:
    """The `check` of work on masks: ends it where the user has cancelled."""
    memory.throw_exception_if_processing_interrupted()


def outputs_device() -> torch.device:
    """Where nodes leave what they hand on."""
    return memory.intermediate_device()


def model_space(model: Any, vae_latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """`latents` of ComfyUI's LATENT, which is before the scale factor."""
    latents = model.model.process_latent_in(in_model_dimensions(model, vae_latents))
    return latents[:, :, 0] if latents.ndim == 5 else latents


def in_model_dimensions(model: Any, latents: Float[Tensor, "b c h w"]) -> Tensor:
    """Latents of pictures as the model takes them: as one frame where its latents have a dimension for frames."""
    frames = getattr(model.model.latent_format, "latent_dimensions", 2) == 3
    return latents[:, :, None] if frames and latents.ndim == 4 else latents


def colours_of(model: Any, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h w"] | None:
    """RGB in [0, 1] of model-space latents, a pixel each, or four where a latent holds four, as ComfyUI's previews
    without a decoder have them: a linear map that each latent format brings. None for a format without one."""
    latent_format = model.model.latent_format
    factors = getattr(latent_format, "latent_rgb_factors", None)
    if factors is None:
        return None
    reshape = getattr(latent_format, "latent_rgb_factors_reshape", None)
    latents = latents if reshape is None else reshape(latents)
    bias = getattr(latent_format, "latent_rgb_factors_bias", None) or [0.0] * 3
    matrix, shift = (torch.tensor(part, dtype=torch.float32, device=latents.device) for part in (factors, bias))
    pixels = torch.einsum("bchw,cd->bdhw", latents.float(), matrix) + shift[:, None, None]
    return ((pixels + 1) / 2).clamp(0, 1)


def latent_channels(model: Any) -> int:
    """Of a MODEL's latents: 4 for every Stable Diffusion up to SDXL, inpainting models too."""
    return model.model.latent_format.latent_channels


def capturing(host: ComfyHost, config: HeadConfig | AttentionConfig) -> tuple[Any, Capture]:
    """A clone of the host's MODEL whose samplers leave in a Capture what a head of `config`, fitted to the host, reads.
    The pictures stay the same to the bit."""
    capture = capture_for(config, host.model, host.specs, reader_of(host))

    def timesteps_of(sigmas: Tensor) -> list[float]:
        return host.step_of(sigmas[:-1])

    wrappers = {"OUTER_SAMPLE": sampling_into(capture, executing_node, timesteps_of)}
    if isinstance(host, JointHost):  # SD 3's network has no wrapper of its own
        wrappers["APPLY_MODEL"] = applying_into(capture, host.step_of)
    else:
        wrappers["DIFFUSION_MODEL"] = calling_into(capture)
    return with_wrappers(host.model, CAPTURE_KEY, wrappers), capture


def with_wrappers(model: Any, key: str, wrappers: Mapping[str, Any]) -> Any:
    """A clone of MODEL with wrappers by the name of their place in ComfyUI's WrappersMP; `model` stays as it is."""
    clone = model.clone()
    for place, wrapper in wrappers.items():
        clone.add_wrapper_with_key(getattr(WrappersMP, place), key, wrapper)
    return clone


def cross_attention(
    module: Any,
    query: Float[Tensor, "b n d"],
    context: Float[Tensor, "#b m c"],
    extra: Mapping[str, Any],
    value: Tensor | None = None,
) -> Float[Tensor, "b n d"]:
    """What a cross-attention `module` of a UNet gives for another context, or for keys and values of two, by the
    host's own kernel. Hooks on its parts, a capture's, do not see it."""
    parts = (context, context if value is None else value)
    key, value = (to.forward(part) for to, part in zip((module.to_k, module.to_v), parts, strict=True))
    key, value = (part.expand(len(query), -1, -1) for part in (key, value))
    attend, precision = comfy.ldm.modules.attention.optimized_attention, extra.get("attn_precision")
    return module.to_out(attend(module.to_q.forward(query), key, value, module.heads, attn_precision=precision))


def graph_of(hidden: Any) -> dict[str, Any]:
    """The nodes of the prompt that is executed, with all that others expanded to; `hidden` is a node's own."""
    whole = hidden.dynprompt
    return {} if whole is None else {node_id: whole.get_node(node_id) for node_id in sorted(whole.all_node_ids())}


def running_prompt() -> Mapping[str, Any]:
    """The prompt that ComfyUI is executing, as it was queued; empty where it cannot be told."""
    context, server = get_executing_context(), sys.modules.get("server")
    instance = getattr(getattr(server, "PromptServer", None), "instance", None)
    if context is None or instance is None:
        return {}
    queued = instance.prompt_queue.get_current_queue_volatile()[0]
    return next((item[2] for item in queued if item[1] == context.prompt_id), {})


def executing_node() -> Any:
    """The id of the node that ComfyUI is executing: what makes a sampler's runs its own. None where it cannot tell."""
    context = get_executing_context()
    return None if context is None else (context.node_id, context.list_index)


def bare_network(model: Any) -> Any:
    """The network of a MODEL, out of the wrapper of `torch.compile`."""
    unet = model.model.diffusion_model
    return getattr(unet, "_orig_mod", unet)


@contextlib.contextmanager
def _uncompiled(base: Any) -> Iterator[Any]:
    """`base` without the wrapper of `torch.compile`, inside which hooks would not run, around its UNet; gives that."""
    with exclusively(base):
        wrapped = base.diffusion_model
        try:
            base.diffusion_model = getattr(wrapped, "_orig_mod", wrapped)
            yield base.diffusion_model
        finally:
            base.diffusion_model = wrapped


def family_of(model: Any) -> str:
    """ "tiny", "sd1", "sd2" or "sdxl"; raises HostError that says what came for any other MODEL."""
    unet, config = bare_network(model), model.model.model_config.unet_config
    joint = joint_of(model.model, unet)
    if joint is not None:
        title = FAMILIES[joint.family].title
        raise HostError(
            f"Expected a UNet (SD 1.x, SD 2.x or SDXL) in the socket model, got {title}: of all nodes here, Segment by "
            "Text, Capture While Sampling and Segment Captured read it, and this one does not yet."
        )
    if type(unet).__name__ != "UNetModel":
        raise no_loaded_model(f"a {type(unet).__name__}")
    if isinstance(model.model.model_config, TinySD15) and config["context_dim"] == world.UNET.context_dim:
        return "tiny"
    width, linear = config.get("context_dim"), bool(config.get("use_linear_in_transformer"))
    if width == 1280 or not isinstance(width, int):
        raise no_loaded_model(named_width(width))
    if width == 2048:
        return "sdxl"
    if config.get("adm_in_channels"):
        raise no_loaded_model(f"a {type(model.model).__name__} (context width {width})")
    return "sd2" if linear or width == 1024 else "sd1"


def literal_tokens(clip: Any, text: str) -> dict[str, list[list[Any]]]:
    """ComfyUI's tokens (id, weight, number of the word) by encoder, with brackets taken literally."""
    escaped = BRACKET.sub(r"\\\1", text)
    tokens = clip.tokenize(escaped, return_word_ids=True)
    if escaped != text and any(len(token) < 3 for rows in tokens.values() for row in rows for token in row):
        tokens = clip.tokenize(text, return_word_ids=True)  # what numbers no words reads no weights either
    return numbered(tokens)


def loaded_parts(clip: Any, tokens: dict[str, list[list[Any]]]) -> dict[str, list[list[Any]]]:
    """Tokens of the encoders that are loaded: SD 3's tokenizer makes some for every one that there may be."""
    encoders = clip.cond_stage_model

    def is_missing(name: str) -> bool:
        return any(getattr(encoders, attribute, "") is None for attribute in (name, f"clip_{name}"))

    return {name: rows for name, rows in tokens.items() if not is_missing(name)}


def without_numbers(tokens: Mapping[str, list[list[Any]]]) -> dict[str, list[list[Any]]]:
    """Tokens (id, weight) by encoder, as ComfyUI's text encoders take them."""
    return {name: [[token[:2] for token in row] for row in rows] for name, rows in tokens.items()}
