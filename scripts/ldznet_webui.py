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
import torch
from modules import errors, extra_networks, images, paths, processing, scripts, sd_vae, shared

LIBRARY = Path(__file__).absolute().parents[1] / "ldznet"
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
}


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


SETTINGS = loaded(f"{NAME}_settings", LIBRARY / "webui" / "settings.py")


def library(part):
    """A module of `ldznet/webui`, and with it the library."""
    loaded(NAME, LIBRARY / "__init__.py")
    return importlib.import_module(f"{NAME}.webui.{part}")


def head_names():
    """What the list shows: heads without a file, then files."""
    files = sorted(path.name for path in HEADS.glob("*.safetensors")) if HEADS.is_dir() else []
    return [*SETTINGS.WITHOUT_FILE, *files]


class LDZNetScript(scripts.Script):
    """img2img's section."""

    looker = None

    def title(self):
        """As `alwayson_scripts` names it."""
        return SETTINGS.TITLE

    def show(self, is_img2img):
        """In img2img."""
        return scripts.AlwaysVisible if is_img2img else False

    def ui(self, is_img2img):
        """The components, in the order of the settings' fields."""
        with gr.Accordion(SETTINGS.TITLE, open=False):
            made = components()
        self.infotext_fields = [
            (component, lambda infotext, name=name: SETTINGS.restored(name, infotext))
            for name, component in made.items()
        ]
        self.paste_field_names = [SETTINGS.key_of(name) for name in SETTINGS.NAMES]
        return [made[name] for name in SETTINGS.NAMES]

    def process(self, p, *arguments):
        """Gives the run its mask before the host begins with the picture."""
        if not is_on(arguments) or getattr(p, "init_images", None) is None:
            return
        if LDZNetScript.looker is None:
            LDZNetScript.looker = library("looking").Looker(HEADS)
        library("inpainting").prepare(p, arguments, LDZNetScript.looker, calls())

    def postprocess_image_after_composite(self, p, pp, *arguments):
        """The picture as it was, or the passes of the phrases after the first."""
        run = getattr(p, "_ldznet_run", None)
        if run is not None:
            pp.image = run.finish(p, pp.image, p.batch_index, repainted)

    def postprocess(self, p, processed, *arguments):
        """Puts back what was set on `p`."""
        run = getattr(p, "_ldznet_run", None)
        if run is not None:
            run.end(p)


def is_on(arguments):
    """Whether the section has anything to do; arguments that make no sense are for it to complain about."""
    try:
        return SETTINGS.Settings.of(arguments).is_on
    except ValueError:
        return isinstance(arguments[0], dict) or bool(arguments[0])


def components():
    """The section's components by the names of the settings."""
    of, ranges, choices = SETTINGS.DEFAULTS, SETTINGS.RANGES, SETTINGS.CHOICES

    def slider(name, step):
        low, high = ranges[name]
        return gr.Slider(low, high, value=of[name], step=step, label=LABELS[name])

    def either(name):
        return gr.Checkbox(value=of[name], label=LABELS[name])

    def choice(name):
        return gr.Radio(list(choices[name]), value=of[name], label=LABELS[name])

    with gr.Row():
        made = {"enabled": either("enabled"), "invert": either("invert"), "fill_holes": either("fill_holes")}
    made["phrases"] = gr.Textbox(
        value="",
        lines=2,
        label=LABELS["phrases"],
        placeholder="the dog\nthe dog - the collar",
        elem_id="ldznet_phrases",
    )
    with gr.Row():
        made["head"] = gr.Dropdown(head_names(), value=of["head"], label=LABELS["head"])
        made["threshold"] = slider("threshold", 0.01)
    with gr.Row():
        made["grow"], made["feather"] = slider("grow", 1), slider("feather", 1)
        made["drop_specks"] = gr.Number(value=of["drop_specks"], label=LABELS["drop_specks"], precision=0)
    for name in ("refine", "passes", "drawn", "missing"):
        made[name] = choice(name)
    return made


def calls():
    """The host, as `ldznet/webui/inpainting.py` needs it."""
    return library("inpainting").Calls(
        sd_model=lambda: shared.sd_model,
        weights=weights,
        flatten=lambda image: images.flatten(image, shared.opts.img2img_background_color),
        resized=resized,
        without_networks=without_networks,
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
        if before is None:
            yield
            return
        model.forge_objects = model.forge_objects_original.shallow_copy()
        with torch.inference_mode():  # as a Forge runs its own: what it loads outside of that, it cannot use inside
            yield
    finally:
        if before is not None:
            model.forge_objects = before


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
    vars(again).update(own, **once, scripts_value=None, script_args_value=None, **dict.fromkeys(fresh))
    done = processing.process_images(again)
    return done.images[0] if done.images else picture
