"""Models of diffusers: SD 1.x, 2.x and SDXL from a folder, a file or a loaded pipeline, SD 3 and Flux.1 from a folder
or a pipeline. Nothing is fetched.

The one file that imports diffusers and transformers; `open_host` imports it when a source needs it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from torch import Tensor, nn
from transformers import (  # type: ignore[attr-defined]  # T5TokenizerFast is an alias from transformers 5 on
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5EncoderModel,
    T5TokenizerFast,
)

from .. import schedule
from ..clip_bpe import Tokenizer
from ..contracts import Block, Conditioning, Host, Observer, T, Taps, TapSpec
from ..errors import CheckpointError, HostError, InputError, cause
from ..images import require_pixels
from ..schedule import NUM_TIMESTEPS, alphas_cumprod
from ..shapes import Float, Int
from ..taps import extract_taps, spatial_transformers
from . import single_file
from .encoders import OneEncoder, Texts, TwoEncoders, Words, added, evaluating
from .families import INPAINTING_CHANNELS, family_of, inpainting_part, no_host, require_epsilon
from .hf_diffusers_joint import Encoder, Form, JointDiffusersHost, form_of
from .loading import fill, fill_text_encoder, mode_of, placed, pretrained, read_json, ready, renamed

CONFIGURATIONS = Path(__file__).parent  # sd1, sd2 and sdxl: what a single file lacks

TRANSFORMERS: dict[str, Any] = {  # by the family of the transformer, its class, and those of its encoders
    "sd3": (SD3Transformer2DModel, (CLIPTextModelWithProjection, CLIPTextModelWithProjection, T5EncoderModel)),
    "flux": (FluxTransformer2DModel, (CLIPTextModel, T5EncoderModel)),
}

Device = torch.device | str | None


def open_folder(folder: Path, *, device: Device = None, dtype: torch.dtype | None = None) -> Host:
    """The host of a folder as `save_pretrained` writes it. Raises HostError and CheckpointError."""
    if (folder / "transformer").is_dir():
        return _joint_folder(folder, *placed(device, dtype))
    return DiffusersHost.from_folder(folder, device=device, dtype=dtype)


def open_pipeline(pipeline: Any) -> Host:
    """The host of a loaded pipeline, with its own tokenizers, where its modules run now. Raises HostError."""
    if getattr(pipeline, "transformer", None) is None:
        return DiffusersHost.from_pipeline(pipeline)
    network = getattr(pipeline.transformer, "_orig_mod", pipeline.transformer)
    form = form_of(type(network).__name__, network.config)
    encoders = [
        _joint_encoder(getattr(pipeline, name), getattr(pipeline, _tokenizer(name)))
        for name in _present(form, lambda part: getattr(pipeline, part, None) is not None)
    ]
    device = getattr(pipeline, "_execution_device", None)  # an offloaded pipeline waits elsewhere
    return JointDiffusersHost(network, pipeline.vae, encoders, pipeline.scheduler.config, device)


def _joint_folder(folder: Path, device: torch.device, dtype: torch.dtype) -> JointDiffusersHost:
    config = read_json(folder / "transformer" / "config.json")
    form = form_of(str(config.get("_class_name")), config)  # before any weights are read
    kind, kinds = TRANSFORMERS[form.family]
    names = _present(form, lambda part: (folder / part).is_dir())
    words = [_joint_tokenizer(folder / _tokenizer(name), kinds[form.encoders.index(name)]) for name in names]
    models = [pretrained(kinds[form.encoders.index(name)], folder / name) for name in names]
    encoders = [_joint_encoder(ready(m, device, dtype), t) for m, t in zip(models, words, strict=True)]
    network, vae = pretrained(kind, folder / "transformer"), pretrained(AutoencoderKL, folder / "vae")
    schedule = read_json(folder / "scheduler" / "scheduler_config.json")
    return JointDiffusersHost(ready(network, device, dtype), ready(vae, device, dtype), encoders, schedule)


def _present(form: Form, has: Callable[[str], bool]) -> list[str]:
    """The encoders of a form that are there. Raises HostError where one is missing that may not be."""
    names = [name for name in form.encoders if has(name) and has(_tokenizer(name))]
    needed = form.encoders[:-1] if form.t5_may_miss else form.encoders
    for part in (*needed, "vae"):
        if part not in (*names, "vae") or not has(part):
            raise HostError(f"Expected a whole pipeline, got one with no {part}: load it with all its parts.")
    return names


def _joint_tokenizer(folder: Path, encoder: Any) -> Any:
    """CLIP's or T5's, as its encoder is."""
    kind = T5TokenizerFast if encoder is T5EncoderModel else CLIPTokenizer
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of what is in the files, and of what is not
        raise CheckpointError(
            f"Expected a tokenizer in {folder}, got: {cause(error)} Download the folder again."
        ) from error


def _joint_encoder(model: Any, tokenizer: Any) -> Encoder:
    return (Encoder.t5 if model.config.model_type == "t5" else Encoder.clip)(model, tokenizer)


class DiffusersHost:
    """A model of diffusers as a host that shows its attention (`contracts.AttentionHost`).

    Tensors come back on `device` as `dtype`.

    The modules are used where they are and left as they were: weights, training flags, hooks. Move a pipeline before
    it is opened, not after.
    """

    def __init__(
        self,
        unet: Any,
        vae: Any,
        texts: Texts,
        alphas: Float[Tensor, " 1000"] | None = None,
        device: torch.device | None = None,
    ) -> None:
        """`alphas`: products of 1 - beta, None for SD's own; `device`: the UNet's if None. Raises HostError."""
        self._unet = _known_unet(unet)
        self.family = family_of(self._unet.config)
        self._vae, self._texts = vae, texts
        self._alphas = alphas_cumprod() if alphas is None else alphas.to("cpu", torch.float64)
        self.specs: dict[str, TapSpec] = tap_specs(self._unet)
        self.context_dim: int = self._unet.config.cross_attention_dim
        self.device: torch.device = self._unet.device if device is None else device
        self.dtype: torch.dtype = self._unet.dtype

    @property
    def unet(self) -> nn.Module:
        """The denoising UNet itself."""
        return self._unet

    @classmethod
    def from_folder(cls, folder: Path, *, device: Device = None, dtype: torch.dtype | None = None) -> DiffusersHost:
        """From a folder as `save_pretrained` writes it. Raises CheckpointError for one that lacks a part."""
        where = placed(device, dtype)
        family = _family_of_folder(folder)
        scheduler = _scheduler(folder, family)
        words = [Words.of(Tokenizer.load(folder / _tokenizer(name))) for name in _encoders(family)]
        unet = ready(pretrained(UNet2DConditionModel, folder / "unet"), *where)
        vae = ready(pretrained(AutoencoderKL, folder / "vae"), *where)
        encoders = [ready(pretrained(kind, folder / name), *where) for name, kind in _encoders(family).items()]
        return cls(unet, vae, _texts(encoders, words), _alphas(scheduler))

    @classmethod
    def from_single_file(
        cls, path: Path, *, device: Device = None, dtype: torch.dtype | None = None, configs: Path = CONFIGURATIONS
    ) -> DiffusersHost:
        """From a whole checkpoint, .safetensors or .ckpt. Raises CheckpointError that lists what does not fit.

        `configs` holds what such a file lacks, as `single_file.CONFIGURATIONS` names it.
        """
        where = placed(device, dtype)
        with single_file.open_file(path) as file:
            facts = single_file.unet_facts(file.tensors)
            family = family_of(facts)
            require_epsilon(family, single_file.prediction_type(file.tensors))
            known = {name: configs / rest for name, rest in single_file.CONFIGURATIONS[family].items()}
            unet = _unfilled(UNet2DConditionModel, known["unet"], in_channels=facts["in_channels"])
            part = single_file.read_part(file, single_file.UNET)
            fill(unet, renamed(convert_ldm_unet_checkpoint, part, unet.config))
            vae = _unfilled(AutoencoderKL, known["vae"])
            part = single_file.read_part(file, single_file.VAE)
            fill(vae, renamed(convert_ldm_vae_checkpoint, part, vae.config))
            encoders = [_encoder(file, encoder, known[encoder.name]) for encoder in single_file.ENCODERS[family]]
        tokenizers = [Tokenizer.from_merges(configs / single_file.MERGES, e.pad) for e in single_file.ENCODERS[family]]
        texts = _texts([ready(encoder, *where) for encoder in encoders], [Words.of(t) for t in tokenizers])
        return cls(ready(unet, *where), ready(vae, *where), texts)

    @classmethod
    def from_pipeline(cls, pipeline: Any) -> DiffusersHost:
        """From a loaded pipeline, with its own tokenizer (textual inversions included), where its modules run now."""
        if getattr(pipeline, "unet", None) is None:
            raise no_host(f"a {type(pipeline).__name__}, which has no UNet")
        family = family_of(_known_unet(pipeline.unet).config)
        names = list(_encoders(family))
        for part in ("vae", *names, *map(_tokenizer, names)):
            if getattr(pipeline, part, None) is None:
                raise HostError(f"Expected a whole pipeline, got one with no {part}: load it with all its parts.")
        require_epsilon(family, pipeline.scheduler.config.get("prediction_type"))
        encoders = [getattr(pipeline, name) for name in names]
        words = [Words.of_pipeline(pipeline, getattr(pipeline, _tokenizer(name))) for name in names]
        device = getattr(pipeline, "_execution_device", None)  # an offloaded pipeline waits elsewhere
        return cls(pipeline.unet, pipeline.vae, _texts(encoders, words), _alphas(pipeline.scheduler), device)

    @torch.no_grad()
    def encode_image(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 4 h/8 w/8"]:
        """Model-space latents of `pixels` in [-1, 1], sides in multiples of 8: the mode of the posterior, scaled."""
        require_pixels(pixels)
        with evaluating(self._vae), self._exact_vae():
            latents = mode_of(self._vae, pixels.to(self.device))
        return (latents * self._vae.config.scaling_factor).to(self.dtype)

    @torch.no_grad()
    def decode_latents(self, latents: Float[Tensor, "b 4 h w"]) -> Float[Tensor, "b 3 8*h 8*w"]:
        """`pixels`, about [-1, 1] and not clamped, of model-space latents."""
        _require_latents(latents)
        with evaluating(self._vae), self._exact_vae():
            scaled = latents.to(self.device, self._vae.dtype) / self._vae.config.scaling_factor
            return self._vae.decode(scaled, return_dict=False)[0].to(self.dtype)

    def encode_text(self, phrases: Sequence[str]) -> Float[Tensor, "b 77 d"]:
        """CLIP's last hidden state after the final norm (SDXL: both encoders' before the last layer).

        Raises InputError with the count of over 75 tokens.
        """
        return self.condition(phrases).context.to(self.dtype)

    def add_noise(
        self, latents: Float[Tensor, "b 4 h w"], noise: Float[Tensor, "b 4 h w"], timesteps: Int[Tensor, " b"]
    ) -> Float[Tensor, "b 4 h w"]:
        """sqrt(a_t) * latents + sqrt(1 - a_t) * noise by the model's own schedule, in the dtype of `latents`."""
        return schedule.add_noise(latents, noise, timesteps, self._alphas)

    @torch.no_grad()
    def extract(
        self,
        latents: Float[Tensor, "b 4 h w"],
        timesteps: Int[Tensor, " b"],
        context: Float[Tensor, "b n d"],
        blocks: Sequence[str],
    ) -> Taps:
        """Taps of one pass over noised latents, ended after the last; an inpainting UNet is told to repaint all."""
        _require_latents(latents)
        if self.family == "sdxl":
            raise HostError("Expected an SD 1.x or 2.x model for taps by context alone, got SDXL. Use `observe`.")
        run = self._pass(latents, timesteps, Conditioning(context))
        with evaluating(self._unet):
            return extract_taps(self._unet, blocks, run)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text of any length, without start, end and padding."""
        return self._texts.ids(text)

    def condition(self, prompts: Sequence[str]) -> Conditioning:
        """The context of each prompt, and SDXL's pooled text; over 75 tokens raise InputError with their count."""
        return self._texts.condition(prompts, self.device)

    def observe(
        self,
        latents: Float[Tensor, "b 4 h w"],
        timesteps: Int[Tensor, " b"],
        conditioning: Conditioning,
        observer: Observer[T],
    ) -> T:
        """What `observer` yields, after a pass over noised latents inside it; gradients pass where they are on."""
        _require_latents(latents)
        run = self._pass(latents, timesteps, conditioning)
        with evaluating(self._unet), observer(self._unet) as seen:
            run()
        return seen

    def recompute(self) -> None:
        """From here on the UNet keeps less for gradients and computes it again when they are (Chen et al.,
        arXiv 1604.06174): a third more work, a fraction of the memory."""
        self._unet.enable_gradient_checkpointing()

    def _pass(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Callable[[], Any]:
        sample = latents.to(self.device, self.dtype)
        extras = {"added_cond_kwargs": added(conditioning, sample)} if self.family == "sdxl" else {}
        if self._unet.config.in_channels == INPAINTING_CHANNELS:
            sample = torch.cat([sample, inpainting_part(sample)], dim=1)
        context, timesteps = conditioning.context.to(self.device, self.dtype), timesteps.to(self.device)
        run = self._unet.forward  # past `unet.compile()`, inside which hooks would not run
        return lambda: run(sample, timesteps, context, return_dict=False, **extras)

    @contextlib.contextmanager
    def _exact_vae(self) -> Iterator[None]:
        """SDXL's VAE overflows in float16: it works in float32 inside, where its configuration says so."""
        before = self._vae.dtype
        overflows = self.family == "sdxl" and before == torch.float16 and self._vae.config.get("force_upcast", False)
        try:
            if overflows:
                nn.Module.to(self._vae, torch.float32)
            yield
        finally:
            if overflows:
                nn.Module.to(self._vae, before)


def tap_specs(unet: Any) -> dict[str, TapSpec]:
    """Every tap of a diffusers UNet: channels from its transformer, stride from the level which that is in."""
    last = len(unet.down_blocks) - 1
    per_level = unet.config.layers_per_block + 1  # blocks as the LDM counts them: see taps.block_of

    def level(block: Block) -> int:
        if block.stage == "middle":
            return last
        return (block.index - 1) // per_level if block.stage == "input" else last - block.index // per_level

    modules: dict[str, Any] = spatial_transformers(unet)
    return {name: TapSpec(name, m.in_channels, 2 ** level(Block.parse(name))) for name, m in modules.items()}


def _require_latents(latents: Tensor) -> None:
    if latents.ndim != 4 or latents.shape[1] != 4:
        raise InputError(f"Expected latents b 4 h w in model space, got {tuple(latents.shape)}.")


def _family_of_folder(folder: Path) -> str:
    """By the UNet's configuration alone: other models are refused before any weights are read."""
    index = folder / "model_index.json"
    if index.is_file() and not (folder / "unet").is_dir():
        raise no_host(f"a {read_json(index).get('_class_name', 'pipeline')}, which has no UNet")
    return family_of(read_json(folder / "unet" / "config.json"))


def _known_unet(unet: Any) -> Any:
    """`unet`, out of the wrapper of `torch.compile`, inside which hooks would not run. Raises HostError."""
    unet = getattr(unet, "_orig_mod", unet)
    if not isinstance(unet, UNet2DConditionModel):
        raise no_host(f"a {type(unet).__name__}")
    return unet


def _encoders(family: str) -> dict[str, Any]:
    """A family's text encoders by their names in a pipeline and its folder."""
    second = {"text_encoder_2": CLIPTextModelWithProjection} if family == "sdxl" else {}
    return {"text_encoder": CLIPTextModel, **second}


def _tokenizer(encoder: str) -> str:
    return encoder.replace("text_encoder", "tokenizer")


def _texts(encoders: Sequence[Any], words: Sequence[Words]) -> Texts:
    return OneEncoder(encoders[0], words[0]) if len(encoders) == 1 else TwoEncoders(encoders, words)


def _encoder(file: Any, encoder: single_file.Encoder, config: Path) -> Any:
    """One of a single file's text encoders."""
    kind = CLIPTextModelWithProjection if encoder.projects else CLIPTextModel
    settings = CLIPTextConfig(**read_json(config))
    with torch.device("meta"):
        model = kind(settings)
    fill_text_encoder(model, single_file.read_text_encoder(file, encoder, settings.num_hidden_layers))
    return model


def _unfilled(kind: Any, config: Path, **settings: Any) -> Any:
    """A network on the meta device: nothing is initialised, nothing held twice."""
    with torch.device("meta"):
        return kind.from_config(read_json(config), **settings)


def _scheduler(folder: Path, family: str) -> Any:
    config = read_json(folder / "scheduler" / "scheduler_config.json")
    require_epsilon(family, config.get("prediction_type"))
    kind = getattr(diffusers, config.get("_class_name", ""), None)
    return None if kind is None else kind.from_config(config)


def _alphas(scheduler: Any) -> Tensor | None:
    alphas = getattr(scheduler, "alphas_cumprod", None)
    return alphas if isinstance(alphas, Tensor) and len(alphas) == NUM_TIMESTEPS else None
