"""SD 3 and Flux.1 of diffusers in everything but their sizes: whole pipelines around random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hosts import small

FAMILIES = ("sd3", "flux")
CLIP = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
T5 = {"d_model": 64, "d_ff": 32, "d_kv": 8, "num_heads": 2, "num_layers": 1, "feed_forward_proj": "gated-gelu"}
VAE = {
    "block_out_channels": (8, 8, 8, 8),
    "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 16,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
SD3: dict[str, Any] = {
    "sample_size": 16,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 3,
    "attention_head_dim": 64,
    "num_attention_heads": 1,
    "joint_attention_dim": 64,
    "caption_projection_dim": 64,
    "pooled_projection_dim": 64,
    "pos_embed_max_size": 16,
    "dual_attention_layers": (0, 1),  # as in SD 3.5 medium
    "qk_norm": "rms_norm",
}
FLUX: dict[str, Any] = {
    "in_channels": 64,
    "num_layers": 3,
    "num_single_layers": 1,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": 64,
    "pooled_projection_dim": 32,
    "guidance_embeds": True,
    "axes_dims_rope": (8, 12, 12),
}
WORDS = "a photo photograph picture of the red dog cat and green grass tree other object background ground building "
WORDS += "wall sky water road"


def transformer(family: str, **sizes: Any) -> Any:
    """A transformer of random weights that make attention differ from row to row; norms are about 1."""
    diffusers = pytest.importorskip("diffusers")
    kinds = {"sd3": (diffusers.SD3Transformer2DModel, SD3), "flux": (diffusers.FluxTransformer2DModel, FLUX)}
    kind, config = kinds[family]
    return randomised(kind(**{**config, **sizes}), seed=5)


def randomised(module: Any, seed: int) -> Any:
    """`module` with normal weights of `seed`, in evaluation mode."""
    generator = torch.Generator("cpu").manual_seed(seed)
    with torch.no_grad():
        for name, part in module.named_parameters():
            values = torch.randn(part.shape, generator=generator)
            scale = 0.2 if part.ndim < 2 else (3.0 / part[0].numel()) ** 0.5
            mixes = name.endswith("SelfAttention.o.weight")  # T5's rows stay themselves: which is a word's can be told
            part.copy_(0 * values if mixes else values * scale + (1.0 if "norm" in name and part.ndim == 1 else 0.0))
    return module.eval()


def t5_tokenizer(folder: Path) -> Any:
    """Of T5's kind: pieces of words after spaces, an end token and no start."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer as Fast
    from tokenizers import models, pre_tokenizers, processors

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    known = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -6.0)]
    known += [(f"▁{word}", -2.0) for word in dict.fromkeys(WORDS.split())] + [(x, -7.0) for x in (*letters, ",")]
    fast = Fast(models.Unigram(known, unk_id=2))
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    fast.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast, eos_token="</s>", unk_token="<unk>", pad_token="<pad>", model_max_length=512
    )


def pipeline(folder: Path, family: str, t5: bool = True, **sizes: Any) -> Any:
    """A whole pipeline; `folder` gets the files of CLIP's tokenizer."""
    diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")
    network = transformer(family, **sizes)
    vae = randomised(diffusers.AutoencoderKL(**VAE), seed=6)
    projected = {"projection_dim": 32, "eos_token_id": 49407, "bos_token_id": 49406}
    config = transformers.CLIPTextConfig(**CLIP, **projected)
    last = randomised(transformers.T5EncoderModel(transformers.T5Config(vocab_size=128, **T5)), 8) if t5 else None
    words = small.transformers_tokenizer(folder)
    words.model_max_length = 77
    schedule = {"use_dynamic_shifting": True} if family == "flux" else {"shift": 3.0}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**schedule)
    pieces = t5_tokenizer(folder) if t5 else None
    if family == "flux":
        text = randomised(transformers.CLIPTextModel(config), 7)
        return diffusers.FluxPipeline(scheduler, vae, text, words, last, pieces, network)
    both = [randomised(transformers.CLIPTextModelWithProjection(config), seed) for seed in (7, 9)]
    return diffusers.StableDiffusion3Pipeline(network, scheduler, vae, both[0], words, both[1], words, last, pieces)
