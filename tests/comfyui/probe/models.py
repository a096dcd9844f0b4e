"""Models as people have them, made of the tiny one: quantised weights, an image adapter, a ControlNet."""

import comfy.cldm.cldm
import comfy.controlnet
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.samplers
import torch
from comfy.ldm.modules.attention import optimized_attention

FP8 = torch.float8_e4m3fn
RUN = 32  # weights that share a scale: GGUF's Q8_0 is a float16 and 32 signed bytes
BLOCKS = (("input", (1, 2, 4, 5, 7, 8)), ("middle", (0,)), ("output", range(3, 12)))  # with attention, as patches say


class ProbeWeights:
    """`model` in float8, as UNETLoader loads it, or in Q8_0, as a GGUF loader does; and its float32 equals."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "change", "probe"
    KINDS = ("fp8", "fp8 in float32", "gguf", "gguf in float32")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "kind": (list(cls.KINDS),)}}

    def change(self, model, kind):
        comfy.model_management.load_models_gpu([model])  # or another clone's LoRA may be in the weights
        state, changes = dict(model.model.diffusion_model.state_dict()), {}
        if kind == "fp8":
            changes["dtype"] = FP8
        elif kind == "fp8 in float32":
            state = {name: weight.to(FP8).float() for name, weight in state.items()}
        else:
            changes["custom_operations"] = PackedOps if kind == "gguf" else None
            for name, weight in state.items():
                if weight.ndim > 1 and weight.numel() % RUN == 0:
                    rows = packed(weight)
                    state[name] = rows if kind == "gguf" else unpacked(rows, weight.shape)
        return (rebuilt(model, state, **changes),)


def rebuilt(model, state, dtype=torch.float32, custom_operations=None):
    """The steps of comfy.sd.load_diffusion_model_state_dict after it has found out what the file holds."""
    config = type(model.model.model_config)()
    dtypes = config.supported_inference_dtypes
    config.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(dtype, model.load_device, dtypes))
    config.custom_operations = custom_operations
    base = config.get_model({}, "", device="cpu")
    base.load_model_weights(dict(state))
    return comfy.model_patcher.ModelPatcher(base, model.load_device, model.offload_device)


def packed(weight):
    """Bytes, one row for each run of weights."""
    runs = weight.reshape(-1, RUN)
    scale = (runs.abs().amax(1, keepdim=True) / 127).half()
    steps = (runs / scale.float().clamp(min=1e-12)).round().clamp(-127, 127).to(torch.int8)
    return torch.cat([scale.view(torch.uint8), steps.view(torch.uint8)], 1)


def unpacked(rows, shape):
    """The weights of `packed` again, in float32."""
    scale, steps = rows[:, :2].contiguous().view(torch.float16), rows[:, 2:].contiguous().view(torch.int8)
    return (scale.float() * steps.float()).reshape(shape)


class _Packed:
    """A layer whose weight stays packed: no float, and of another shape than the layer's."""

    def _load_from_state_dict(self, state, prefix, *rest):
        weight = state[f"{prefix}weight"]
        if weight.dtype != torch.uint8:
            super()._load_from_state_dict(state, prefix, *rest)
            return
        self.unpacked_shape = self.weight.shape
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        if f"{prefix}bias" in state:
            self.bias = torch.nn.Parameter(state[f"{prefix}bias"], requires_grad=False)

    def forward_comfy_cast_weights(self, x):
        if self.weight.dtype != torch.uint8:
            return super().forward_comfy_cast_weights(x)
        weight = unpacked(self.weight, self.unpacked_shape).to(x)
        return self.computed(x, weight, None if self.bias is None else self.bias.to(x))


class PackedOps(comfy.ops.manual_cast):
    """What a GGUF loader gives as custom_operations."""

    class Linear(_Packed, comfy.ops.manual_cast.Linear):
        def computed(self, x, weight, bias):
            return torch.nn.functional.linear(x, weight, bias)

    class Conv2d(_Packed, comfy.ops.manual_cast.Conv2d):
        def computed(self, x, weight, bias):
            return self._conv_forward(x, weight, bias)


class ProbeAdapter:
    """`model` with an image's tokens beside the text's in every cross-attention, as IPAdapter packs patch it in."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "change", "probe"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def change(self, model):
        def replaced(q, k, v, options):
            drawn = torch.randn(2, 1, 4, q.shape[-1], generator=torch.Generator().manual_seed(0)).to(q)
            keys, values = (part.expand(q.shape[0], -1, -1) for part in drawn)
            text = optimized_attention(q, k, v, options["n_heads"])
            return text + 0.5 * optimized_attention(q, keys, values, options["n_heads"])

        model = model.clone()
        for stage, numbers in BLOCKS:
            for number in numbers:
                model.set_model_attn2_replace(replaced, stage, number)
        return (model,)


class ProbeGuidance:
    """`model` whose sampler runs the positive prompt once more at each step, as PAG does, with no self-attention at
    all; what comes of it is thrown away."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "change", "probe"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def change(self, model):
        def again(args):
            options = args["model_options"].copy()
            for stage, numbers in BLOCKS:
                for number in numbers:
                    options = comfy.model_patcher.set_model_options_patch_replace(
                        options, lambda q, k, v, extra: q * 0, "attn1", stage, number
                    )
            comfy.samplers.calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], options)
            return args["denoised"]

        model = model.clone()
        model.set_model_sampler_post_cfg_function(again)
        return (model,)


class ProbeControlNet:
    """A ControlNet for `model`, of random weights."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("CONTROL_NET",), "make", "probe"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def make(self, model):
        config = {**model.model.model_config.unet_config, "hint_channels": 3, "dtype": torch.float32}
        del config["out_channels"]
        net, generator = comfy.cldm.cldm.ControlNet(**config, device="cpu"), torch.Generator().manual_seed(0)
        state = {}
        for name, weight in net.state_dict().items():
            drawn = torch.randn(weight.shape, generator=generator) * 0.05
            state[name] = drawn if weight.ndim > 1 else torch.full_like(weight, float(name.endswith("weight")))
        net.load_state_dict(state)
        return (comfy.controlnet.ControlNet(net, load_device=model.load_device),)


NODES = {node.__name__: node for node in (ProbeWeights, ProbeAdapter, ProbeGuidance, ProbeControlNet)}
