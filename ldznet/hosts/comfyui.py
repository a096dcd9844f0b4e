"""A model that ComfyUI has loaded, as a host; heads in its memory management; the tiny world as its own objects.

The one file that imports comfy, and only `nodes/` may import it. Weights belong to ComfyUI: they move by its rules,
LoRAs stay applied, and nothing here outlives a call except the objects that it returns.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management as memory
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.patcher_extension import WrappersMP
from comfy_execution.graph_utils import GraphBuilder
from comfy_execution.utils import get_executing_context
from torch import Tensor

from ..checkpoints import load_head
from ..clip_bpe import require_length
from ..config import HeadConfig
from ..contracts import Block, Taps, TapSpec
from ..errors import HostError
from ..models import LDZNet
from ..shapes import Float, Int
from ..taps import extract_taps, spatial_transformers
from ..tinyworld import world
from ..tinyworld.vae import TinyVAE
from . import comfyui_tiny as parts
from .capturing import Capture, calling_into, sampling_into
from .memo import Memo

__all__ = [
    "ComfyHost",
    "GraphBuilder",
    "Head",
    "Progress",
    "RunningHead",
    "capturing",
    "model_space",
    "open_head",
    "tiny_models",
]

OTHER_WIDTHS = {1024: "SD 2.x", 1280: "SDXL's refiner", 2048: "SDXL"}  # of the context; SD 1.x's is 768
BRACKET = re.compile(r"(?<!\\)([()])")  # ComfyUI reads bare brackets as weights
CAPTURE_KEY = "ldznet_capture"
OVERHEAD = 1.5  # of the host's own estimate of a pass, as its samplers allow for

DTYPES = [torch.float16, torch.bfloat16, torch.float32]  # a head's, best first


@dataclass(frozen=True)
class Head:
    """A head under ComfyUI's memory management: `patcher` owns the weights, `name` is what the user chose.

    `memo` holds the last soft maps, for ComfyUI 0.25 drops what a node expanded to as soon as any other output of the
    next prompt is there: then a new threshold alone would run the UNet again.
    """

    name: str
    patcher: Any
    memo: Memo = field(default_factory=Memo)

    @property
    def config(self) -> HeadConfig:
        """What the head asks of a host."""
        return self.patcher.model.head_config


class RunningHead:
    """`head` brought to its device by ComfyUI before each pass; looks like an LDZNet to the predictor."""

    def __init__(self, head: Head) -> None:
        self.patcher, self.head_config = head.patcher, head.config
        dtype = next(head.patcher.model.parameters()).dtype
        self._like = torch.empty(0, dtype=dtype, device=head.patcher.load_device)

    def parameters(self) -> Any:
        """One empty tensor of the dtype and device that passes run in: offloaded weights lie elsewhere."""
        return iter([self._like])

    @torch.no_grad()
    def segment(self, latents: Tensor, timesteps: Tensor, context: Tensor, taps: Taps | None = None) -> Any:
        """As LDZNet.segment."""
        needed = latents.shape[0] * latents.shape[2] * latents.shape[3] * self.head_config.unet.model_channels * 4096
        memory.load_models_gpu([self.patcher], memory_required=needed)
        return self.patcher.model.segment(latents, timesteps, context, taps)


class ComfyHost:
    """A loaded SD 1.x as a `contracts.Host`: MODEL, and CLIP and VAE where a call needs them.

    Tensors go in and come out in float32 on the model's device. Noised latents are ComfyUI's (x = latents + sigma ·
    noise for SD 1.x), so `extract` takes what this host's `add_noise` gave.
    """

    def __init__(self, model: Any, clip: Any = None, vae: Any = None) -> None:
        """Raises HostError that names the socket for a MODEL of another family than SD 1.x."""
        self.model, self.clip, self.vae = model, clip, vae
        self.context_dim: int = _require_sd1(model)
        self.specs: Mapping[str, TapSpec] = tap_specs(_unet(model))
        self.device: torch.device = model.load_device
        self.dtype = torch.float32

    @torch.no_grad()
    def encode_image(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 4 h/8 w/8"]:
        """Model-space latents of `pixels` in [-1, 1]: the mode of the posterior, as ComfyUI's VAE gives it."""
        image = (pixels.movedim(1, -1) + 1) / 2
        return self.model.model.process_latent_in(self.vae.encode(image)).to(self.device, self.dtype)

    @torch.no_grad()
    def decode_latents(self, latents: Float[Tensor, "b 4 h w"]) -> Float[Tensor, "b 3 8*h 8*w"]:
        """`pixels` in [-1, 1] of model-space latents."""
        image = self.vae.decode(self.model.model.process_latent_out(latents))
        return image.movedim(-1, 1) * 2 - 1

    @torch.no_grad()
    def encode_text(self, phrases: Sequence[str]) -> Float[Tensor, "b 77 d"]:
        """Context of each phrase from the last layer, whatever "CLIP Set Last Layer" says; brackets are literal.

        Raises InputError with the count of over 75 tokens, HostError for a CLIP of another family.
        """
        clip = self.clip.clone()
        clip.clip_layer(None)
        return torch.cat([self._encode(clip, phrase) for phrase in phrases]).to(self.device, self.dtype)

    def add_noise(
        self, latents: Float[Tensor, "b 4 h w"], noise: Float[Tensor, "b 4 h w"], timesteps: Int[Tensor, " b"]
    ) -> Float[Tensor, "b 4 h w"]:
        """Latents noised to `timesteps` by the model's own `noise_scaling`, whatever it predicts."""
        sampling = self.model.get_model_object("model_sampling")
        sigma = sampling.sigma(timesteps.cpu()).to(latents)[:, None, None, None]
        return sampling.noise_scaling(sigma, noise, latents)

    def extract(
        self,
        latents: Float[Tensor, "b 4 h w"],
        timesteps: Int[Tensor, " b"],
        context: Float[Tensor, "b n d"],
        blocks: Sequence[str],
    ) -> Taps:
        """Taps of one pass over noised latents, ended after the last block asked for.

        Weights as patched (LoRAs); attention and block patches and other packs' wrappers are left out. An inpainting
        model is told to repaint all of a grey image, as ComfyUI does for text-to-image. Stops where the user cancels.
        """
        memory.throw_exception_if_processing_interrupted()
        base = self.model.model
        memory.load_models_gpu([self.model], memory_required=OVERHEAD * base.memory_required(list(latents.shape)))
        latents, context = latents.to(self.device), context.to(self.device)
        sampling = self.model.get_model_object("model_sampling")
        sigmas = sampling.sigma(timesteps.cpu()).to(self.device, torch.float32)
        conds = base.extra_conds(noise=latents, latent_image=latents, device=self.device, cross_attn=context)
        inputs = {name: cond.cond for name, cond in conds.items()}
        with _uncompiled(base) as unet:
            return extract_taps(unet, blocks, lambda: base.apply_model(latents, sigmas, **inputs))

    def _encode(self, clip: Any, phrase: str) -> Tensor:
        tokens = clip.tokenize(BRACKET.sub(r"\\\1", phrase), return_word_ids=True)
        if len(tokens) != 1:
            encoders = ", ".join(tokens)
            raise HostError(
                f"Expected SD 1.x's CLIP in the socket clip, got one of {encoders}. Connect the model's own."
            )
        rows = next(iter(tokens.values()))
        require_length(phrase, sum(word != 0 for row in rows for _, _, word in row))
        plain = {name: [[(token, weight) for token, weight, _ in row] for row in rows] for name in tokens}
        context = clip.encode_from_tokens(plain, return_dict=True)["cond"]
        if context.shape[-1] != self.context_dim:
            raise HostError(
                f"Expected a context of width {self.context_dim} from the socket clip, got {context.shape[-1]}. "
                "Connect the CLIP that belongs to the model."
            )
        return context


def open_head(source: str, name: str) -> Head:
    """The head in a .safetensors file, or an embedded one, as ComfyUI's to move. Raises CheckpointError."""
    device = memory.get_torch_device()
    dtype = memory.unet_dtype(device=device, supported_dtypes=DTYPES)
    head: LDZNet = load_head(source, dtype=dtype, operations=comfy.ops.manual_cast)
    return Head(name, _patcher(head, device))


class Progress:
    """Counts chunks into ComfyUI's progress bar, and raises where the user has cancelled."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        self._bar = self._bar or comfy.utils.ProgressBar(total)
        self._bar.update_absolute(done, total)
        memory.throw_exception_if_processing_interrupted()


def outputs_device() -> torch.device:
    """Where nodes leave what they hand on."""
    return memory.intermediate_device()


def model_space(model: Any, vae_latents: Float[Tensor, "b 4 h w"]) -> Float[Tensor, "b 4 h w"]:
    """`latents` of ComfyUI's LATENT, which is before the scale factor."""
    return model.model.process_latent_in(vae_latents)


def tap_specs(unet: Any) -> dict[str, TapSpec]:
    """Every tap of a ComfyUI UNet: channels from its transformer, stride from the down- and upsamplers passed."""

    def passed(blocks: Any, kind: str) -> int:
        return sum(type(layer).__name__ == kind for block in blocks for layer in block)

    down = passed(unet.input_blocks, "Downsample")

    def level(block: Block) -> int:
        if block.stage == "input":
            return passed(unet.input_blocks[: block.index], "Downsample")
        return down - (passed(unet.output_blocks[: block.index], "Upsample") if block.stage == "output" else 0)

    modules: dict[str, Any] = spatial_transformers(unet)
    return {name: TapSpec(name, m.in_channels, 2 ** level(Block.parse(name))) for name, m in modules.items()}


def capturing(model: Any, blocks: Sequence[str], timestep: int) -> tuple[Any, Capture]:
    """A clone of `model` whose samplers leave their taps of `blocks`, at the step nearest `timestep`, in a Capture.

    The pictures stay the same to the bit.
    """
    capture = Capture(model, blocks, timestep)
    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, CAPTURE_KEY, sampling_into(capture, _executing_node))
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, CAPTURE_KEY, calling_into(capture))
    return clone, capture


def _executing_node() -> Any:
    """The id of the node that ComfyUI is executing: what makes a sampler's runs its own. None where it cannot tell."""
    context = get_executing_context()
    return None if context is None else (context.node_id, context.list_index)


def tiny_models() -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of the embedded tiny world: ComfyUI's own classes around its weights."""
    models = world.load(dtype=torch.float32)
    return _tiny_model(models), _tiny_clip(models), _TinyComfyVAE(models.vae)


class _TinySD15(comfy.supported_models.SD15):
    """SD 1.5 at the tiny world's widths."""

    def __init__(self) -> None:
        super().__init__({})
        self.unet_config = parts.unet_config()
        self.set_inference_dtype(torch.float32, None)


def _tiny_model(models: world.Models) -> Any:
    base = _TinySD15().get_model({}, "", device="cpu")
    base.diffusion_model.load_state_dict(models.unet.state_dict())
    return _patcher(base)


def _tiny_clip(models: world.Models) -> Any:
    tokenizer = functools.partial(comfy.sd1_clip.SD1Tokenizer, tokenizer=_TinyTokenizer)
    encoder = functools.partial(comfy.sd1_clip.SD1ClipModel, clip_model=_TinyTextEncoder)
    target = comfy.supported_models_base.ClipTarget(tokenizer, encoder)
    clip = comfy.sd.CLIP(target, model_options={"dtype": torch.float32})
    transformer = clip.cond_stage_model.clip_l.transformer
    rows = transformer.get_input_embeddings().weight.shape[0]
    transformer.load_state_dict(parts.text_state(models.text, rows))
    return clip


class _TinyTokenizer(comfy.sd1_clip.SDTokenizer):
    """ComfyUI's prompt parser over the tiny vocabulary."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
        width = world.UNET.context_dim
        super().__init__("", embedding_directory=embedding_directory, embedding_size=width, tokenizer_class=parts.Words)


class _TinyTextEncoder(comfy.sd1_clip.SDClipModel):
    """ComfyUI's CLIP text encoder at the tiny world's sizes."""

    def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None) -> None:
        words = world.tokenizer()
        super().__init__(
            device=device,
            dtype=dtype,
            textmodel_json_config=parts.text_config(),
            special_tokens={"start": words.start, "end": words.end, "pad": words.end},
            return_projected_pooled=False,
            model_options=model_options or {},
        )


class _TinyComfyVAE(comfy.sd.VAE):
    """ComfyUI's VAE, everything but its first stage, around the tiny world's."""

    def __init__(self, vae: TinyVAE) -> None:
        config = {"params": {"ddconfig": parts.SHELL, "embed_dim": 4}}
        super().__init__(sd=AutoencoderKL(**config["params"]).state_dict(), config=config, dtype=torch.float32)
        self.first_stage_model = parts.FirstStage(vae)
        self.patcher = _patcher(self.first_stage_model, self.device, memory.vae_offload_device())
        self.size = memory.module_size(self.first_stage_model)


def _patcher(module: Any, device: Any = None, offload: Any = None) -> Any:
    return comfy.model_patcher.ModelPatcher(
        module, load_device=device or memory.get_torch_device(), offload_device=offload or memory.unet_offload_device()
    )


def _unet(model: Any) -> Any:
    """The UNet, out of the wrapper of `torch.compile`."""
    unet = model.model.diffusion_model
    return getattr(unet, "_orig_mod", unet)


@contextlib.contextmanager
def _uncompiled(base: Any) -> Iterator[Any]:
    """`base` without the wrapper of `torch.compile`, inside which hooks would not run, around its UNet; gives that."""
    wrapped = base.diffusion_model
    try:
        base.diffusion_model = getattr(wrapped, "_orig_mod", wrapped)
        yield base.diffusion_model
    finally:
        base.diffusion_model = wrapped


def _require_sd1(model: Any) -> int:
    """The width of the context of an SD 1.x MODEL; raises HostError that says what came for any other."""
    unet = _unet(model)
    if type(unet).__name__ != "UNetModel":
        raise _no_head_fits(f"a {type(unet).__name__}")
    config = model.model.model_config.unet_config
    width = config.get("context_dim")
    if width in OTHER_WIDTHS:
        raise _no_head_fits(f"{width} ({OTHER_WIDTHS[width]})")
    if not isinstance(width, int) or config.get("use_linear_in_transformer") or config.get("adm_in_channels"):
        raise _no_head_fits(f"a {type(model.model).__name__} that is none (context width {width})")
    return width


def _no_head_fits(got: str) -> HostError:
    return HostError(
        f"Expected an SD 1.x UNet (context width 768) in the socket model, got {got}. No head fits it yet: load an "
        "SD 1.x checkpoint."
    )
