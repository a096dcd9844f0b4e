"""What the section shows in the page beside its settings: a look before a run, and what became of one.

Runs on gradio 3.41 and 4.40. The host's own pictures are known by their ids, on a Forge by the canvas that they lie in.
"""

import contextlib
import dataclasses
import html
from pathlib import Path

import gradio as gr
from modules import errors, shared

JS = "js" if int(gr.__version__.split(".")[0]) >= 4 else "_js"
PICTURES = ("img2img_image", "img2img_sketch", "img2maskimg", "inpaint_sketch", "img_inpaint_base")  # a tab each
UPLOAD, MASK, UPLOAD_TAB = "img_inpaint_base", "img_inpaint_mask", 4
LOGS = {"html_log_img2img": "img2img", "html_log_txt2img": "txt2img"}  # made last in each tab
CANVAS = "logical_image_background"  # the class of a Forge's picture, which follows the canvas that has its id
REDRAWS = ("threshold", "grow", "feather", "fill_holes", "drop_specks", "refine", "invert", "passes")
WHICH_TAB = "(...given) => [get_tab_index('mode_img2img'), ...given.slice(1)]"
SENT = "sent to Inpaint upload"
TO_UPLOAD = f"(said) => {{ if (said.includes('{SENT}')) switch_to_img2img_tab({UPLOAD_TAB}); return []; }}"
NO_LOOK = "Expected masks to be shown first. Press Show masks."
STOPPED = "Stopped while phrases were looked for."
NO_PICTURE = "Expected a picture in this tab of img2img, got none. Give one."


class Page:
    """The section's own components and those of the host that it reads and fills, by tab and id."""

    def __init__(self, settings, library, looker, calls, job):
        """`library`, `looker`, `calls` and `job` are the script's; they load what is needed once it is asked for."""
        self._settings, self._library, self._looker, self._calls, self._job = settings, library, looker, calls, job
        self._own, self._host, self._canvas = {}, {}, None

    def add(self, tab, made):
        """Makes the components below the settings `made`."""
        own = {"made": made}
        if tab == "img2img":
            with gr.Row():
                own["show"] = gr.Button("Show masks", elem_id="ldznet_show")
                own["send"] = gr.Button("Send to Inpaint upload", elem_id="ldznet_send")
                own["save"] = gr.Button("Save masks", elem_id="ldznet_save")
            own["tab"] = gr.Number(value=0, visible=False)
            own["look"] = gr.State(None)
            own["overlay"] = gr.Image(
                show_label=False, interactive=False, type="pil", visible=False, elem_id="ldznet_overlay"
            )
            own["said"] = gr.HTML(elem_id="ldznet_img2img_said")
        gr.HTML(elem_id=f"ldznet_{tab}_ran")  # javascript/ldznet.js fills it with the host's lines
        self._own[tab] = own

    def note(self, component, **_):
        """For `on_after_component`: remembers the host's components, and wires a tab once its last is there."""
        name = getattr(component, "elem_id", None)
        if CANVAS in (getattr(component, "elem_classes", None) or []) and self._canvas is not None:
            self._host[self._canvas], self._canvas = component, None
        elif name in PICTURES or name == MASK:
            self._host[name] = component
            self._canvas = name if isinstance(component, gr.HTML) else None
        elif name in LOGS and LOGS[name] in self._own:
            self._wire(LOGS[name])

    def _wire(self, tab):
        own = self._own[tab]
        if tab != "img2img" or any(name not in self._host for name in (*PICTURES, MASK)):
            return
        values = [own["made"][name] for name in self._settings.NAMES]
        pictures = [self._host[name] for name in PICTURES]
        shown = [own["look"], own["overlay"], own["said"]]
        own["show"].click(self.show, inputs=[own["tab"], *pictures, *values], outputs=shown, **{JS: WHICH_TAB})
        for name in REDRAWS:
            changed = {"trigger_mode": "always_last"} if JS == "js" else {}
            own["made"][name].change(
                self.redraw, inputs=[own["look"], *values], outputs=shown[1:], show_progress=False, **changed
            )
        sent = own["send"].click(
            self.send, inputs=[own["look"], *values], outputs=[self._host[UPLOAD], self._host[MASK], own["said"]]
        )
        sent.then(fn=None, inputs=[own["said"]], outputs=[], **{JS: TO_UPLOAD})
        own["save"].click(self.save, inputs=[own["look"], *values], outputs=[own["said"]])

    def show(self, tab, *given):
        """A look at the picture of the tab that the user is in: it, the overlay, and what is said of it."""
        pictures, values = given[: len(PICTURES)], given[len(PICTURES) :]
        with self._saying() as said:
            picture = of_canvas(pictures[int(tab)]) if int(tab) < len(pictures) else None
            if picture is None:
                raise ValueError(NO_PICTURE)
            showing, calls = self._library("showing"), self._calls()
            settings = self._settings.Settings.of(values)
            with self._job():
                look = showing.look(calls.flatten(picture).convert("RGB"), settings, self._looker(), calls)
                overlay, lines = showing.seen(look, settings, calls)
            return look, gr.update(value=overlay, visible=True), paragraphs(lines)
        return None, gr.update(value=None, visible=False), said[0]

    def redraw(self, look, *values):
        """The overlay of the same soft maps with other settings; asks no model."""
        if look is None:
            return gr.update(), gr.update()
        with self._saying() as said:
            overlay, lines = self._library("showing").seen(look, self._settings.Settings.of(values), self._drawing())
            return gr.update(value=overlay, visible=True), paragraphs(lines)
        return gr.update(), said[0]

    def send(self, look, *values):
        """The picture and the mask of all phrases into Inpaint upload."""
        with self._saying() as said:
            settings = self._settings.Settings.of(values)
            mask = self._library("showing").whole(required(look), settings, self._drawing())
            return look.picture, mask, paragraphs([SENT])
        return gr.update(), gr.update(), said[0]

    def save(self, look, *values):
        """A file for each mask, where the host's own button Save puts pictures."""
        with self._saying() as said:
            showing, settings = self._library("showing"), self._settings.Settings.of(values)
            masks = showing.parts(required(look), settings, self._drawing())
            folder = Path(shared.opts.outdir_save) / "ldznet"
            paths = showing.save(masks, showing.names_of(look, settings), folder)
            return paragraphs([f"saved {path}" for path in paths])
        return said[0]

    def _drawing(self):
        """The host, for work that no stop of a run ends."""
        return dataclasses.replace(self._calls(), cancelled=lambda: False)

    @contextlib.contextmanager
    def _saying(self):
        """A list that holds, as a paragraph, what went wrong inside; a fault of ours goes into the log too."""
        said = [""]
        try:
            yield said
        except (ValueError, self._library("showing").LDZNetError) as error:
            said[0] = paragraphs([str(error)])
        except self._library("showing").Cancelled:
            said[0] = paragraphs([STOPPED])
        except Exception as error:
            errors.report(f"LD-ZNet: {error}", exc_info=True)
            said[0] = paragraphs([f"{type(error).__name__}: {error} (the log says more)"])


def required(look):
    """A look that was taken."""
    if look is None:
        raise ValueError(NO_LOOK)
    return look


def of_canvas(picture):
    """A picture without what was drawn on it."""
    return picture["image"] if isinstance(picture, dict) else picture


def paragraphs(lines):
    """Lines as HTML."""
    return "".join(f"<p>{html.escape(line)}</p>" for line in lines)
