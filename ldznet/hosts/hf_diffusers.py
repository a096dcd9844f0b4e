"""Stable Diffusion through diffusers: 1.x from a folder, a file or a loaded pipeline, 2.x and SDXL from a pipeline.
Nothing is ever fetched.

The one file that imports diffusers and transformers; `open_host` imports it when a source needs it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from .. import schedule
from ..clip_bpe import CONTEXT_LENGTH, Tokenizer, require_length
from ..contracts import Block, Conditioning, Observer, T, Taps, TapSpec
from ..errors import CheckpointError, HostError, InputError
from ..schedule import NUM_TIMESTEPS, alphas_cumprod
from ..shapes import PIXELS_PER_LATENT, Float, Int
from ..taps import extract_taps, spatial_transformers
from . import sdxl, single_file
from .families import INPAINTING_CHANNELS, family_of, no_head_fits, require_epsilon, require_sd1

SD1 = Path(__file__).parent / "sd1"  # what a single file lacks: SD 1.x's configurations, CLIP's merges

GREY = (0.8223, -0.6876, 0.6364, 0.1380)  # model-space latents of a grey image, ComfyUI's blank_inpaint_image_like

Tokenize = Callable[[Sequence[str]], list[list[int]]]


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
        text_encoder: Any,
        tokenize: Tokenize,
        alphas: Float[Tensor, " 1000"] | None = None,
        device: torch.device | None = None,
        ids: Callable[[str], list[int]] | None = None,
        two: sdxl.TwoEncoders | None = None,
    ) -> None:
        """`tokenize` gives 77 ids a phrase, `ids` those of any text alone; `alphas`: products of 1 - beta, None for
        SD's own; `two`: SDXL's text encoders. Raises HostError."""
        unet = _known_unet(unet)
        self.family = family_of(unet.config)
        self._ids, self._two = ids, two
        self._unet, self._vae, self._text_encoder, self._tokenize = unet, vae, text_encoder, tokenize
        self._alphas = alphas_cumprod() if alphas is None else alphas.to("cpu", torch.float64)
        self.specs: Mapping[str, TapSpec] = tap_specs(unet)
        self.context_dim: int = unet.config.cross_attention_dim
        self.device: torch.device = unet.device if device is None else device
        self.dtype: torch.dtype = unet.dtype

    @classmethod
    def from_folder(
        cls, folder: Path, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> DiffusersHost:
        """From a folder as `save_pretrained` writes it. Raises CheckpointError for one that lacks a part."""
        device, dtype = _placed(device, dtype)
        _require_unet(folder)
        scheduler = _scheduler(folder)
        tokenizer = Tokenizer.load(folder / "tokenizer")
        unet = _ready(_pretrained(UNet2DConditionModel, folder / "unet"), device, dtype)
        vae = _ready(_pretrained(AutoencoderKL, folder / "vae"), device, dtype)
        text_encoder = _ready(_pretrained(CLIPTextModel, folder / "text_encoder"), device, dtype)
        return cls(unet, vae, text_encoder, _each(tokenizer), _alphas(scheduler), ids=tokenizer.ids)

    @classmethod
    def from_single_file(
        cls,
        path: Path,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        configs: Path = SD1,
    ) -> DiffusersHost:
        """From a whole SD 1.x checkpoint, .safetensors or .ckpt. Raises CheckpointError that lists what does not fit.

        `configs` holds what such a file lacks: three configurations, and CLIP's merges.
        """
        device, dtype = _placed(device, dtype)
        with single_file.open_file(path) as file:
            facts = single_file.unet_facts(file.tensors)
            require_sd1(facts)
            require_epsilon(single_file.prediction_type(file.tensors))
            unet, vae, text_encoder = _unfilled(configs, facts["in_channels"])
            _fill(unet, convert_ldm_unet_checkpoint(single_file.read_part(file, single_file.UNET), unet.config))
            _fill(vae, convert_ldm_vae_checkpoint(single_file.read_part(file, single_file.VAE), vae.config))
            _fill_text_encoder(text_encoder, single_file.read_text_encoder(file))
        tokenizer = Tokenizer.from_merges(configs / "clip_merges.txt.gz")
        unet, vae, text_encoder = (_ready(module, device, dtype) for module in (unet, vae, text_encoder))
        return cls(unet, vae, text_encoder, _each(tokenizer), ids=tokenizer.ids)

    @classmethod
    def from_pipeline(cls, pipeline: Any) -> DiffusersHost:
        """From a loaded pipeline, with its own tokenizer (textual inversions included), where its modules run now."""
        if getattr(pipeline, "unet", None) is None:
            raise no_head_fits(f"a {type(pipeline).__name__}, which has no UNet")
        for part in ("vae", "text_encoder", "tokenizer"):
            if getattr(pipeline, part, None) is None:
                raise HostError(f"Expected a whole pipeline, got one with no {part}: load it with all its parts.")
        family = family_of(_known_unet(pipeline.unet).config)
        if family == "sd1":
            require_epsilon(pipeline.scheduler.config.get("prediction_type"))
        two = sdxl.TwoEncoders(pipeline, _pipeline_tokenize) if family == "sdxl" else None
        tokenize, ids = _pipeline_tokenize(pipeline, pipeline.tokenizer), _pipeline_ids(pipeline)
        device = getattr(pipeline, "_execution_device", None)  # an offloaded pipeline waits elsewhere
        alphas = _alphas(pipeline.scheduler)
        return cls(pipeline.unet, pipeline.vae, pipeline.text_encoder, tokenize, alphas, device, ids, two)

    @torch.no_grad()
    def encode_image(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 4 h/8 w/8"]:
        """Model-space latents of `pixels` in [-1, 1], sides in multiples of 8: the mode of the posterior, scaled."""
        if pixels.ndim != 4 or pixels.shape[1] != 3 or any(s % PIXELS_PER_LATENT for s in pixels.shape[2:]):
            raise InputError(f"Expected pixels b 3 h w with sides in multiples of 8, got {tuple(pixels.shape)}.")
        with evaluating(self._vae):
            encoded = self._vae.encode(pixels.to(self.device, self._vae.dtype))
        is_posterior = hasattr(encoded, "latent_dist")  # TAESD's latents come bare
        latents = encoded.latent_dist.mode() if is_posterior else encoded.latents
        return (latents * self._vae.config.scaling_factor).to(self.dtype)

    @torch.no_grad()
    def decode_latents(self, latents: Float[Tensor, "b 4 h w"]) -> Float[Tensor, "b 3 8*h 8*w"]:
        """`pixels`, about [-1, 1] and not clamped, of model-space latents."""
        _require_latents(latents)
        with evaluating(self._vae):
            scaled = latents.to(self.device, self._vae.dtype) / self._vae.config.scaling_factor
            return self._vae.decode(scaled, return_dict=False)[0].to(self.dtype)

    @torch.no_grad()
    def encode_text(self, phrases: Sequence[str]) -> Float[Tensor, "b 77 d"]:
        """CLIP's last hidden state after the final norm (SDXL: both encoders' before the last layer).

        Raises InputError with the count of over 75 tokens.
        """
        if self._two is not None:
            return self._two.condition(phrases, self.device, evaluating).context.to(self.dtype)
        ids = torch.tensor(self._tokenize(phrases), device=self.device)
        with evaluating(self._text_encoder):
            return self._text_encoder(ids)[0].to(self.dtype)

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
        if self._two is not None:
            raise HostError("Expected an SD 1.x or 2.x model for taps by context alone, got SDXL. Use `observe`.")
        run = self._pass(latents, timesteps, Conditioning(context))
        with evaluating(self._unet):
            return extract_taps(self._unet, blocks, run)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text of any length, without start, end and padding."""
        assert self._ids is not None
        return self._ids(text)

    def condition(self, prompts: Sequence[str]) -> Conditioning:
        """The context of each prompt, and SDXL's pooled text; over 75 tokens raise InputError with their count."""
        if self._two is not None:
            return self._two.condition(prompts, self.device, evaluating)
        return Conditioning(self.encode_text(prompts))

    @torch.no_grad()
    def observe(
        self,
        latents: Float[Tensor, "b 4 h w"],
        timesteps: Int[Tensor, " b"],
        conditioning: Conditioning,
        observer: Observer[T],
    ) -> T:
        """What `observer` yields, after a pass over noised latents inside it."""
        _require_latents(latents)
        run = self._pass(latents, timesteps, conditioning)
        with evaluating(self._unet), observer(self._unet) as seen:
            run()
        return seen

    def _pass(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Callable[[], Any]:
        sample = latents.to(self.device, self.dtype)
        extras = {} if self._two is None else {"added_cond_kwargs": sdxl.added(conditioning, sample)}
        if self._unet.config.in_channels == INPAINTING_CHANNELS:
            sample = _for_inpainting(sample)
        context, timesteps = conditioning.context.to(self.device, self.dtype), timesteps.to(self.device)
        run = self._unet.forward  # past `unet.compile()`, inside which hooks would not run
        return lambda: run(sample, timesteps, context, return_dict=False, **extras)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """`module` in evaluation mode inside; every submodule's own training flag is put back whatever happens."""
    in_training = [m for m in module.modules() if m.training]
    try:
        module.eval()
        yield
    finally:
        for m in in_training:
            m.training = True


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


def _require_unet(folder: Path) -> None:
    """Raises for a folder of another family by its configuration alone, before any weights are read."""
    index = folder / "model_index.json"
    if index.is_file() and not (folder / "unet").is_dir():
        raise no_head_fits(f"a {_read(index).get('_class_name', 'pipeline')}, which has no UNet")
    require_sd1(_read(folder / "unet" / "config.json"))


def _known_unet(unet: Any) -> Any:
    """`unet`, out of the wrapper of `torch.compile`, inside which hooks would not run. Raises HostError."""
    unet = getattr(unet, "_orig_mod", unet)
    is_unet = isinstance(unet, UNet2DConditionModel)
    if not is_unet:
        raise no_head_fits(f"a {type(unet).__name__}")
    family_of(unet.config)
    return unet


def _require_latents(latents: Tensor) -> None:
    if latents.ndim != 4 or latents.shape[1] != 4:
        raise InputError(f"Expected latents b 4 h w in model space, got {tuple(latents.shape)}.")


def _for_inpainting(latents: Float[Tensor, "b 4 h w"]) -> Float[Tensor, "b 9 h w"]:
    """With a mask of ones (all is to be painted) and a grey image behind it, as hosts do for text-to-image."""
    grey = latents.new_tensor(GREY)[None, :, None, None].expand_as(latents)
    return torch.cat([latents, torch.ones_like(latents[:, :1]), grey], dim=1)


def _placed(device: torch.device | str | None, dtype: torch.dtype | None) -> tuple[torch.device, torch.dtype]:
    device = torch.device("cpu" if device is None else device)
    return device, dtype or (torch.float32 if device.type == "cpu" else torch.float16)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"Expected a diffusers folder with {path.parent.name}/{path.name}, found none in {path}.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"Expected JSON in {path}, got: {error}.") from error


def _pretrained(kind: Any, folder: Path) -> Any:
    """A whole `kind` from its folder; half-precision weights are taken where there are no others."""
    files = list(folder.glob("*.safetensors")) + list(folder.glob("*.bin"))
    variant = None if any("." not in file.stem for file in files) else "fp16"
    try:
        model, report = kind.from_pretrained(folder, variant=variant, local_files_only=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"Expected the weights of a {kind.__name__} in {folder}, got: {error}") from error
    if report["missing_keys"]:
        raise CheckpointError(
            f"Expected a whole {kind.__name__} in {folder}, {_listed(report['missing_keys'])} missing."
        )
    return model


def _ready(module: Any, device: torch.device, dtype: torch.dtype) -> Any:
    nn.Module.to(module, device, dtype)  # diffusers' own `to` warns of any dtype
    return module.eval().requires_grad_(False)


def _unfilled(configs: Path, in_channels: int) -> tuple[Any, Any, Any]:
    """UNet, VAE and text encoder of `configs` on the meta device: nothing is initialised, nothing held twice."""
    with torch.device("meta"):
        return (
            UNet2DConditionModel.from_config(_read(configs / "unet.json"), in_channels=in_channels),
            AutoencoderKL.from_config(_read(configs / "vae.json")),
            CLIPTextModel(CLIPTextConfig(**_read(configs / "text_encoder.json"))),
        )


def _fill(module: Any, state: Mapping[str, Tensor]) -> None:
    """Makes the tensors of `state` those of a module on the meta device, if names and shapes are exactly its own."""
    expected = module.state_dict()
    wrong = [f"{name} missing" for name in expected if name not in state]
    wrong += [f"{name} unexpected" for name in state if name not in expected]
    for name in expected.keys() & state.keys():
        if state[name].shape != expected[name].shape:
            wrong.append(f"{name} {tuple(state[name].shape)} for {tuple(expected[name].shape)}")
    if wrong:
        raise CheckpointError(f"Expected the weights of SD 1.x's {type(module).__name__}, got {_listed(wrong)}.")
    module.load_state_dict(state, assign=True)


def _fill_text_encoder(model: Any, state: Mapping[str, Tensor]) -> None:
    prefix = "text_model." if hasattr(model, "text_model") else ""  # transformers 5.6 took it away
    _fill(model, {f"{prefix}{name}": tensor for name, tensor in state.items()})
    embeddings = getattr(model, "text_model", model).embeddings
    embeddings.position_ids = torch.arange(embeddings.position_ids.shape[-1])[None]  # in no file; was on meta


def _listed(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(sorted(names)[:most]) + more


def _scheduler(folder: Path) -> Any:
    config = _read(folder / "scheduler" / "scheduler_config.json")
    require_epsilon(config.get("prediction_type"))
    kind = getattr(diffusers, config.get("_class_name", ""), None)
    return None if kind is None else kind.from_config(config)


def _alphas(scheduler: Any) -> Tensor | None:
    alphas = getattr(scheduler, "alphas_cumprod", None)
    return alphas if isinstance(alphas, Tensor) and len(alphas) == NUM_TIMESTEPS else None


def _each(tokenizer: Tokenizer) -> Tokenize:
    return lambda phrases: [tokenizer.encode(phrase) for phrase in phrases]


def _spelled_out(pipeline: Any, tokenizer: Any, texts: list[str]) -> list[str]:
    """Texts with textual inversions of several vectors as as many tokens."""
    return pipeline.maybe_convert_prompt(texts, tokenizer) if hasattr(pipeline, "maybe_convert_prompt") else texts


def _pipeline_ids(pipeline: Any) -> Callable[[str], list[int]]:
    def ids(text: str) -> list[int]:
        texts = _spelled_out(pipeline, pipeline.tokenizer, [text])
        return pipeline.tokenizer(texts[0], add_special_tokens=False).input_ids

    return ids


def _pipeline_tokenize(pipeline: Any, tokenizer: Any) -> Tokenize:
    """A tokenizer of the pipeline behind our rule for over-long text: an error, where it would cut."""

    def tokenize(phrases: Sequence[str]) -> list[list[int]]:
        texts = _spelled_out(pipeline, tokenizer, list(phrases))
        rows = tokenizer(texts, padding="max_length", max_length=CONTEXT_LENGTH, truncation=False).input_ids
        for phrase, row in zip(phrases, rows, strict=True):
            require_length(phrase, len(row) - 2)
        return rows

    return tokenize
