"""Weights of diffusers' SD 3 and Flux.1 transformers under the names that Stability and Black Forest Labs gave, which
ComfyUI's classes have. For tests alone."""

from __future__ import annotations

import re

import torch

State = dict[str, torch.Tensor]
SD3 = (
    (r"^pos_embed\.proj", "x_embedder.proj"),
    (r"^pos_embed\.pos_embed", "pos_embed"),
    (r"^time_text_embed\.timestep_embedder\.linear_1", "t_embedder.mlp.0"),
    (r"^time_text_embed\.timestep_embedder\.linear_2", "t_embedder.mlp.2"),
    (r"^time_text_embed\.text_embedder\.linear_1", "y_embedder.mlp.0"),
    (r"^time_text_embed\.text_embedder\.linear_2", "y_embedder.mlp.2"),
    (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
    (r"^proj_out", "final_layer.linear"),
    (r"^transformer_blocks\.", "joint_blocks."),
    (r"\.norm1\.linear", ".x_block.adaLN_modulation.1"),
    (r"\.norm1_context\.linear", ".context_block.adaLN_modulation.1"),
    (r"\.attn\.to_qkv", ".x_block.attn.qkv"),
    (r"\.attn\.add_qkv", ".context_block.attn.qkv"),
    (r"\.attn2\.to_qkv", ".x_block.attn2.qkv"),
    (r"\.(attn2?)\.norm_([qk])", r".x_block.\1.ln_\2"),
    (r"\.attn\.norm_added_([qk])", r".context_block.attn.ln_\1"),
    (r"\.(attn2?)\.to_out\.0", r".x_block.\1.proj"),
    (r"\.attn\.to_add_out", ".context_block.attn.proj"),
    (r"\.ff\.net\.0\.proj", ".x_block.mlp.fc1"),
    (r"\.ff\.net\.2", ".x_block.mlp.fc2"),
    (r"\.ff_context\.net\.0\.proj", ".context_block.mlp.fc1"),
    (r"\.ff_context\.net\.2", ".context_block.mlp.fc2"),
)
FLUX = (
    (r"^x_embedder", "img_in"),
    (r"^context_embedder", "txt_in"),
    (r"^time_text_embed\.timestep_embedder\.linear_1", "time_in.in_layer"),
    (r"^time_text_embed\.timestep_embedder\.linear_2", "time_in.out_layer"),
    (r"^time_text_embed\.guidance_embedder\.linear_1", "guidance_in.in_layer"),
    (r"^time_text_embed\.guidance_embedder\.linear_2", "guidance_in.out_layer"),
    (r"^time_text_embed\.text_embedder\.linear_1", "vector_in.in_layer"),
    (r"^time_text_embed\.text_embedder\.linear_2", "vector_in.out_layer"),
    (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
    (r"^proj_out", "final_layer.linear"),
    (r"^transformer_blocks\.", "double_blocks."),
    (r"^(single_transformer_blocks\.\d+)\.norm\.linear", r"\1.modulation.lin"),
    (r"^(single_transformer_blocks\.\d+)\.attn\.to_qkv_mlp", r"\1.linear1"),
    (r"^(single_transformer_blocks\.\d+)\.proj_out", r"\1.linear2"),
    (r"^(single_transformer_blocks\.\d+)\.attn\.norm_q", r"\1.norm.query_norm"),
    (r"^(single_transformer_blocks\.\d+)\.attn\.norm_k", r"\1.norm.key_norm"),
    (r"^single_transformer_blocks\.", "single_blocks."),
    (r"\.norm1\.linear", ".img_mod.lin"),
    (r"\.norm1_context\.linear", ".txt_mod.lin"),
    (r"\.attn\.to_qkv", ".img_attn.qkv"),
    (r"\.attn\.add_qkv", ".txt_attn.qkv"),
    (r"\.attn\.norm_q", ".img_attn.norm.query_norm"),
    (r"\.attn\.norm_k", ".img_attn.norm.key_norm"),
    (r"\.attn\.norm_added_q", ".txt_attn.norm.query_norm"),
    (r"\.attn\.norm_added_k", ".txt_attn.norm.key_norm"),
    (r"\.attn\.to_out\.0", ".img_attn.proj"),
    (r"\.attn\.to_add_out", ".txt_attn.proj"),
    (r"\.ff\.net\.0\.proj", ".img_mlp.0"),
    (r"\.ff\.net\.2", ".img_mlp.2"),
    (r"\.ff_context\.net\.0\.proj", ".txt_mlp.0"),
    (r"\.ff_context\.net\.2", ".txt_mlp.2"),
)


def renamed(state: State, family: str) -> State:
    """`state` of diffusers' class under ComfyUI's names: queries, keys and values in one, scale and shift of the last
    norms the other way round."""
    joined: State = {}
    for name, tensor in state.items():
        single = re.match(r"(single_transformer_blocks\.\d+)\.attn\.to_q\.(weight|bias)", name)
        whole = re.match(r"(.*\.)(to|add)_q(_proj)?\.(weight|bias)$", name)
        if single:
            parts = [f"attn.to_{part}" for part in "qkv"] + ["proj_mlp"]
            joined[f"{single[1]}.attn.to_qkv_mlp.{single[2]}"] = torch.cat(
                [state[f"{single[1]}.{part}.{single[2]}"] for part in parts]
            )
        elif whole:
            parts = [f"{whole[1]}{whole[2]}_{part}{whole[3] or ''}.{whole[4]}" for part in "qkv"]
            joined[f"{whole[1]}{whole[2]}_qkv.{whole[4]}"] = torch.cat([state[part] for part in parts])
        elif not re.search(r"(to|add)_[kv](_proj)?\.(weight|bias)$|proj_mlp", name):
            joined[name] = tensor
    last = max(int(name.split(".")[1]) for name in state if name.startswith("transformer_blocks."))
    swapped = ["norm_out.linear"] + ([f"transformer_blocks.{last}.norm1_context.linear"] if family == "sd3" else [])
    found: State = {}
    for name, tensor in joined.items():
        if name.rpartition(".")[0] in swapped:
            tensor = torch.cat(tensor.chunk(2)[::-1])
        for pattern, replacement in SD3 if family == "sd3" else FLUX:
            name = re.sub(pattern, replacement, name)
        found[name] = tensor.contiguous()
    return found
