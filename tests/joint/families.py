"""Families of transformers, built small with random weights by ComfyUI's own classes. Run by ComfyUI's interpreter.

Text encoders are ComfyUI's too, with its own tokenizers. Gemma's, UMT5's, mT5's, Mistral's and others come inside
checkpoints: families with them have small ones here, of their kinds and trained for them, but Flux.2 is here as Klein,
which has Qwen's.
HiDream has Qwen's for Llama's, which is of the same kind and not part of every copy of ComfyUI.
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
ZIMAGE = {
    "dim": 256,  # at least
    "n_heads": 8,
    "pad_tokens_multiple": 32,
    "z_image_modulation": True,
    "time_scale": 1000.0,
}
CHROMA = {
    **{k: v for k, v in FLUX.items() if k != "guidance_embed"},
    "in_channels": 64,
    "out_channels": 64,
    "depth": 19,
    "depth_single_blocks": 38,
    "in_dim": 64,
    "out_dim": 64,
    "hidden_dim": 32,
    "n_layers": 1,
}
COSMOS = {
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
}
WAN = {
    "model_type": "t2v",
    "patch_size": (1, 2, 2),
    "text_len": 512,
    "dim": 64,
    "ffn_dim": 64,
    "text_dim": 32,
    "freq_dim": 32,
    "num_heads": 2,
    "num_layers": 3,
}
KANDINSKY = {
    "in_text_dim": 32,
    "time_dim": 32,
    "model_dim": 64,
    "ff_dim": 64,
    "num_text_blocks": 1,
    "num_visual_blocks": 3,
    "axes_dims": (8, 12, 12),
}
HYDIT = {
    "hidden_size": 64,
    "depth": 4,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "text_states_dim": 32,
    "text_states_dim_t5": 32,
}
PIXART = {
    "patch_size": 2,
    "in_channels": 4,
    "hidden_size": 96,
    "depth": 3,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "caption_channels": 32,
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
        CHROMA,
    ),
    "chroma_radiance": (
        "ChromaRadiance",
        {
            **CHROMA,
            "patch_size": 16,
            "in_channels": 3,
            "out_channels": 3,
            "nerf_hidden_size": 16,
            "nerf_mlp_ratio": 2,
            "nerf_depth": 1,
            "nerf_max_freqs": 4,
            "nerf_tile_size": 0,
            "nerf_final_head_type": "conv",
            "nerf_embedder_dtype": None,
            "use_x0": False,
            "use_sequential_txt_ids": False,
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
        {**LUMINA, **ZIMAGE},
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
        COSMOS,
    ),
    "cosmos_predict2": ("CosmosT2IPredict2", COSMOS),
    "wan2.1": ("WAN21_T2V", {**WAN, "in_dim": 16, "out_dim": 16}),
    "wan2.2": ("WAN22_T2V", {**WAN, "in_dim": 48, "out_dim": 48}),
    "aura": (
        "AuraFlow",
        {
            "dim": 64,
            "n_layers": 5,
            "n_double_layers": 2,
            "n_heads": 2,
            "global_conddim": 64,
            "cond_seq_dim": 32,
            "max_seq": 256,
        },
    ),
    "hunyuan_image": (
        "HunyuanImage21",
        {
            "in_channels": 64,
            "out_channels": 64,
            "vec_in_dim": None,
            "context_in_dim": 32,
            "hidden_size": 64,
            "mlp_ratio": 2.0,
            "num_heads": 2,
            "depth": 3,
            "depth_single_blocks": 1,
            "axes_dim": [16, 16],
            "theta": 256,
            "patch_size": [1, 1],
            "qkv_bias": True,
            "guidance_embed": False,
            "byt5": True,
            "meanflow": True,
            "use_cond_type_embedding": False,
            "vision_in_dim": None,
            "meanflow_sum": False,
        },
    ),
    "omnigen2": (
        "Omnigen2",
        {
            "patch_size": 2,
            "in_channels": 16,
            "hidden_size": 64,
            "num_layers": 3,
            "num_refiner_layers": 1,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 32,
            "axes_dim_rope": (8, 12, 12),
            "axes_lens": (300, 64, 64),
            "text_feat_dim": 32,
        },
    ),
    "kandinsky5": ("Kandinsky5", {**KANDINSKY, "visual_embed_dim": 132}),
    "kandinsky5_image": ("Kandinsky5Image", {**KANDINSKY, "visual_embed_dim": 64}),
    "lens": (
        "Lens",
        {
            "num_layers": 3,
            "attention_head_dim": 32,
            "num_attention_heads": 2,
            "enc_hidden_dim": 32,
            "axes_dims_rope": (8, 12, 12),
            "selected_layer_index": (0, 1),
        },
    ),
    "ovis": (
        "Flux",
        {
            **FLUX,
            "vec_in_dim": None,
            "guidance_embed": False,
            "txt_ids_dims": [1, 2],
            "yak_mlp": True,
            "txt_norm": True,
        },
    ),
    "boogu": (
        "Boogu",
        {
            "hidden_size": 64,
            "num_layers": 3,
            "num_double_stream_layers": 1,
            "num_refiner_layers": 1,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 32,
            "axes_dim_rope": (8, 12, 12),
            "instruction_feat_dim": 32,
        },
    ),
    "hidream_o1": (
        "HiDreamO1",
        {
            "text_config_overrides": {
                **{"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3, "head_dim": 32},
                **{"num_attention_heads": 2, "num_key_value_heads": 1, "rope_dims": [6, 5, 5]},
            },
            "vision_config_overrides": {"hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "depth": 1},
        },
    ),
    "pixeldit": (
        "PixelDiTT2I",
        {
            "num_groups": 2,
            "hidden_size": 64,
            "pixel_hidden_size": 16,
            "pixel_attn_hidden_size": 64,
            "pixel_num_groups": 2,
            "patch_depth": 3,
            "pixel_depth": 1,
            "txt_embed_dim": 32,
        },
    ),
    "zimage_pixel": (
        "ZImagePixelSpace",
        {
            **LUMINA,
            **ZIMAGE,
            "patch_size": 16,
            "in_channels": 3,
            "decoder_hidden_size": 32,
            "decoder_num_res_blocks": 1,
            "decoder_max_freqs": 4,
        },
    ),
    "longcat": ("LongCatImage", {**FLUX, "vec_in_dim": None, "guidance_embed": False, "txt_ids_dims": [1, 2]}),
    "ideogram4": (
        "Ideogram4",
        {
            "in_channels": 128,
            "num_layers": 3,
            "num_attention_heads": 2,
            "attention_head_dim": 32,
            "intermediate_size": 64,
            "adaln_dim": 32,
            "llm_features_dim": 13 * 32,
            "mrope_section": [6, 5, 5],
        },
    ),
    "hidream": (
        "HiDream",
        {
            "patch_size": 2,
            "in_channels": 16,
            "num_layers": 3,
            "num_single_layers": 1,
            "attention_head_dim": 32,
            "num_attention_heads": 2,
            "caption_channels": [32, 32],
            "text_emb_dim": 2048,
            "axes_dims_rope": (8, 12, 12),
            "llama_layers": [0, 1, 2, 2],
        },
    ),
    "pixart_alpha": ("PixArtAlpha", {**PIXART, "micro_condition": True}),
    "pixart_sigma": ("PixArtSigma", {**PIXART, "micro_condition": False, "pe_interpolation": 2}),
    "hydit": ("HunyuanDiT", HYDIT),
    "hydit1": ("HunyuanDiT1", {**HYDIT, "size_cond": True, "use_style_cond": True}),
    "ernie": (
        "ErnieImage",
        {
            "hidden_size": 64,
            "num_attention_heads": 2,
            "num_layers": 3,
            "ffn_hidden_size": 64,
            "text_in_dim": 32,
            "rope_axes_dim": (8, 12, 12),
        },
    ),
}
ENCODERS = {"ovis": "ovis"}  # modules of encoders that came after the class of the network


def model(name: str, **sizes: Any) -> Any:
    """A ModelPatcher of a family around random weights; `sizes` change some of the table's."""
    import comfy.model_management as memory
    import comfy.model_patcher
    import comfy.supported_models

    kind, config = NETWORKS[name]
    config = {"image_model": name, **config, **sizes}
    if name in ("sd3", "aura"):
        del config["image_model"]
    while True:
        supported = getattr(comfy.supported_models, kind)(dict(config))
        supported.unet_config |= config  # Ideogram 4's class has sizes of its own
        supported.set_inference_dtype(torch.float32, None)
        try:
            base = supported.get_model({}, "", device="cpu")
            break
        except TypeError as error:  # ComfyUI 0.3.64 knows fewer of them
            del config[str(error).rpartition("unexpected keyword argument ")[2].strip("'")]
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
            if (
                not part.is_floating_point() or ".visual." in name
            ):  # of encoders that see pictures too: gigabytes, unused
                continue
            values = torch.randn(part.shape, generator=generator, dtype=torch.float32)
            scale = 0.2 if part.ndim < 2 else (3.0 / part.shape[-1]) ** 0.5
            scale *= 0.01 if name.endswith("q_linear.weight") else 1.0  # PixArt's queries are of rows without a norm
            is_norm = "norm" in name and part.ndim == 1
            mixes = name.endswith("SelfAttention.o.weight") or ("llm_adapter" in name and "o_proj" in name)
            part.copy_(0 * values if mixes else values * scale + (1.0 if is_norm else 0.0))


LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
SMALL_CLIP = {"num_hidden_layers": 3, "intermediate_size": 32, "num_attention_heads": 2}
WORDS = "a photo of the red dog and cat green grass tree photograph other object background ground building wall sky"
T5 = {"d_ff": 32, "d_kv": 8, "num_heads": 2, "num_layers": 1}


def clip(name: str) -> Any:
    """ComfyUI's CLIP of a family: its own tokenizer, its own encoder classes at a small size."""
    import comfy.sd
    import comfy.supported_models_base
    from comfy.text_encoders import aura_t5, cosmos, flux, lumina2, pixart_t5, qwen_image, sd3_clip, wan

    # others only later ComfyUIs have

    tokenizer: dict[str, Any] = {}
    options: dict[str, Any] = {"dtype": torch.float32}
    small_t5 = {"t5xxl_model_config": {**T5, "d_model": 32}}

    def llama(encoder: str, layers: int, **sizes: int) -> dict[str, Any]:
        return {f"{encoder}_model_config": {**LLAMA, "num_hidden_layers": layers, **sizes}}

    if name == "sd3":
        options |= {"clip_l_model_config": SMALL_CLIP, "clip_g_model_config": SMALL_CLIP}
        kinds = (sd3_clip.SD3Tokenizer, sd3_clip.sd3_clip(t5=False))
    elif name == "sd3+t5":
        options |= {"clip_l_model_config": SMALL_CLIP, "clip_g_model_config": SMALL_CLIP}
        options |= {"t5xxl_model_config": {**T5, "d_model": 4096}}
        kinds = (sd3_clip.SD3Tokenizer, sd3_clip.sd3_clip(t5=True, dtype_t5=torch.float16))
    elif name == "flux":
        kinds = (flux.FluxTokenizer, flux.flux_clip())
        options |= small_t5
    elif name == "flux2":
        kinds = (flux.KleinTokenizer, flux.klein_te())
        options |= llama("qwen3_4b", 28)
    elif name in ("chroma", "chroma_radiance", "pixart_alpha", "pixart_sigma"):
        kinds = (pixart_t5.PixArtTokenizer, pixart_t5.pixart_te())
        options |= small_t5
    elif name.startswith("hydit"):
        from comfy.text_encoders import hydit

        kinds = (hydit.HyditTokenizer, hydit.HyditModel)
        bert = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
        options |= {"hydit_clip_model_config": bert, "mt5xl_model_config": {**T5, "d_model": 32}}
        tokenizer = {f"mt5xl.{part}": data for part, data in spiece_model(add_dummy_prefix=True).items()}
    elif name == "ernie":
        from comfy.text_encoders import ernie

        kinds = (ernie.ErnieTokenizer, ernie.te())
        options |= {**llama("ministral3_3b", 3)}
        marks = ["<unk>", "<s>", "</s>", *(f"[{i}]" for i in range(3, 11)), "<pad>"]
        made = {"tokenizer_object": byte_pairs(WORDS, marks), "legacy": False}
        flux.load_mistral_tokenizer = lambda data: made
    elif name == "cosmos_predict2":
        kinds = (cosmos.CosmosT5Tokenizer, cosmos.te())
        options |= {"t5xxl_model_config": {**T5, "d_model": 1024}}
    elif name.startswith("wan"):
        kinds = (wan.WanT5Tokenizer, wan.te())
        options |= {"umt5xxl_model_config": {**T5, "d_model": 32}}
        tokenizer = spiece_model(add_dummy_prefix=True)
    elif name == "aura":
        kinds = (aura_t5.AuraT5Tokenizer, aura_t5.AuraT5Model)
        options |= {"pile_t5xl_model_config": {**T5, "d_model": 32}}
    elif name == "hunyuan_image":
        from comfy.text_encoders import hunyuan_image

        kinds = (hunyuan_image.HunyuanImageTokenizer, hunyuan_image.te())
        options |= llama("qwen25_7b", 4)
    elif name == "hidream":
        from comfy.text_encoders import hidream

        kinds = (qwen_for_llama(hidream.HiDreamTokenizer), hidream.hidream_clip())
        options |= {"clip_l_model_config": SMALL_CLIP, "clip_g_model_config": SMALL_CLIP, **small_t5}
        options |= llama("llama", 3)
    elif name.startswith("kandinsky5"):
        from comfy.text_encoders import kandinsky5

        is_image = name == "kandinsky5_image"
        kinds = (
            kandinsky5.Kandinsky5TokenizerImage if is_image else kandinsky5.Kandinsky5Tokenizer,
            kandinsky5.te(),
        )
        options |= {"clip_l_model_config": SMALL_CLIP, **llama("qwen25_7b", 2)}
    elif name == "ovis":
        from comfy.text_encoders import ovis

        kinds = (ovis.OvisTokenizer, ovis.te())
        options |= llama("qwen3_2b", 1)
    elif name == "boogu":
        from comfy.text_encoders import boogu

        kinds = (boogu.BooguTokenizer, boogu.te())
        options |= llama("qwen3vl_8b", 2)
    elif name == "hidream_o1":
        from comfy.text_encoders import hidream_o1

        kinds = (hidream_o1.HiDreamO1Tokenizer, hidream_o1.HiDreamO1TE)
    elif name == "pixeldit":
        from comfy.text_encoders import pixeldit

        kinds = (pixeldit.PixelDiTGemma2Tokenizer, pixeldit.pixeldit_te())
        options |= llama("gemma2_2b", 3)
        tokenizer = spiece_model(add_dummy_prefix=False)
    elif name == "longcat":
        from comfy.text_encoders import longcat_image

        kinds = (longcat_image.LongCatImageTokenizer, longcat_image.te())
        options |= llama("qwen25_7b", 1)
    elif name == "lens":
        from comfy.text_encoders import gpt_oss

        kinds = (gpt_oss.LensTokenizer, with_weights(gpt_oss.lens_te()))
        tokenizer, sizes = harmony_tokens(gpt_oss._lens_render_chat)
        options |= sizes
    elif name == "ideogram4":
        from comfy.text_encoders import ideogram4

        kinds = (ideogram4.Ideogram4Tokenizer, ideogram4.te())
        options |= llama("qwen3vl_8b", 36)
    elif name == "omnigen2":
        from comfy.text_encoders import omnigen2

        kinds = (omnigen2.Omnigen2Tokenizer, omnigen2.te())
        options |= llama("qwen25_3b", 1)
    elif name == "qwen":
        kinds = (qwen_image.QwenImageTokenizer, qwen_image.te())
        options |= llama("qwen25_7b", 1)
    elif name == "lumina2":
        kinds = (lumina2.LuminaTokenizer, lumina2.te())
        options |= llama("gemma2_2b", 3)
        tokenizer = spiece_model(add_dummy_prefix=False)
    elif name.startswith("zimage"):
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


def with_weights(kind: Any) -> Any:
    """An encoder whose layers, which otherwise get their weights from a checkpoint alone, have some."""

    class Encoder(kind):  # type: ignore[misc]
        def __init__(self, **named: Any) -> None:
            super().__init__(**named)
            for module in self.modules():
                shape = getattr(module, "_orig_shape", None) or (
                    getattr(module, "out_features", 0),
                    getattr(module, "in_features", 0),
                )
                if all(shape) and getattr(module, "weight", None) is None:
                    module.weight = torch.nn.Parameter(torch.empty(shape), requires_grad=False)

    return Encoder


def harmony_tokens(render: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A byte-level tokenizer, as a checkpoint of GPT-OSS has it, and the sizes of an encoder for it: few experts, and
    as many rows cut off as stand before a prompt in what `render` makes of it."""
    made = byte_pairs(render(WORDS), ["<|start|>", "<|message|>", "<|end|>", "<|channel|>"])
    before = render(WORDS).partition(WORDS)[0]
    sizes = {
        **{"vocab_size": 1000, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 16},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 3, "num_experts_per_tok": 2},
    }
    offset = len(made.encode(before).ids)
    return (
        {"tokenizer_json": torch.frombuffer(bytearray(made.to_str().encode()), dtype=torch.uint8)},
        {"gpt_oss_config": sizes, "selected_layers": (0, 1), "txt_offset": offset},
    )


def byte_pairs(text: str, marks: list[str]) -> Any:
    """A tokenizer of byte pairs of `text`; `marks` have the first ids."""
    import tokenizers

    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1000, special_tokens=marks, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([text] * 2, trainer)
    return made


def qwen_for_llama(kind: Any) -> Any:
    """A tokenizer such as HiDream's, with Qwen's words in place of Llama's, after Llama's start."""
    from comfy.text_encoders import qwen_image

    start = 128000

    class Tokenizer(kind):  # type: ignore[misc]
        def __init__(self, **named: Any) -> None:
            super().__init__(**named)
            qwen = qwen_image.Qwen25_7BVLITokenizer().tokenizer
            self.llama.tokenizer = lambda text: {"input_ids": [start, *qwen(text)["input_ids"]]}
            self.llama.start_token = start

    return Tokenizer


def spiece_model(add_dummy_prefix: bool) -> dict[str, Any]:
    """A sentencepiece model of byte pairs, as a checkpoint has it. With `add_dummy_prefix` a space is put before a
    text, as in UMT5's, and else not, as in Gemma's."""
    import io

    import sentencepiece

    words = WORDS.split()
    sentences = [" ".join(words[i:] + words[:i]) for i in range(len(words))] * 5
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=add_dummy_prefix,
        remove_extra_whitespaces=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    return {"spiece_model": torch.frombuffer(bytearray(model.getvalue()), dtype=torch.uint8)}
