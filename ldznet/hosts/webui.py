"""A model that Automatic1111 or a Forge has loaded, as a host. Which of them is told by what the model has.

A1111's is the LDM itself, run by its `apply_model`. A Forge's (Forge, reForge, Forge Neo) has `forge_objects`, whose
patchers the memory management of its own moves. Imports nothing of any of them: what of their code is needed is reached
through the objects that they made. Nothing here outlives a call; weights stay where and as the host has them.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import schedule
from ..clip_bpe import require_length
from ..contracts import FAMILIES, PUBLISHED_WIDTHS, Conditioning, Observer, T, Taps, TapSpec, named_width
from ..errors import HostError, InputError
from ..images import require_pixels
from ..models.layers import timestep_embedding
from ..shapes import PIXELS_PER_LATENT, Float, Int
from ..taps import exclusively, extract_taps, ldm_specs, spatial_transformers, watching
from .families import IN_CHANNELS, INPAINTING_CHANNELS, inpainting_part, require_epsilon

POOLED = "pooled"
CHUNK = 75  # tokens between the start and the end token
MEMORY = ("backend.memory_management", "ldm_patched.modules.model_management")  # Forge and Neo; reForge
SKIPS = {"CLIP_stop_at_last_layers": 1, "sdxl_clip_l_skip": False}  # the hosts' options, as for the family's own layer


def is_loaded(source: Any) -> bool:
    """Whether `source` is the `sd_model` of one of these hosts, whatever model it holds."""
    return hasattr(source, "forge_objects") or (hasattr(source, "first_stage_model") and hasattr(source, "model"))


def open_webui(sd_model: Any) -> WebuiHost:
    """The host around a host's `sd_model`. Raises HostError, one sentence, for a model that no head reads."""
    return ForgeHost(sd_model) if getattr(sd_model, "forge_objects", None) is not None else A1111Host(sd_model)


class WebuiHost:
    """What all these hosts share: an SD 1.x, SD 2.x or SDXL under the LDM's names (`contracts.AttentionHost`).

    Tensors go in and come out in float32 on the host's device.
    """

    dtype = torch.float32
    grad_free: Callable[[], Any] = torch.no_grad  # what passes run in

    def __init__(self, sd_model: Any, unet: Any, vae: Any, alphas: Any, prediction: str | None) -> None:
        """Raises HostError for a UNet of another kind."""
        self.sd_model, self._unet, self._vae = sd_model, unet, vae
        self.family = family_of(unet)
        require_epsilon(self.family, prediction)
        self.specs: Mapping[str, TapSpec] = ldm_specs(unet)
        self.context_dim: int = _context_dim(unet)
        self._alphas = alphas.detach().to("cpu", torch.float64)
        self.device: torch.device = self._device()

    def _device(self) -> torch.device:
        """Where passes run."""
        raise NotImplementedError

    def _latents(self, pixels: Tensor) -> Tensor:
        """Model-space latents of one picture, sides in multiples of 8: the posterior's mode."""
        raise NotImplementedError

    def _encoders(self) -> Sequence[Any]:
        """The host's text encoders: CLIP; SDXL's CLIP-L and OpenCLIP-G."""
        conditioner = getattr(self.sd_model, "conditioner", None)
        return [self.sd_model.cond_stage_model] if conditioner is None else _with_transformers(conditioner)

    def _ready(self) -> None:
        """Brings the text encoders to where they run."""
        raise NotImplementedError

    def _run(self, latents: Tensor, timesteps: Tensor, context: Tensor, concat: Any, vector: Any) -> Any:
        """One UNet call. `concat` is what an inpainting model gets with its latents, `vector` what SDXL asks."""
        raise NotImplementedError

    def make_room(self, size: int) -> None:
        """Tells the host that `size` bytes are about to be taken on its device, which it does not know of."""

    def encode_image(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 4 h/8 w/8"]:
        """Model-space latents of `pixels` in [-1, 1], sides in multiples of 8: the mode of the posterior, which these
        hosts sample from. Nothing random is drawn; a picture at a time, so that memory does not grow with the batch."""
        require_pixels(pixels)
        with exclusively(self._vae), self.grad_free():
            latents = torch.cat([self._latents(picture) for picture in pixels.split(1)]).to(self.device, self.dtype)
        return latents.clone()  # out here it is a tensor like any other

    def decode_latents(self, latents: Float[Tensor, "b 4 h w"]) -> Float[Tensor, "b 3 8*h 8*w"]:
        """`pixels`, about [-1, 1], of model-space latents."""
        _require_latents(latents)
        with exclusively(self._vae), self.grad_free():
            pixels = self.sd_model.decode_first_stage(latents.to(self.device, _dtype_of(self._vae))).to(self.dtype)
        return pixels.clone()

    def encode_text(self, phrases: Sequence[str]) -> Float[Tensor, "b 77 d"]:
        """Context of each phrase from the family's own layer, whatever the host's CLIP skip; brackets are literal.

        Raises InputError with the count of over 75 tokens.
        """
        return self.condition(phrases).context

    def condition(self, prompts: Sequence[str]) -> Conditioning:
        """As `encode_text`, with SDXL's pooled text."""
        with self.grad_free():
            self._ready()
            parts = [self._encoded(encoder, prompts) for encoder in self._encoders()]
            context = torch.cat([part.to(self.device, self.dtype) for part in parts], dim=-1)
        if context.shape[-1] != self.context_dim:
            raise HostError(
                f"Expected a context of width {self.context_dim} from the model's text encoders, got "
                f"{context.shape[-1]}. Load the checkpoint with its own text encoders."
            )
        if self.family != "sdxl":
            return Conditioning(context.clone())
        pooled: Any = getattr(parts[-1], "pooled", None)  # the hosts hang it on OpenCLIP-G's hidden states
        return Conditioning(context.clone(), {POOLED: pooled.to(self.device, self.dtype).clone()})

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text of any length, without start, end and padding; brackets are characters."""
        return list(self._encoders()[0].tokenize([text])[0])

    def positions(self, prompt: str) -> list[int]:
        """Token ids by position of a prompt as the host encodes it, with emphasis, BREAK and chunks of 75 tokens; -1
        for what is no word: starts, ends and textual inversions. Raises HostError where the host does not tell."""
        encoder = self._encoders()[0]
        if not hasattr(encoder, "tokenize_line"):
            raise HostError(f"Expected a text encoder that splits prompts, got a {type(encoder).__name__}.")
        ids: list[int] = []
        for chunk in encoder.tokenize_line(prompt)[0]:
            row = [-1 if token in (encoder.id_start, encoder.id_end) else token for token in chunk.tokens]
            for fix in chunk.fixes:
                first, count = fix.offset + 1, int(fix.embedding.vectors)
                row[first : first + count] = [-1] * count
            ids += row
        return ids

    def add_noise(
        self, latents: Float[Tensor, "b 4 h w"], noise: Float[Tensor, "b 4 h w"], timesteps: Int[Tensor, " b"]
    ) -> Float[Tensor, "b 4 h w"]:
        """sqrt(a_t) * latents + sqrt(1 - a_t) * noise by the model's own schedule, in the dtype of `latents`."""
        return schedule.add_noise(latents, noise, timesteps, self._alphas)

    def extract(
        self,
        latents: Float[Tensor, "b 4 h w"],
        timesteps: Int[Tensor, " b"],
        context: Float[Tensor, "b n d"],
        blocks: Sequence[str],
    ) -> Taps:
        """Taps of one pass over noised latents, ended after the last; an inpainting model is told to repaint all."""
        if self.family == "sdxl":
            raise HostError("Expected an SD 1.x or 2.x model for taps by context alone, got SDXL. Use `observe`.")
        run = self._pass(latents, timesteps, Conditioning(context))
        with unmerged(self._unet), self.grad_free():
            taps = extract_taps(self._unet, blocks, run)
        return {block: tap.clone() for block, tap in taps.items()}

    def observe(
        self,
        latents: Float[Tensor, "b 4 h w"],
        timesteps: Int[Tensor, " b"],
        conditioning: Conditioning,
        observer: Observer[T],
    ) -> T:
        """What `observer` yields, after a pass over noised latents inside it; of a Forge, inference tensors."""
        run = self._pass(latents, timesteps, conditioning)
        with unmerged(self._unet), self.grad_free(), observer(self._unet) as seen:
            run()
        return seen

    def _pass(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Callable[[], Any]:
        _require_latents(latents)
        latents = latents.to(self.device, self.dtype)
        context = conditioning.context.to(self.device, self.dtype)
        concat = inpainting_part(latents) if _in_channels(self._unet) == INPAINTING_CHANNELS else None
        vector = self._vector(conditioning, latents) if self.family == "sdxl" else None
        return lambda: self._run(latents, timesteps.to(self.device), context, concat, vector)

    def _vector(self, conditioning: Conditioning, latents: Tensor) -> Float[Tensor, "b v"]:
        """What SDXL asks beside its context: the pooled text, then sinusoids of the original size, of no crop and of
        the target size, both sizes the latents' own (height first)."""
        pooled = conditioning.extras[POOLED].to(latents)
        pooled = pooled.expand(len(latents), -1)
        height, width = (PIXELS_PER_LATENT * side for side in latents.shape[2:])
        numbers = latents.new_tensor([height, width, 0, 0, height, width])
        width_each = (self._unet.label_emb[0][0].in_features - pooled.shape[1]) // len(numbers)
        sizes = timestep_embedding(numbers, width_each).flatten()
        return torch.cat([pooled, sizes.expand(len(latents), -1).to(pooled)], dim=1)

    def _encoded(self, encoder: Any, prompts: Sequence[str]) -> Tensor:
        """A text encoder's hidden states b 77 d, with the pooled text as `.pooled` where it has one."""
        rows = []
        for prompt, ids in zip(prompts, encoder.tokenize(list(prompts)), strict=True):
            require_length(prompt, len(ids))
            padding = [encoder.id_pad] * (CHUNK - len(ids))
            rows.append([encoder.id_start, *ids, encoder.id_end, *padding])
        with at_own_layer(encoder):
            return encoder.encode_with_transformers(torch.tensor(rows, dtype=torch.int64, device=self.device))

    def _mode(self, encode: Callable[[], Any]) -> Tensor:
        """The mean of the posterior that the VAE's `encode` is about to sample from: its quant_conv's first half."""
        seen: list[Tensor] = []
        with watching({"quant_conv": self._vae.quant_conv}, lambda _, moments: seen.append(moments.detach().clone())):
            encode()
        return seen[0].chunk(2, dim=1)[0].float()


class A1111Host(WebuiHost):
    """Automatic1111's: the LDM (`sgm`'s for SDXL), whose own calls move what `--medvram` keeps on the CPU."""

    def __init__(self, sd_model: Any) -> None:
        alphas = getattr(sd_model, "alphas_cumprod_original", getattr(sd_model, "alphas_cumprod", None))
        unet = getattr(sd_model.model, "diffusion_model", None)
        prediction = {"v": "v_prediction", "eps": "epsilon"}.get(getattr(sd_model, "parameterization", "eps"))
        _require_schedule(alphas, unet)
        super().__init__(sd_model, unet, sd_model.first_stage_model, alphas, prediction)

    def _device(self) -> torch.device:
        return self.sd_model.alphas_cumprod.device

    def _latents(self, pixels: Tensor) -> Tensor:
        given = pixels.to(self.device, _dtype_of(self._vae))
        return self._mode(lambda: self._vae.encode(given)) * self.sd_model.scale_factor

    def _ready(self) -> None:
        conditioner = getattr(self.sd_model, "conditioner", None)
        if conditioner is not None:
            for move in list(conditioner._forward_pre_hooks.values()):  # --medvram's; encoders run one by one here
                move(conditioner, ())

    def _run(self, latents: Tensor, timesteps: Tensor, context: Tensor, concat: Any, vector: Any) -> Any:
        concats = [] if concat is None else [concat]
        if vector is not None:
            return self.sd_model.apply_model(
                latents, timesteps, {"crossattn": context, "vector": vector, "c_concat": concats}
            )
        return self.sd_model.apply_model(latents, timesteps, {"c_crossattn": [context], "c_concat": concats})


class ForgeHost(WebuiHost):
    """A Forge's: patchers in `forge_objects`, brought to the device by the host's memory management before each use.

    All of it in inference mode, as the host runs them: what it loads outside of that, it cannot use inside.
    """

    grad_free = torch.inference_mode

    def __init__(self, sd_model: Any) -> None:
        parts = sd_model.forge_objects
        model = parts.unet.model
        predictor = getattr(model, "predictor", None)
        alphas = getattr(predictor, "alphas_cumprod", getattr(sd_model, "alphas_cumprod", None))
        prediction = getattr(predictor, "prediction_type", None)
        if getattr(sd_model, "parameterization", "eps") == "v":
            prediction = "v_prediction"
        self._parts, self._kind = parts, model
        _require_schedule(alphas, model.diffusion_model)
        super().__init__(sd_model, model.diffusion_model, parts.vae.first_stage_model, alphas, prediction)

    def _device(self) -> torch.device:
        return torch.device(self._parts.unet.load_device)

    def make_room(self, size: int) -> None:
        memory = memory_management()
        if memory is not None:
            memory.free_memory(size, self.device)

    def _latents(self, pixels: Tensor) -> Tensor:
        load([self._parts.vae.patcher])
        given = pixels.to(self._parts.vae.device, self._parts.vae.vae_dtype)
        mode = self._mode(lambda: self._vae.encode(given)).to(self.device)
        to_model_space = getattr(self._vae, "process_in", None) or self._kind.process_latent_in
        return to_model_space(mode)

    def _encoders(self) -> Sequence[Any]:
        names = ("text_processing_engine", "text_processing_engine_l", "text_processing_engine_g")
        engines = [getattr(self.sd_model, name) for name in names if hasattr(self.sd_model, name)]
        return engines or super()._encoders()

    def _ready(self) -> None:
        load([self._parts.clip.patcher])

    def _run(self, latents: Tensor, timesteps: Tensor, context: Tensor, concat: Any, vector: Any) -> Any:
        load([self._parts.unet])
        dtype = _computation_dtype(self._kind)
        given = latents if concat is None else torch.cat([latents, concat], dim=1)
        extras = {} if vector is None else {"y": vector.to(dtype)}
        return self._unet(
            given.to(dtype), timesteps.float(), context=context.to(dtype), transformer_options={}, **extras
        )


def family_of(unet: Any) -> str:
    """ "sd1", "sd2" or "sdxl" by what the UNet has; raises HostError that names what is loaded for any other."""
    transformers: dict[str, Any] = {} if unet is None else spatial_transformers(unet)
    if not transformers:
        raise not_readable(f"a {type(unet).__name__}" if unet is not None else "one without a UNet")
    width, asks_more = _context_dim(unet), getattr(unet, "label_emb", None) is not None
    if width == 1280:
        raise not_readable(named_width(width))
    if _in_channels(unet) not in IN_CHANNELS:
        raise not_readable(f"one of {_in_channels(unet)} input channels (they have 4, or 9 to inpaint)")
    linear = not isinstance(next(iter(transformers.values())).proj_in, nn.Conv2d)  # a Forge's Linear is none of torch's
    family = ("sdxl" if linear else None) if asks_more else "sd2" if linear else "sd1"
    if family is None or PUBLISHED_WIDTHS.get(width, FAMILIES[family].title) != FAMILIES[family].title:
        raise not_readable(f"one of context width {named_width(width)} of another form")
    if family == "sdxl" and width == FAMILIES["sd2"].context_dim:
        raise not_readable("an SD 2.x that reads pictures (unCLIP)")
    return family


def not_readable(got: str) -> HostError:
    """For a model that is loaded and that no head reads: one sentence, fit for the section and the log."""
    return HostError(
        f"Expected a Stable Diffusion 1.x, 2.x or SDXL as the loaded model, got {got}, which no head reads yet: load "
        "one of these for masks by words."
    )


@contextlib.contextmanager
def at_own_layer(encoder: Any) -> Iterator[None]:
    """`encoder` at the layer that its family was trained with: A1111's and reForge's read the option CLIP skip, a
    Forge's engine holds its number. Put back whatever happens."""
    options = getattr(vars(sys.modules[type(encoder).__module__]).get("opts"), "data", None)
    engine = vars(encoder) if hasattr(encoder, "minimal_clip_skip") and hasattr(encoder, "clip_skip") else None
    with contextlib.ExitStack() as stack:
        if isinstance(options, dict):
            stack.enter_context(_set(options, SKIPS))
        if engine is not None:
            stack.enter_context(_set(engine, {"clip_skip": encoder.minimal_clip_skip}))
        yield


@contextlib.contextmanager
def unmerged(unet: nn.Module) -> Iterator[None]:
    """`unet` without tomesd's token merging, which A1111 sets up before scripts run: merged tokens are no pixels."""
    arguments = (getattr(unet, "_tome_info", None) or {}).get("args") or {}
    with exclusively(unet), _set(arguments, {"ratio": 0.0, "generator": None} if arguments else {}):
        yield


@contextlib.contextmanager
def _set(values: dict[str, Any], others: Mapping[str, Any]) -> Iterator[None]:
    """`others` in the place of what `values` has under these names, and afterwards what was there."""
    before = {name: values[name] for name in others if name in values}
    try:
        values.update(others)
        yield
    finally:
        for name in others:
            values.pop(name, None)
        values.update(before)


def load(patchers: Sequence[Any]) -> None:
    """Brings patchers to their device by the memory management of the Forge that runs; nothing where there is none."""
    memory = memory_management()
    if memory is not None:
        memory.load_models_gpu(list(patchers))


def memory_management() -> Any:
    """The module of the Forge that runs; None where none does."""
    return next((sys.modules[name] for name in MEMORY if name in sys.modules), None)


def _computation_dtype(model: Any) -> torch.dtype:
    """What a Forge's UNet computes in: its parameters may be stored in another dtype."""
    if hasattr(model, "computation_dtype"):
        return model.computation_dtype
    return getattr(model, "manual_cast_dtype", None) or model.get_dtype()


def _with_transformers(conditioner: Any) -> list[Any]:
    """Of SDXL's embedders those that read text."""
    return [embedder for embedder in conditioner.embedders if hasattr(embedder, "encode_with_transformers")]


def _context_dim(unet: Any) -> int:
    first: Any = next(iter(spatial_transformers(unet).values()))
    width: int | None = getattr(first.transformer_blocks[0].attn2.to_k, "in_features", None)
    if width is None:
        raise not_readable("one in GGUF, as its layers do not say what they take")
    return width


def _in_channels(unet: Any) -> int:
    return next(iter(unet.input_blocks[0].children())).in_channels


def _dtype_of(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def _require_schedule(alphas: Any, unet: Any) -> None:
    if not isinstance(alphas, Tensor) or len(alphas) != schedule.NUM_TIMESTEPS:
        raise not_readable("one without a UNet" if unet is None else f"a {type(unet).__name__} of another schedule")


def _require_latents(latents: Tensor) -> None:
    if latents.ndim != 4 or latents.shape[1] != 4:
        raise InputError(f"Expected latents b 4 h w in model space, got {tuple(latents.shape)}.")
