"""Families of transformers, built small with random weights by ComfyUI's own classes. Run by ComfyUI's interpreter.

Text encoders are ComfyUI's too, with its own tokenizers. Gemma's and Mistral's come inside checkpoints: Lumina 2 has a
small one here, of Gemma's kind and trained for it, and Flux.2 is here as Klein, which has Qwen's.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch


def prepare(folder: Path) -> None:
    """Makes `comfy` importable, on the CPU."""
    sys.argv = ["", "--cpu"]
    sys.path.insert(0, str(folder))
    import comfy.options

    comfy.options.enable_args_parsing()


FLUX = {
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 768,
    "context_in_dim": 32,
    "hidden_size": 64,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 3,
    "depth_single_blocks": 1,
    "axes_dim": [8, 12, 12],
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
LUMINA = {
    "patch_size": 2,
    "in_channels": 16,
    "dim": 64,
    "n_layers": 3,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 1,
    "multiple_of": 32,
    "qk_norm": True,
    "cap_feat_dim": 32,
    "axes_dims": [8, 12, 12],
    "axes_lens": [300, 64, 64],
}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {  # the class in comfy.supported_models, and its sizes
    "sd3": (
        "SD3",
        {
            "patch_size": 2,
            "in_channels": 16,
            "depth": 2,
            "num_blocks": 3,
            "adm_in_channels": 2048,
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": 4096, "out_features": 128},
            },
            "pos_embed_max_size": 96,
            "num_patches": 9216,
            "qk_norm": "rms",
            "x_block_self_attn_layers": [0, 1],
        },
    ),
    "flux": ("Flux", FLUX),
    "flux2": (
        "Flux2",
        {
            **FLUX,
            "patch_size": 1,
            "in_channels": 128,
            "out_channels": 128,
            "vec_in_dim": None,
            "context_in_dim": 96,
            "axes_dim": [8, 8, 8, 8],
            "theta": 2000,
            "qkv_bias": False,
            "guidance_embed": False,
            "txt_ids_dims": [3],
            "global_modulation": True,
            "mlp_silu_act": True,
            "ops_bias": False,
            "default_ref_method": "index",
            "ref_index_scale": 10.0,
        },
    ),
    "chroma": (
        "Chroma",
        {
            **{k: v for k, v in FLUX.items() if k != "guidance_embed"},
            "in_channels": 64,
            "out_channels": 64,
            "depth": 19,
            "depth_single_blocks": 38,
            "in_dim": 64,
            "out_dim": 64,
            "hidden_dim": 32,
            "n_layers": 1,
        },
    ),
    "qwen": (
        "QwenImage",
        {
            "in_channels": 64,
            "out_channels": 16,
            "num_layers": 3,
            "attention_head_dim": 32,
            "num_attention_heads": 2,
            "joint_attention_dim": 32,
            "axes_dims_rope": (8, 12, 12),
        },
    ),
    "lumina2": ("Lumina2", LUMINA),
    "zimage": (
        "ZImage",
        {
            **LUMINA,
            "dim": 256,  # at least
            "n_heads": 8,
            "pad_tokens_multiple": 32,
            "z_image_modulation": True,
            "time_scale": 1000.0,
        },
    ),
    "krea2": (
        "Krea2",
        {
            "features": 64,
            "tdim": 32,
            "txtdim": 32,
            "heads": 2,
            "kvheads": 1,
            "multiplier": 2,
            "layers": 3,
            "txtlayers": 12,
            "txtheads": 2,
            "txtkvheads": 2,
        },
    ),
    "anima": (
        "Anima",
        {
            "max_img_h": 64,
            "max_img_w": 64,
            "max_frames": 16,
            "in_channels": 16,
            "out_channels": 16,
            "patch_spatial": 2,
            "patch_temporal": 1,
            "concat_padding_mask": True,
            "model_channels": 64,
            "num_blocks": 3,
            "num_heads": 2,
            "crossattn_emb_channels": 1024,
            "pos_emb_cls": "rope3d",
            "mlp_ratio": 2.0,
        },
    ),
}


def model(name: str, **sizes: Any) -> Any:
    """A ModelPatcher of a family around random weights; `sizes` change some of the table's."""
    import comfy.model_management as memory
    import comfy.model_patcher
    import comfy.supported_models

    kind, config = NETWORKS[name]
    supported = getattr(comfy.supported_models, kind)({"image_model": name, **config, **sizes})
    if name == "sd3":
        del supported.unet_config["image_model"]
    supported.set_inference_dtype(torch.float32, None)
    base = supported.get_model({}, "", device="cpu")
    randomise(base.diffusion_model, seed=5)
    device = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(base, load_device=device, offload_device=memory.unet_offload_device())


def randomise(module: torch.nn.Module, seed: int) -> None:
    """Normal weights that make attention differ from row to row; norms about 1. Rows that see those after them, in T5
    and in Anima's adapter, stay themselves, so that a test can tell which row is a word's."""
    generator = torch.Generator("cpu").manual_seed(seed)
    with torch.no_grad():
        places = [pair for pair in module.named_buffers() if pair[0] == "pos_embed"]  # SD 3: no values yet
        for name, part in [*module.named_parameters(), *places]:
            if not part.is_floating_point() or "visual" in name:  # of encoders that see pictures too: gigabytes, unused
                continue
            values = torch.randn(part.shape, generator=generator, dtype=torch.float32)
            scale = 0.2 if part.ndim < 2 else (3.0 / part.shape[-1]) ** 0.5
            is_norm = "norm" in name and part.ndim == 1
            mixes = name.endswith("SelfAttention.o.weight") or ("llm_adapter" in name and "o_proj" in name)
            part.copy_(0 * values if mixes else values * scale + (1.0 if is_norm else 0.0))


LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
T5 = {"d_ff": 32, "d_kv": 8, "num_heads": 2, "num_layers": 1}


def clip(name: str) -> Any:
    """ComfyUI's CLIP of a family: its own tokenizer, its own encoder classes at a small size."""
    import comfy.sd
    import comfy.supported_models_base
    from comfy.text_encoders import flux, lumina2, pixart_t5, qwen_image, sd3_clip  # others only later ComfyUIs have

    tokenizer: dict[str, Any] = {}
    options: dict[str, Any] = {"dtype": torch.float32}
    small_t5 = {"t5xxl_model_config": {**T5, "d_model": 32}}

    def llama(encoder: str, layers: int, **sizes: int) -> dict[str, Any]:
        return {f"{encoder}_model_config": {**LLAMA, "num_hidden_layers": layers, **sizes}}

    if name == "sd3":
        small = {"num_hidden_layers": 3, "intermediate_size": 32, "num_attention_heads": 2}
        options |= {"clip_l_model_config": small, "clip_g_model_config": small}
        kinds = (sd3_clip.SD3Tokenizer, sd3_clip.sd3_clip(t5=False))
    elif name == "sd3+t5":
        small = {"num_hidden_layers": 3, "intermediate_size": 32, "num_attention_heads": 2}
        options |= {"clip_l_model_config": small, "clip_g_model_config": small}
        options |= {"t5xxl_model_config": {**T5, "d_model": 4096}}
        kinds = (sd3_clip.SD3Tokenizer, sd3_clip.sd3_clip(t5=True, dtype_t5=torch.float16))
    elif name == "flux":
        kinds = (flux.FluxTokenizer, flux.flux_clip())
        options |= small_t5
    elif name == "flux2":
        kinds = (flux.KleinTokenizer, flux.klein_te())
        options |= llama("qwen3_4b", 28)
    elif name == "chroma":
        kinds = (pixart_t5.PixArtTokenizer, pixart_t5.pixart_te())
        options |= small_t5
    elif name == "qwen":
        kinds = (qwen_image.QwenImageTokenizer, qwen_image.te())
        options |= llama("qwen25_7b", 1)
    elif name == "lumina2":
        kinds = (lumina2.LuminaTokenizer, lumina2.te())
        options |= llama("gemma2_2b", 3)
        tokenizer = gemma_like()
    elif name == "zimage":
        from comfy.text_encoders import z_image

        kinds = (z_image.ZImageTokenizer, z_image.te())
        options |= llama("qwen3_4b", 3)
    elif name == "krea2":
        from comfy.text_encoders import krea2

        kinds = (krea2.Krea2Tokenizer, krea2.te())
        options |= llama("qwen3vl_4b", 36)
    else:
        from comfy.text_encoders import anima

        kinds = (anima.AnimaTokenizer, anima.te())
        options |= llama("qwen3_06b", 1, hidden_size=1024)
    target = comfy.supported_models_base.ClipTarget(*kinds)
    found = comfy.sd.CLIP(target, model_options=options, tokenizer_data=tokenizer)
    randomise(found.cond_stage_model, seed=7)
    return found


def gemma_like() -> dict[str, Any]:
    """A sentencepiece model of Gemma's kind (byte pairs, no space put before a text), as a checkpoint has it."""
    import io

    import sentencepiece

    words = (
        "a photo of the red dog and cat green grass tree photograph other object background ground building wall sky"
    )
    sentences = [" ".join(words.split()[i:] + words.split()[:i]) for i in range(len(words.split()))] * 5
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    return {"spiece_model": torch.frombuffer(bytearray(model.getvalue()), dtype=torch.uint8)}
