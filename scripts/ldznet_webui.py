"""The section "LD-ZNet: mask by words" of A1111 and the Forges: its interface, and the wires to the host.

What it does lies in `ldznet/webui`. Until it is switched on, that folder's `settings` is all that is loaded; then the
library is, by its location and under a name of its own, so that other extensions' folders cannot be taken for it.
"""

import contextlib
import copy
import importlib
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
from modules import (
    errors,
    extra_networks,
    images,
    paths,
    processing,
    prompt_parser,
    script_callbacks,
    scripts,
    sd_models,
    sd_vae,
    shared,
)

LIBRARY, PARTS = Path(__file__).absolute().parents[1] / "ldznet", Path(__file__).absolute().parent / "parts"
NAME = "_ldznet_of_webui"
HEADS = Path(paths.models_path) / "ldznet"
LABELS = {
    "enabled": "Enable",
    "phrases": "Phrases, one a line",
    "head": "Head",
    "threshold": "Threshold",
    "grow": "Grow by pixels",
    "feather": "Feather by pixels",
    "fill_holes": "Fill holes",
    "drop_specks": "Drop pieces of fewer pixels than",
    "refine": "Refine edges",
    "invert": "Everything but the phrases",
    "passes": "Passes",
    "drawn": "A drawn mask is",
    "missing": "Where nothing is found",
    "details": "Details, one a line: phrase => prompt (no prompt: the picture's own)",
    "denoise": "Denoising strength of details",
    "size": "Size at which a detail is painted (0: the picture's)",
    "steps": "Steps of a detail (0: the picture's)",
    "padding": "Pixels around a detail that are seen",
    "blur": "Mask blur of details",
    "while_sampling": "Find words of the prompt while sampling",
    "gallery": "Show masks and overlays after the pictures",
}
OF_IMG2IMG = ("phrases", "passes", "drawn", "missing")  # of no use in txt2img


def loaded(name, path):
    """The module or package at `path` as `name`; loaded once."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


WHOLE = hasattr(scripts.Script, "postprocess_image_after_composite")
NOT_WHOLE = (
    "Expected Automatic1111, Forge, reForge or Forge Neo, got a host (SD.Next) that tells scripts nothing of "
    "its latents and finished pictures: masks by words do nothing here. Use one of these, or ComfyUI."
)

SETTINGS = loaded(f"{NAME}_settings", LIBRARY / "webui" / "settings.py")
axes, jobs, page, routes = (
    loaded(f"{NAME}_{part}", PARTS / f"{part}.py") for part in ("axes", "jobs", "page", "routes")
)


def library(part):
    """A module of `ldznet/webui`, and with it the library."""
    loaded(NAME, LIBRARY / "__init__.py")
    return importlib.import_module(f"{NAME}.webui.{part}")


def head_names():
    """What the list shows: heads without a file, then files."""
    files = sorted(path.name for path in HEADS.glob("*.safetensors")) if HEADS.is_dir() else []
    return [*SETTINGS.WITHOUT_FILE, *files]


def looker():
    """The one that this host has."""
    if LDZNetScript.looker is None:
        LDZNetScript.looker = library("looking").Looker(HEADS)
    return LDZNetScript.looker


class LDZNetScript(scripts.Script):
    """The section of both tabs."""

    looker = None

    def title(self):
        """As `alwayson_scripts` names it."""
        return SETTINGS.TITLE

    def show(self, is_img2img):
        """In both."""
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        """The components, in the order of the settings' fields."""
        with gr.Accordion(SETTINGS.TITLE, open=False):
            if not WHOLE:
                gr.HTML(NOT_WHOLE)
                return []
            made = components(is_img2img)
        self.infotext_fields = [
            (component, lambda infotext, name=name: SETTINGS.restored(name, infotext))
            for name, component in made.items()
        ]
        self.paste_field_names = [SETTINGS.key_of(name) for name in SETTINGS.NAMES]
        return [made[name] for name in SETTINGS.NAMES]

    def process(self, p, *arguments):
        """Gives the run its mask before the host begins with the picture, and notes what is to be done afterwards."""
        arguments = axes.changed(SETTINGS, arguments, p)
        if WHOLE and is_on(arguments):
            library("section").begin(p, arguments, looker(), calls())

    def process_before_every_sampling(self, p, *arguments, **named):
        """Has the sampler keep its latents."""
        if has_details(p):
            library("detailing").before_sampling(p, named["c"], named["noise"], looker(), calls())

    def post_sample(self, p, ps, *arguments):
        """Finds details in the fresh latents."""
        if has_details(p):
            library("detailing").after_sampling(p, ps.samples, looker(), calls())

    def postprocess_image(self, p, pp, *arguments):
        """Paints the details of a picture, in "Only masked" of the part that was painted."""
        if has_details(p):
            pp.image = library("detailing").repainted(p, pp.image, calls(), painted)

    def postprocess_image_after_composite(self, p, pp, *arguments):
        """The picture as it was, or the passes of the phrases after the first."""
        run = getattr(p, "_ldznet_run", None)
        if run is not None:
            pp.image = run.finish(p, pp.image, p.batch_index, repainted)

    def postprocess(self, p, processed, *arguments):
        """Puts back what was set on `p`."""
        if has_details(p):
            library("detailing").finished(p, processed)
        run = getattr(p, "_ldznet_run", None)
        if run is not None:
            run.end(p)


def has_details(p):
    """Whether the section has to do with the pictures of `p` after they are made."""
    return hasattr(p, "_ldznet_details")


def is_on(arguments):
    """Whether the section has anything to do; arguments that make no sense are for it to complain about."""
    try:
        return SETTINGS.Settings.of(arguments).is_on
    except ValueError:
        return isinstance(arguments[0], dict) or bool(arguments[0])


def components(is_img2img):
    """The section's components by the names of the settings."""
    ranges, choices, tab = SETTINGS.RANGES, SETTINGS.CHOICES, "img2img" if is_img2img else "txt2img"

    def common(name):
        shown = is_img2img or name not in OF_IMG2IMG
        identity = f"ldznet_{tab}_{name}"
        return {"value": SETTINGS.DEFAULTS[name], "label": LABELS[name], "elem_id": identity, "visible": shown}

    def slider(name, step):
        return gr.Slider(*ranges[name], step=step, **common(name))

    def either(name):
        return gr.Checkbox(**common(name))

    def choice(name):
        return gr.Radio(list(choices[name]), **common(name))

    def box(name, example):
        return gr.Textbox(lines=2, placeholder=example, **common(name))

    with gr.Row():
        made = {"enabled": either("enabled"), "invert": either("invert"), "fill_holes": either("fill_holes")}
    made["phrases"] = box("phrases", "the dog\nthe dog - the collar")
    with gr.Row():
        made["head"] = gr.Dropdown(head_names(), **common("head"))
        made["threshold"] = slider("threshold", 0.01)
    with gr.Row():
        made["grow"], made["feather"] = slider("grow", 1), slider("feather", 1)
        made["drop_specks"] = gr.Number(precision=0, **common("drop_specks"))
    for name in ("refine", "passes", "drawn", "missing"):
        made[name] = choice(name)
    PAGE.add(tab, made)
    made["details"] = box("details", "the face\nthe hat => a red hat")
    with gr.Row():
        made["denoise"], made["steps"] = slider("denoise", 0.01), slider("steps", 1)
        made["size"] = slider("size", 8)
    with gr.Row():
        made["padding"], made["blur"] = slider("padding", 1), slider("blur", 1)
    with gr.Row():
        made["while_sampling"], made["gallery"] = either("while_sampling"), either("gallery")
    return made


def calls():
    """The host, as `ldznet/webui/calls.py` needs it."""
    return library("calls").Calls(
        sd_model=lambda: shared.sd_model,
        weights=weights,
        flatten=lambda image: images.flatten(image, shared.opts.img2img_background_color),
        resized=resized,
        without_networks=without_networks,
        texts=texts,
        cancelled=lambda: shared.state.interrupted or shared.state.skipped,
        stop=shared.state.interrupt,
        failed=lambda message: errors.report(f"LD-ZNet: {message}", exc_info=True),
    )


def weights():
    """The files whose weights are loaded: the hosts put other weights into the same model."""
    info = getattr(shared.sd_model, "sd_checkpoint_info", None)
    return f"{getattr(info, 'filename', '')} {getattr(sd_vae, 'loaded_vae_file', '')}"


def resized(p, image):
    """A picture as img2img gives it back: of its own size with "Only masked", else of the size that was asked for."""
    if p.inpaint_full_res:
        return image
    mode = 0 if p.resize_mode == 3 else p.resize_mode  # the host enlarges latents then, which is a stretch too
    return images.resize_image(mode, image, p.width, p.height)


@contextlib.contextmanager
def without_networks():
    """The model as its file has it: in `process`, the LoRAs of the last generation are still in it."""
    model = shared.sd_model
    before = getattr(model, "forge_objects", None)
    extra_networks.activate(SimpleNamespace(scripts=None, all_prompts=[], extra_generation_params={}), {})
    try:
        if before is not None:
            model.forge_objects = model.forge_objects_original.shallow_copy()
        yield
    finally:
        if before is not None:
            model.forge_objects = before


def texts(p, prompt):
    """Of each part of a prompt between AND the texts that editing and alternation make of it, in their order."""
    (indexes,), parts, _ = prompt_parser.get_multicond_prompt_list([prompt])
    steps, later = getattr(p, "firstpass_steps", None) or p.steps, None
    if getattr(p, "is_hr_pass", False):
        later = (p.hr_second_pass_steps or p.steps) * getattr(p, "step_multiplier", 1)
    schedules = prompt_parser.get_learned_conditioning_prompt_schedules(
        list(parts), steps, later, getattr(shared.opts, "use_old_scheduling", False)
    )
    return [[text for _, text in schedules[index]] for index, _ in indexes]


def painted(p, job):
    """The picture with one of its details, by img2img's own inpainting; None where the user has stopped it."""
    settings, at = job.settings, job.at
    again = processing.StableDiffusionProcessingImg2Img(
        sd_model=shared.sd_model,
        outpath_samples=p.outpath_samples,
        outpath_grids=p.outpath_grids,
        prompt=job.order.prompt or p.all_prompts[at],
        negative_prompt=p.all_negative_prompts[at],
        styles=[],
        seed=p.all_seeds[at] + job.number,
        subseed=p.all_subseeds[at],
        subseed_strength=p.subseed_strength,
        sampler_name=p.sampler_name,
        steps=settings.steps or p.steps,
        cfg_scale=p.cfg_scale,
        width=(settings.size or p.width) // 8 * 8,
        height=(settings.size or p.height) // 8 * 8,
        tiling=p.tiling,
        restore_faces=False,
        do_not_save_samples=True,
        do_not_save_grid=True,
        override_settings={"overlay_inpaint": True, "img2img_color_correction": False},
        init_images=[job.picture],
        mask=job.mask,
        mask_blur=settings.blur,
        inpainting_fill=1,
        inpaint_full_res=True,
        inpaint_full_res_padding=settings.padding,
        denoising_strength=settings.denoise,
    )
    for name in ("scheduler", "distilled_cfg_scale"):
        if hasattr(p, name):
            setattr(again, name, getattr(p, name))
    return run_inside(again)


def run_inside(p):
    """The one picture of `p`, run by no script inside of another run; None where the user has stopped it."""
    p.scripts_value, p.script_args_value = scripts.ScriptRunner(), []  # not None: reForge reads its list unasked
    model, merged = shared.sd_model, getattr(shared.sd_model, "applied_token_merged_ratio", 0)
    try:
        done = processing.process_images(p)
    finally:
        p.close()
        if merged and getattr(model, "applied_token_merged_ratio", merged) != merged:
            sd_models.apply_token_merging(model, merged)
    stopped = shared.state.interrupted or shared.state.skipped
    return None if stopped or not done.images else done.images[0]


def repainted(p, picture, mask, place):
    """`picture`, inpainted once more by `mask` with the settings of `p`."""
    again, at = copy.copy(p), p.iteration * p.batch_size + place
    own = {
        "init_images": [picture],
        "image_mask": mask,
        "prompt": p.all_prompts[at],
        "negative_prompt": p.all_negative_prompts[at],
        "seed": p.all_seeds[at],
        "subseed": p.all_subseeds[at],
        "extra_generation_params": {},
        "override_settings": {},
        "cached_c": [None, None],
        "cached_uc": [None, None],
    }
    once = {"n_iter": 1, "batch_size": 1, "styles": [], "do_not_save_samples": True, "do_not_save_grid": True}
    fresh = ("mask", "nmask", "init_latent", "overlay_images", "mask_for_overlay", "color_corrections", "paste_to")
    vars(again).update(own, **once, **dict.fromkeys(fresh))
    return run_inside(again) or picture


def serve(body):
    """What `POST /ldznet/segment` answers."""
    with jobs.job():
        return library("serving").answer(body, looker(), calls())


PAGE = page.Page(SETTINGS, library, looker, calls, jobs.job)
if WHOLE:
    script_callbacks.on_after_component(PAGE.note)
    axes.add(SETTINGS, head_names)  # the API alone asks scripts for their components before it calls back
    script_callbacks.on_before_ui(lambda: axes.add(SETTINGS, head_names))
    script_callbacks.on_app_started(lambda demo, app: routes.add(app, serve))
