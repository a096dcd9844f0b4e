"""As much of comfy as ldznet/hosts/comfyui.py asks for, over the tiny world's own modules, and a sampler.

With it every node's `execute` runs where there is no ComfyUI. Written from ComfyUI's conventions: x = latents + sigma ·
noise, a UNet that gets x / sqrt(sigma² + 1) and the timestep nearest to sigma, latents times 0.18215, wrappers around
a run and around each UNet call. What it computes is held against the library's own host in test_execute.py, and the
same numbers come from a real ComfyUI in test_host.py.
"""

from __future__ import annotations

import contextlib
import enum
import itertools
import re
import sys
import types
import uuid
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ldznet.config import UNetConfig
from ldznet.models import UNet
from ldznet.models.layers import SpatialTransformer
from ldznet.taps import spatial_transformers
from ldznet.tinyworld.text import TextConfig, TextEncoder

SCALE = 0.18215
CPU = torch.device("cpu")
ALPHAS = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
WRAPPED = enum.Enum("WrappersMP", ["OUTER_SAMPLE", "SAMPLER_SAMPLE", "PREDICT_NOISE", "DIFFUSION_MODEL"])


class Executor:
    """What a wrapper is given: calls the next one, or `inner` after the last."""

    def __init__(self, inner: Callable[..., Any], class_obj: Any, wrappers: Sequence[Callable[..., Any]]) -> None:
        self.inner, self.class_obj, self.wrappers = inner, class_obj, wrappers

    def __call__(self, *args: Any, **named: Any) -> Any:
        if not self.wrappers:
            return self.inner(*args, **named)
        return self.wrappers[0](Executor(self.inner, self.class_obj, self.wrappers[1:]), *args, **named)


class UNetModel(UNet):
    """The tiny UNet under ComfyUI's name and call."""

    def __init__(self, config: dict[str, Any]) -> None:
        same = ("in_channels", "out_channels", "model_channels", "num_heads", "context_dim")
        levels = {"channel_mult": tuple(config["channel_mult"]), "num_res_blocks": config["num_res_blocks"][0]}
        super().__init__(UNetConfig(**{name: config[name] for name in same}, **levels))
        for transformer in self.modules():
            if isinstance(transformer, SpatialTransformer):
                transformer.in_channels = transformer.proj_in.in_channels

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, transformer_options: Any = None) -> Tensor:
        """Inside the wrappers of UNet calls that `transformer_options` names."""
        options = transformer_options or {}
        inner = super().forward
        plain = Executor(lambda x, t, context, options: inner(x, t.long(), context), self, options.get("wrappers", ()))
        with self._patched({**options, "original_shape": list(x.shape)}):
            return plain(x, timesteps, context, options)

    @contextlib.contextmanager
    def _patched(self, options: dict[str, Any]) -> Iterator[None]:
        """With the patches around each cross-attention that `options` name."""
        patches, handles = options.get("patches", {}), []
        for name, transformer in spatial_transformers(self).items() if patches else ():
            stage, _, number = name.partition(".")
            extra = {**options, "block": (stage, int(number)), "block_index": 0}

            def enter(module: Any, args: Any, extra: Any = extra) -> Any:
                n, context = args
                for patch in patches.get("attn2_patch", ()):
                    n, context, _ = patch(n, context, context, extra)
                return n, context

            def leave(module: Any, args: Any, out: Any, extra: Any = extra) -> Any:
                for patch in patches.get("attn2_output_patch", ()):
                    out = patch(out, extra)
                return out

            attention: Any = transformer.transformer_blocks[0]
            handles += [attention.attn2.register_forward_pre_hook(enter), attention.attn2.register_forward_hook(leave)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class ModelSampling:
    """Noise levels of SD's 1000 timesteps."""

    def __init__(self) -> None:
        self.sigmas = ((1 - ALPHAS) / ALPHAS).sqrt().float()

    def sigma(self, timestep: Tensor) -> Tensor:
        return self.sigmas[timestep.long()]

    def timestep(self, sigma: Tensor) -> Tensor:
        return (sigma.flatten()[None].log() - self.sigmas.log()[:, None]).abs().argmin(0).view(sigma.shape)

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latents: Tensor) -> Tensor:
        return latents + sigma * noise


class BaseModel(nn.Module):
    """A UNet that predicts the noise, with its schedule."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.latent_format = config.latent_format()
        self.model_config, self.model_sampling = config, ModelSampling()
        self.diffusion_model = UNetModel(config.unet_config).eval().requires_grad_(False)

    def process_latent_in(self, latents: Tensor) -> Tensor:
        return latents * SCALE

    def process_latent_out(self, latents: Tensor) -> Tensor:
        return latents / SCALE

    def memory_required(self, shape: Sequence[int]) -> float:
        return 0.0

    def extra_conds(self, *, cross_attn: Tensor, **_: Any) -> dict[str, Any]:
        return {"c_crossattn": SimpleNamespace(cond=cross_attn)}

    def apply_model(self, x: Tensor, sigma: Tensor, c_crossattn: Tensor, transformer_options: Any = None) -> Tensor:
        """The estimate of the clean latents."""
        level = sigma.view(-1, 1, 1, 1)
        timesteps = self.model_sampling.timestep(sigma).float()
        noise = self.diffusion_model(x / (level**2 + 1).sqrt(), timesteps, c_crossattn, transformer_options)
        return x - level * noise


class ModelPatcher:
    """A module with wrappers."""

    def __init__(self, model: nn.Module, load_device: Any = CPU, offload_device: Any = CPU) -> None:
        self.model, self.load_device = model, load_device
        self.wrappers: dict[Any, list[Any]] = {}
        self.additional: dict[str, list[Any]] = {}

    def clone(self) -> ModelPatcher:
        other = ModelPatcher(self.model, self.load_device)
        other.additional = dict(self.additional)
        other.wrappers = {kind: list(wrappers) for kind, wrappers in self.wrappers.items()}
        return other

    def get_model_object(self, name: str) -> Any:
        return getattr(self.model, name)

    def add_wrapper_with_key(self, kind: Any, key: str, wrapper: Any) -> None:
        self.wrappers.setdefault(kind, []).append(wrapper)

    def set_additional_models(self, key: str, models: list[Any]) -> None:
        self.additional[key] = models


class SD15Latents:
    """A latent format without colours of its own."""

    latent_channels = 4
    latent_rgb_factors = latent_rgb_factors_bias = None


class SD15:
    """A model's configuration; subclasses give `unet_config`."""

    def __init__(self, unet_config: dict[str, Any]) -> None:
        self.unet_config = unet_config

    def set_inference_dtype(self, dtype: Any, cast: Any) -> None:
        pass

    def get_model(self, state: Any, prefix: str, device: Any = None) -> BaseModel:
        return BaseModel(self)


class SDTokenizer:
    """Words, each of one token or more, at weight 1 but for "(words:1.3)"; escaped brackets are letters."""

    PART = re.compile(
        r"(?<!\\)\((?P<inner>(?:\\.|[^()\\])*?)(?::(?P<weight>[\d.]+))?(?<!\\)\)|(?P<plain>(?:\\.|[^()\\])+)"
    )

    def __init__(self, path: str, *, tokenizer_class: Any, **_: Any) -> None:
        self.words = tokenizer_class.from_pretrained(path)

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False) -> dict[str, Any]:
        start, *_, end = self.words("")["input_ids"]
        numbered: list[tuple[int, float, int]] = []
        for part in self.PART.finditer(text):
            weight = float(part["weight"] or 1.1) if part["inner"] is not None else 1.0
            for word in re.sub(r"\\([()])", r"\1", part["inner"] or part["plain"] or "").split():
                number = numbered[-1][2] + 1 if numbered else 1
                numbered += [(token, weight, number) for token in self.words(word)["input_ids"][1:-1]]
        rows = []
        for i in range(0, max(1, len(numbered)), 75):
            row = [(start, 1.0, 0), *numbered[i : i + 75], (end, 1.0, 0)]
            rows.append(row + [(end, 1.0, 0)] * (77 - len(row)))
        return {"l": rows if return_word_ids else [[token[:2] for token in row] for row in rows]}


class SDClipModel(nn.Module):
    """A text encoder at a configuration's sizes."""

    def __init__(self, *, textmodel_json_config: dict[str, Any], **_: Any) -> None:
        super().__init__()
        self.transformer = _Transformer(textmodel_json_config["vocab_size"])


class _Transformer(TextEncoder):
    """The tiny text encoder, with the projection that ComfyUI's has."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__(TextConfig(vocabulary))
        self.text_projection = nn.Linear(self.config.hidden_size, self.config.hidden_size, bias=False)

    def get_input_embeddings(self) -> Any:
        return self.text_model["embeddings"].token_embedding


class SD1ClipModel(nn.Module):
    """SD 1.x has one text encoder."""

    def __init__(self, clip_model: Any, **options: Any) -> None:
        super().__init__()
        self.clip_l = clip_model(**options).eval().requires_grad_(False)


class CLIP:
    """A tokenizer and a text encoder. Weights lengthen a token's row from the empty text's."""

    def __init__(self, target: Any, model_options: Any = None) -> None:
        self.tokenizer, self.cond_stage_model = target.clip(), target.model(model_options=model_options)
        self.layer_idx: int | None = None

    def clone(self) -> CLIP:
        other = object.__new__(CLIP)
        other.__dict__ = dict(self.__dict__)
        return other

    def clip_layer(self, layer: int | None) -> None:
        self.layer_idx = layer

    def tokenize(self, text: str, return_word_ids: bool = False) -> Any:
        return self.tokenizer.tokenize_with_weights(text, return_word_ids)

    @torch.no_grad()
    def encode_from_tokens(self, tokens: Any, return_dict: bool = False) -> Any:
        encode = self.cond_stage_model.clip_l.transformer
        ids = torch.tensor([[token for token, _ in row] for row in tokens["l"]])
        weights = torch.tensor([[weight for _, weight in row] for row in tokens["l"]])[..., None]
        empty = encode(torch.tensor([[token for token, _ in self.tokenize("")["l"][0]]]))
        cond = (empty + (encode(ids) - empty) * weights) if (weights != 1).any() else encode(ids)
        cond = cond.flatten(0, 1)[None]
        return {"cond": cond, "pooled_output": cond[:, -1]} if return_dict else cond

    def encode_from_tokens_scheduled(self, tokens: Any) -> list[Any]:
        out = self.encode_from_tokens(tokens, return_dict=True)
        return [[out.pop("cond"), out]]


class VAE:
    """Pictures b h w c in [0, 1], cut about their middle to multiples of 8, to latents before the scale factor."""

    def __init__(self, sd: Any, config: Any, dtype: Any) -> None:
        self.device, self.first_stage_model = CPU, nn.Identity()

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        (top, height), (left, width) = ((side % 8 // 2, side // 8 * 8) for side in image.shape[1:3])
        image = image[:, top : top + height, left : left + width, :3]
        return self.first_stage_model.encode(image.movedim(-1, 1) * 2 - 1)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        return ((self.first_stage_model.decode(latents) + 1) / 2).clamp(0, 1).movedim(1, -1)


class GraphBuilder:
    """The nodes that a node expands to; links are [id, output]."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict[str, Any]] = {}

    def node(self, class_type: str, **inputs: Any) -> Any:
        name = f"inner.{len(self.nodes) + 1}"
        self.nodes[name] = {"class_type": class_type, "inputs": inputs}
        return SimpleNamespace(id=name, out=lambda index: [name, index])

    def finalize(self) -> dict[str, Any]:
        return self.nodes


class ProgressBar:
    """Keeps what it was told, of all bars."""

    told: ClassVar[list[tuple[int, int]]] = []

    def __init__(self, total: int) -> None:
        self.total = total

    def update_absolute(self, value: int, total: int | None = None) -> None:
        self.told.append((value, total or self.total))


class Interrupted(Exception):
    """The user has cancelled."""


STATE = SimpleNamespace(cancelled=False, executing=None)  # what tests set


def _throw_if_cancelled() -> None:
    if STATE.cancelled:
        raise Interrupted


@torch.no_grad()
def sample(model: Any, positive: list[Any], negative: list[Any], latent: Tensor, steps: int = 6, seed: int = 1) -> Any:
    """Euler over `steps` evenly spaced timesteps, guidance 5: latents before the scale factor, as a KSampler gives."""
    sampling = model.get_model_object("model_sampling")
    timesteps = torch.linspace(999, 0, steps).round().long()
    sigmas = torch.cat([sampling.sigma(timesteps), torch.zeros(1)])
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
    guider = Guider(model, positive, negative)
    run = Executor(guider.outer_sample, guider, model.wrappers.get(WRAPPED.OUTER_SAMPLE, []))
    return run(noise, latent, None, sigmas, None, None, True, seed)


class Guider:
    """Guidance of 5 over conditionings, each over the whole picture or weighed by its mask."""

    def __init__(self, model: Any, positive: list[Any], negative: list[Any]) -> None:
        self.model_patcher, self.scale = model, 5
        self.conds = {
            kind: [{"uuid": uuid.uuid4(), "cross_attn": part[0], "model_conds": {}, **part[1]} for part in parts]
            for kind, parts in (("positive", positive), ("negative", negative))
        }

    def outer_sample(
        self, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, mask: Any, *rest: Any
    ) -> Tensor:
        """One run; latents before and after it are before the scale factor."""
        base, callback = self.model_patcher.model, rest[0]
        x = base.process_latent_in(latent)
        loop = Executor(self._euler, self, self.model_patcher.wrappers.get(WRAPPED.SAMPLER_SAMPLE, []))
        return base.process_latent_out(loop(self, sigmas, {}, callback, noise, x, mask, True))

    def _euler(
        self, _: Any, sigmas: Tensor, extra: Any, callback: Any, noise: Tensor, x: Tensor, mask: Any, quiet: bool
    ) -> Tensor:
        predict = Executor(self.predict_noise, self, self.model_patcher.wrappers.get(WRAPPED.PREDICT_NOISE, []))
        x = x + noise * sigmas[0]
        for i, (sigma, after) in enumerate(itertools.pairwise(sigmas)):
            denoised = predict(x, sigma.expand(len(x)), {}, 0)
            if callback is not None:
                callback(i, denoised, x, len(sigmas) - 1)
            x = denoised + (x - denoised) / sigma * after
        return x

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: Any, seed: Any) -> Tensor:
        """The guided estimate of the clean latents."""
        both = [*self.conds["positive"], *self.conds["negative"]]
        options = {
            **model_options.get("transformer_options", {}),
            "uuids": [cond["uuid"] for cond in both],
            "wrappers": self.model_patcher.wrappers.get(WRAPPED.DIFFUSION_MODEL, []),
        }
        context = torch.cat([cond["cross_attn"].expand(len(x), -1, -1) for cond in both])
        every = timestep.repeat(len(both))
        parts = self.model_patcher.model.apply_model(x.repeat(len(both), 1, 1, 1), every, context, options)
        rows, count = parts.chunk(len(both)), len(self.conds["positive"])
        wanted, unwanted = (self._weighed(rows[side], both[side]) for side in (slice(count), slice(count, None)))
        return unwanted + self.scale * (wanted - unwanted)

    def _weighed(self, rows: Sequence[Tensor], conds: Sequence[Any]) -> Tensor:
        weights = [cond["mask"][:, None] if "mask" in cond else torch.ones(1, 1, 1, 1) for cond in conds]
        return sum(r * w for r, w in zip(rows, weights, strict=True)) / sum(weights)


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int, **_: Any) -> Tensor:
    parts = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    return nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)


def modules() -> dict[str, ModuleType]:
    """The modules by name, for `sys.modules`."""
    found: dict[str, ModuleType] = {}

    def module(name: str, **content: Any) -> None:
        found[name] = types.ModuleType(name)
        vars(found[name]).update(content)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(found[parent], child, found[name])

    for name in ("comfy", "comfy.ldm", "comfy.ldm.models", "comfy.ldm.modules", "comfy_execution"):
        module(name)
    module("comfy.ldm.modules.attention", optimized_attention=_attention)
    module("comfy.ops", manual_cast=nn)
    module("comfy.latent_formats", SD15=SD15Latents)
    module("comfy.utils", ProgressBar=ProgressBar)
    names = {"SAMPLERS": ["euler", "ddim"], "SCHEDULERS": ["normal", "ddim_uniform"]}
    module("comfy.samplers", KSampler=SimpleNamespace(**names))
    module("comfy.patcher_extension", WrappersMP=WRAPPED)
    module("comfy.model_patcher", ModelPatcher=ModelPatcher)
    module("comfy.sd", CLIP=CLIP, VAE=VAE)
    module(
        "comfy.sd1_clip",
        SD1Tokenizer=lambda tokenizer: tokenizer(),
        SD1ClipModel=SD1ClipModel,
        SDTokenizer=SDTokenizer,
        SDClipModel=SDClipModel,
    )
    module("comfy.supported_models", SD15=SD15)
    module("comfy.supported_models_base", ClipTarget=lambda clip, model: SimpleNamespace(clip=clip, model=model))
    module("comfy.ldm.models.autoencoder", AutoencoderKL=lambda **_: nn.Identity())
    module(
        "comfy.model_management",
        get_torch_device=lambda: CPU,
        unet_offload_device=lambda: CPU,
        vae_offload_device=lambda: CPU,
        intermediate_device=lambda: CPU,
        unet_dtype=lambda device, supported_dtypes: torch.float32,
        module_size=lambda module: 0,
        load_models_gpu=lambda models, memory_required=0: None,
        throw_exception_if_processing_interrupted=_throw_if_cancelled,
    )
    module("comfy_execution.graph_utils", GraphBuilder=GraphBuilder)
    module("comfy_execution.utils", get_executing_context=lambda: STATE.executing)
    return found


def install() -> None:
    """Puts the modules where a host would have its own."""
    sys.modules.update(modules())
