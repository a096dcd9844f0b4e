"""Nodes for tests with a real ComfyUI: they save what flows through a graph, and make models that are hard to come by.

The server under test finds this folder in its custom_nodes; nothing else may.
"""

import os
import sys

import folder_paths
import torch
from comfy_execution.graph_utils import GraphBuilder

from . import beside, models


class ProbeSave:
    """Writes whatever list of values arrives to output/<name>.pt: tensors, numbers, strings, and lists of them."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE, INPUT_IS_LIST = (), "save", "probe", True, True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": ("*", {}), "name": ("STRING", {"default": "value"})}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types):
        return True

    @classmethod
    def IS_CHANGED(cls, **_):
        return float("nan")

    def save(self, value, name):
        path = os.path.join(folder_paths.get_output_directory(), name[0] + ".pt")
        torch.save([_plain(part) for part in value], path)
        return {}


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items() if isinstance(part, (torch.Tensor, int, float, str))}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if hasattr(value, "__array__") and not isinstance(value, torch.Tensor):
        return torch.as_tensor(value)
    if hasattr(value, "probabilities"):
        result = value.result
        return {
            "probabilities": value.probabilities().cpu(),
            "scores": result.scores.cpu(),
            "logits": result.logits.cpu(),
        }
    return value


QUERIES = (  # what LoRAs change
    *("attn2.to_q.weight", "attention.qkv.weight", "attn.to_q.weight", "img_attn.qkv.weight"),
    *("cross_attn.q.weight", "attn1.to_q.weight", "cross_attn.q_linear.weight"),  # Wan, HiDream, PixArt
    *("attn2.q_proj.weight", "self_attn.q_proj.weight", "img_qkv.weight"),
)


class ProbeModel:
    """`model` in another shape: with a LoRA, with foreign patches, with nine channels, or of another family."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "change", "probe"
    KINDS = ("lora", "attention", "inpainting", "sdxl", "v_prediction", "compiled", "counted", "recorded")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "kind": (list(cls.KINDS),)}}

    def change(self, model, kind):
        return (getattr(self, kind)(model),)

    def lora(self, model):
        model = model.clone()
        generator = torch.Generator().manual_seed(0)
        patches = {}
        for name, weight in model.model.state_dict().items():
            if name.endswith(QUERIES):
                patches[name] = (torch.randn(weight.shape, generator=generator) * 0.2,)
        assert patches
        assert len(model.add_patches(patches, 1.0)) == len(patches)
        return model

    def attention(self, model):
        model = model.clone()
        model.set_model_attn2_patch(lambda q, k, v, options: (q * 0, k, v))
        model.set_model_output_block_patch(lambda h, skip, options: (h * 2, skip))
        return model

    def inpainting(self, model):
        other = self._rebuilt(model, in_channels=9)
        unet = model.model.diffusion_model
        state = dict(getattr(unet, "_orig_mod", unet).state_dict())  # a compiled clone of it may be loaded
        first = state["input_blocks.0.0.weight"]
        state["input_blocks.0.0.weight"] = torch.cat([first, torch.full_like(first, 0.01), first[:, :1] * 0.1], 1)
        other.model.diffusion_model.load_state_dict(state)
        return other

    def sdxl(self, model):
        return self._rebuilt(model, context_dim=2048)

    def _rebuilt(self, model, **changes):
        import comfy.model_patcher

        config = type(model.model.model_config)()
        config.unet_config = {**config.unet_config, **changes}
        base = config.get_model({}, "", device="cpu")
        return comfy.model_patcher.ModelPatcher(base, model.load_device, model.offload_device)

    def v_prediction(self, model):
        import comfy.model_sampling

        class Sampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.V_PREDICTION):
            pass

        model = model.clone()
        model.add_object_patch("model_sampling", Sampling(model.model.model_config))
        return model

    def compiled(self, model):
        model = model.clone()
        model.add_object_patch("diffusion_model", torch.compile(model.model.diffusion_model, backend="eager"))
        return model

    def recorded(self, model):
        from comfy.patcher_extension import WrappersMP

        model, calls = model.clone(), []
        model.model.diffusion_model.probe_inputs = calls

        def record(executor, x, timesteps, context, *rest, **named):
            calls.append((x.clone(), timesteps.clone(), context.clone()))
            return executor(x, timesteps, context, *rest, **named)

        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "probe", record)
        return model

    def counted(self, model):
        unet = model.model.diffusion_model
        if hasattr(unet, "probe_calls"):  # counted already: the host keeps models from prompt to prompt
            return model
        unet.probe_calls = 0

        def count(module, args):
            unet.probe_calls += 1

        unet.input_blocks[0][0].register_forward_pre_hook(count)
        return model


class ProbeTaps:
    """What the pack's own host over `model` extracts of latents that a test noised, under a text: taps by block."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("*",), "extract", "probe"

    @classmethod
    def INPUT_TYPES(cls):
        links = {"model": ("MODEL",), "clip": ("CLIP",), "head": ("LDZNET_HEAD",), "latent": ("LATENT",)}
        return {"required": {**links, "text": ("STRING", {}), "timestep": ("INT", {"max": 999})}}

    def extract(self, model, clip, head, latent, text, timestep):
        host = sys.modules[f"{type(head).__module__.rpartition('.')[0]}.comfyui"].ComfyHost(model, clip)
        clean = model.model.process_latent_in(latent["samples"])
        steps = torch.full((len(clean),), timestep)
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
        context = host.encode_text([text]).expand(len(clean), -1, -1)
        return (dict(host.extract(host.add_noise(clean, noise, steps), steps, context, list(host.specs))),)


class ProbeCaptured:
    """What a capture holds of the run that returned `latent`, and the call of a recorded UNet that it was read in."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("*",), "look", "probe"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"capture": ("LDZNET_CAPTURE",), "latent": ("LATENT",), "model": ("MODEL",)}}

    def look(self, capture, latent, model):
        (run,) = capture.returned(latent["samples"])
        x, timesteps, context = next(
            call for call in model.model.diffusion_model.probe_inputs if float(call[1][0]) == run.step
        )
        return ({"x": x, "timesteps": timesteps, "context": context, **run.taps()},)


class ProbeState:
    """Calls of a counted UNet so far, and hooks of others on it, names of the attention kernel that stand for another
    function among them; `after` only says when."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("STRING",), "look", "probe"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "after": ("*", {})}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types):
        return True

    @classmethod
    def IS_CHANGED(cls, **_):
        return float("nan")

    def look(self, model, after):
        unet = model.model.diffusion_model
        kept = [part for module in unet.modules() for part in (module._forward_hooks, module._forward_pre_hooks)]
        hooks = sum(hook.__module__ != __name__ for part in kept for hook in part.values())
        kernel = beside.attention.optimized_attention
        hooks += sum(code.optimized_attention is not kernel for code in beside.kernel_users())
        return (f"{getattr(unet, 'probe_calls', 0)} calls, {hooks} hooks",)


class ProbeExpand:
    """The least that expands: to one ProbeLatent."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("LATENT",), "expand", "probe"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"fill": ("FLOAT", {"default": 0.0})}}

    def expand(self, fill):
        graph = GraphBuilder()
        made = graph.node("ProbeLatent", shape="1 4 8 8", fill=fill)
        return {"result": (made.out(0),), "expand": graph.finalize()}


class ProbeLatent:
    """Latents that no sampler would give."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("LATENT",), "make", "probe"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"shape": ("STRING", {}), "fill": ("FLOAT", {"min": -1e9, "max": 1e9})}}

    @classmethod
    def VALIDATE_INPUTS(cls, fill):
        return True

    def make(self, shape, fill):
        return ({"samples": torch.full([int(n) for n in shape.split()], float(fill))},)


# UNets of other families, small
SHARED = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 64,
    "num_head_channels": 16,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "use_temporal_attention": False,
    "legacy": False,
}
SD1 = {
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "num_heads": 8,
    "num_head_channels": -1,
    "use_linear_in_transformer": False,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": 768,
}
SD2 = {
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": 1024,
}
SDXL = {
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 1, 1, 2, 2],
    "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
    "transformer_depth_middle": 2,
    "context_dim": 2048,
    "adm_in_channels": 2816,
    "num_classes": "sequential",
}


ZIMAGE = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 96,
    "cap_feat_dim": 64,
    "n_layers": 1,
    "qk_norm": True,
    "n_heads": 2,
    "n_kv_heads": 2,
    "axes_dims": [16, 16, 16],
    "axes_lens": [64, 64, 64],
    "rope_theta": 256.0,
    "ffn_dim_multiplier": 8 / 3,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "clip_text_dim": 32,
}


class ProbeZImage:
    """A small relative of Z-Image that no head reads (as NewBie: two text encoders), and a VAE whose latents
    have its 16 channels: neither can paint or encode anything."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL", "VAE"), "make", "probe"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def make(self):
        import comfy.model_patcher
        import comfy.supported_models

        class Wide:
            def encode(self, image):
                return torch.zeros(len(image), 16, image.shape[1] // 8, image.shape[2] // 8)

        config = comfy.supported_models.ZImage(ZIMAGE)
        config.set_inference_dtype(torch.float32, None)
        base = config.get_model({"nothing": torch.zeros(1)}, "nowhere.", device="cpu")
        return comfy.model_patcher.ModelPatcher(base, torch.device("cpu"), torch.device("cpu")), Wide()


class ProbeTransformer:
    """A small transformer of random weights with its text encoder: ComfyUI's own classes. Its VAE encodes nothing."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL", "CLIP", "VAE"), "make", "probe"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"family": ("STRING", {})}}

    def make(self, family):
        import importlib.util
        import pathlib

        path = pathlib.Path(__file__).resolve().parents[2] / "joint" / "families.py"
        spec = importlib.util.spec_from_file_location("ldznet_probe_families", path)
        families = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(families)
        name, _, variant = family.partition(" ")
        sizes = {"clip_text_dim": 32} if variant == "relative" else {}
        model = families.model(name, **sizes)
        latents = model.model.latent_format

        class Wide:
            def encode(self, image):
                cell = getattr(latents, "spacial_downscale_ratio", 32 if latents.latent_channels == 64 else 8)
                frames = [1] * (latents.latent_dimensions == 3)
                size = image.shape[1] // cell, image.shape[2] // cell
                return torch.ones(len(image), latents.latent_channels, *frames, *size)

        return model, families.clip(name), Wide()


class ProbeFamily:
    """A small SD 1.x, 2.x or SDXL of random weights: ComfyUI's own UNet and tokenizers, and contexts drawn by token."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL", "CLIP"), "make", "probe"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"family": (["sd1", "sd2", "sdxl"],)}}

    def make(self, family):
        import comfy.model_patcher
        import comfy.sd1_clip
        import comfy.sdxl_clip
        import comfy.supported_models
        import comfy.text_encoders.sd2_clip

        known, changes, tokenizer = {
            "sd1": (comfy.supported_models.SD15, SD1, comfy.sd1_clip.SD1Tokenizer),
            "sd2": (comfy.supported_models.SD20, SD2, comfy.text_encoders.sd2_clip.SD2Tokenizer),
            "sdxl": (comfy.supported_models.SDXL, SDXL, comfy.sdxl_clip.SDXLTokenizer),
        }[family]
        config = known({**SHARED, **changes})
        config.set_inference_dtype(torch.float32, None)
        base = config.get_model({"nothing": torch.zeros(1)}, "nowhere.", device="cpu")
        generator = torch.Generator().manual_seed(0)
        for weight in base.diffusion_model.parameters():
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
        model = comfy.model_patcher.ModelPatcher(base, torch.device("cpu"), torch.device("cpu"))
        return model, _DrawnCLIP(tokenizer(), config.unet_config["context_dim"])


class _DrawnCLIP:
    """As much of a CLIP as nodes ask for; the context of a token depends on the token alone."""

    def __init__(self, tokenizer, width):
        self.tokenizer, self.width = tokenizer, width
        self.cond_stage_model = torch.nn.Module()  # of which no encoder is told to be missing

    def clone(self):
        return self

    def clip_layer(self, layer):
        pass

    def tokenize(self, text, return_word_ids=False):
        return self.tokenizer.tokenize_with_weights(text, return_word_ids)

    def encode_from_tokens(self, tokens, return_pooled=False, return_dict=False):
        rows = next(iter(tokens.values()))
        cond = torch.stack([self._of(token[0]) for row in rows for token in row])[None]
        return {"cond": cond, "pooled_output": cond[:, 0, :1280]} if return_dict else cond

    def encode_from_tokens_scheduled(self, tokens):
        encoded = self.encode_from_tokens(tokens, return_dict=True)
        return [[encoded.pop("cond"), encoded]]

    def _of(self, token):
        return torch.randn(self.width, generator=torch.Generator().manual_seed(token))


NODE_CLASS_MAPPINGS = {
    **models.NODES,
    **beside.NODES,
    "ProbeFamily": ProbeFamily,
    "ProbeTransformer": ProbeTransformer,
    "ProbeZImage": ProbeZImage,
    "ProbeSave": ProbeSave,
    "ProbeModel": ProbeModel,
    "ProbeState": ProbeState,
    "ProbeTaps": ProbeTaps,
    "ProbeCaptured": ProbeCaptured,
    "ProbeExpand": ProbeExpand,
    "ProbeLatent": ProbeLatent,
}
