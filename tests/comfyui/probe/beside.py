"""What other packs do to a MODEL that a capture beside them must survive: compiled, cached, or run another way."""

import functools
import sys

import torch
from comfy.ldm.modules import attention
from comfy.ldm.modules.diffusionmodules.openaimodel import forward_timestep_embed
from comfy.ldm.modules.diffusionmodules.util import timestep_embedding
from comfy_api.torch_helpers import set_torch_compile_wrapper

SHALLOW, EVERY = 3, 3  # blocks that a cached step still runs, on either side; steps of which one is whole


class ProbeBeside:
    """`model`, compiled as TorchCompileModel does it, with a sampler's calls run as DeepCache packs run them, or with
    attention of its own, weaker than the host's, under the one key that such packs have or, where a network's code asks
    for none, under the kernel's name in that code."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "change", "probe"
    KINDS = ("compiled", "deep cache", "own forward", "own attention", "own kernel")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "kind": (list(cls.KINDS),)}}

    def change(self, model, kind):
        model = model.clone()
        if kind == "compiled":
            set_torch_compile_wrapper(model=model, backend="eager")
        elif kind == "own attention":
            model.model_options["transformer_options"]["optimized_attention_override"] = _weaker
        elif kind == "own kernel":
            model.set_model_unet_function_wrapper(_with_kernel)
        else:
            model.set_model_unet_function_wrapper(_Cached(model.model, whole_by_host=kind == "deep cache"))
        return (model,)


def _weaker(kernel, *args, **named):
    return 0.5 * kernel(*args, **named)


def _with_kernel(apply_model, args):
    """A call of the model with every name of the kernel but its own standing for a weaker one."""
    there = {code: code.optimized_attention for code in kernel_users()}
    try:
        for code, kernel in there.items():
            code.optimized_attention = functools.partial(_weaker, kernel)
        return apply_model(args["input"], args["timestep"], **args["c"])
    finally:
        for code, kernel in there.items():
            code.optimized_attention = kernel


def kernel_users():
    """The modules of ComfyUI's networks that have a name for its attention kernel."""
    loaded = [module for name, module in sys.modules.items() if name.startswith("comfy.ldm.")]
    return [module for module in loaded if module is not attention and hasattr(module, "optimized_attention")]


class _Cached:
    """Of `EVERY` steps one is whole; of the others only the outermost blocks run, on what the deep ones said last.

    Whole steps are the host's own (`whole_by_host`), or, as the others, a forward that no wrapper of the host sees.
    """

    def __init__(self, base, whole_by_host):
        self.base, self.whole_by_host = base, whole_by_host
        self.sigma, self.count, self.deep = 0.0, 0, None

    def __deepcopy__(self, memo):
        return self  # ComfyUI 0.3.64 copies a model's options deeply; such packs put functions there, which stay

    def __call__(self, apply_model, args):
        x, sigma, c = args["input"], args["timestep"], args["c"]
        level = float(sigma[0])
        self.count = 0 if level > self.sigma else self.count + (level < self.sigma)  # a higher one: another run
        self.sigma, whole = level, self.count % EVERY == 0
        if whole and self.whole_by_host:
            return self._by_host(apply_model, x, sigma, c)
        return self._by_itself(x, sigma, c, whole)

    def _by_host(self, apply_model, x, sigma, c):
        unet = self.base.diffusion_model

        def keep(module, taken):
            self.deep = taken[0][:, : -unet.model_channels]  # beside what skips the deep blocks

        hook = unet.output_blocks[-SHALLOW][0].register_forward_pre_hook(keep)
        try:
            return apply_model(x, sigma, **c)
        finally:
            hook.remove()

    def _by_itself(self, x, sigma, c, whole):
        unet, sampling = self.base.diffusion_model, self.base.model_sampling
        h, skips = sampling.calculate_input(sigma, x), []
        emb = unet.time_embed(timestep_embedding(sampling.timestep(sigma).float(), unet.model_channels))
        context, options = c["c_crossattn"], {**c["transformer_options"], "original_shape": list(x.shape)}

        def run(block, h):
            return forward_timestep_embed(block, h, emb, context, options, skips[-1].shape if skips else None)

        for block in unet.input_blocks if whole else unet.input_blocks[:SHALLOW]:
            h = run(block, h)
            skips.append(h)
        if whole:
            h = run(unet.middle_block, h)
        for block in unet.output_blocks if whole else unet.output_blocks[-SHALLOW:]:
            if len(skips) == SHALLOW:
                self.deep = h = h if whole else self.deep
            skip = skips.pop()
            h = run(block, torch.cat([h, skip], dim=1))
        return sampling.calculate_denoised(sigma, unet.out(h).float(), x)


class ProbeLater:
    """`value`, as soon as `after` is there: the order in which a graph runs is not its own otherwise."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("LATENT",), "wait", "probe"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": ("LATENT",), "after": ("*", {})}}

    @classmethod
    def VALIDATE_INPUTS(cls, input_types):
        return True

    def wait(self, value, after):
        return (value,)


NODES = {node.__name__: node for node in (ProbeBeside, ProbeLater)}
