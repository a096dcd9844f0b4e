"""`scripts/ldznet_webui.py` over stand-ins of gradio and of the host's modules: its components, and that off is off."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from webui import standin
from webui.standin_modules import INTERFACE, Component, Plot, Refused, heard, plots

from ldznet.webui.settings import NAMES, TITLE, Settings


def own_modules(script: Any) -> set[str]:
    return {name for name in sys.modules if name.startswith(script.NAME)}


def test_its_components_are_the_settings_in_their_order(script: Any, tmp_path: Path) -> None:
    (tmp_path / "ldznet").mkdir()
    (tmp_path / "ldznet" / "own.safetensors").touch()
    section = script.LDZNetScript()
    made = section.ui(True)
    assert [component.named["label"] for component in made] == [script.LABELS[name] for name in NAMES]
    assert [component.named["value"] for component in made] == [getattr(Settings(), name) for name in NAMES]
    restore = {label(component): restored for component, restored in section.infotext_fields}
    assert restore["Threshold"]({"LDZNet phrases": "a dog", "LDZNet threshold": "0.25"}) == 0.25
    assert restore["Threshold"]({"Steps": "20"}) is None
    assert section.title() == TITLE
    assert (section.show(True), section.show(False)) == ("always", "always")
    assert script.head_names()[-1] == "own.safetensors"


def label(component: Component) -> str:
    return component.named["label"]


@pytest.mark.parametrize("arguments", [[], [False, "a dog"], [True, " "], [{"enabled": False, "phrases": "a dog"}]])
def test_off_loads_nothing_and_touches_nothing(script: Any, arguments: list[Any]) -> None:
    p = standin.Processing(Image.new("RGB", (64, 64)))
    before = dict(vars(p))
    section, pp = script.LDZNetScript(), SimpleNamespace(image="as it was")
    section.process(p, *arguments)
    section.process_before_every_sampling(p, *arguments, x=None, noise=None, c=None, uc=None)
    section.post_sample(p, SimpleNamespace(samples=None), *arguments)
    section.postprocess_image(p, pp, *arguments)
    section.postprocess_image_after_composite(p, pp, *arguments)
    section.postprocess(p, None, *arguments)
    assert vars(p) == before
    assert p.extra_generation_params == {"Denoising strength": 0.75}
    assert pp.image == "as it was"
    assert own_modules(script) == {f"{script.NAME}_{part}" for part in INTERFACE}


def test_on_the_library_has_a_name_of_its_own(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another extension's `ldznet` is another package."""
    taken = ModuleType("ldznet")
    monkeypatch.setitem(sys.modules, "ldznet", taken)
    section = script.library("section")
    assert section.__name__ == f"{script.NAME}.webui.section"
    assert sys.modules["ldznet"] is taken


def test_arguments_that_make_no_sense_are_not_taken_for_off(script: Any) -> None:
    assert script.is_on([{"phrases": "a dog", "thresh": 1}])
    assert script.is_on([True, "a dog", "head", "much"])
    assert not script.is_on([False, "a dog", "head", "much"])


def test_networks_are_put_back_on_a_forge(script: Any) -> None:
    activated: list[Any] = []
    script.extra_networks.activate = lambda p, data: activated.append((p.scripts, data))
    original, patched = SimpleNamespace(shallow_copy=lambda: "bare"), "with the last run's LoRA"
    model = SimpleNamespace(forge_objects=patched, forge_objects_original=original)
    script.shared.sd_model = model
    with contextlib.suppress(ZeroDivisionError), script.without_networks():
        assert model.forge_objects == "bare"
        raise ZeroDivisionError
    assert model.forge_objects == patched
    assert activated == [(None, {})]


@pytest.mark.parametrize("script", [object], indirect=True)
def test_on_sd_next_it_says_that_it_does_nothing(script: Any) -> None:
    assert script.LDZNetScript().ui(True) == []
    p = standin.Processing(Image.new("RGB", (64, 64)))
    before = dict(vars(p))
    script.LDZNetScript().process(p, {"phrases": "a dog"})
    assert vars(p) == before
    app = App(SimpleNamespace(path="/sdapi/v1/img2img", dependencies=[]))
    heard(script, "app_started", None, app)
    assert app.added == {}


def component(kind: str, **named: Any) -> Component:
    return getattr(sys.modules["gradio"], kind)(**named)


def opened(script: Any, canvas: bool) -> dict[str, Component]:
    """img2img as the host builds it, the section in the middle; by their ids, on a Forge the pictures in canvases."""
    made: dict[str, Component] = {}
    for name in script.page.PICTURES:
        made[name] = component("HTML" if canvas and name != script.page.UPLOAD else "Image", elem_id=name)
        heard(script, "after_component", made[name])
        if canvas and name != script.page.UPLOAD:
            for part in ("foreground", "background"):
                made[name] = component("Textbox", elem_id="uuid_1", elem_classes=[f"logical_image_{part}"])
                heard(script, "after_component", made[name])
    script.LDZNetScript().ui(True)
    for kind, name in (("Image", script.page.MASK), ("HTML", "html_log_img2img")):
        made[name] = component(kind, elem_id=name)
        heard(script, "after_component", made[name])
    return made


@pytest.mark.parametrize("canvas", [False, True])
def test_buttons_read_and_fill_the_host_s_own_pictures(script: Any, canvas: bool) -> None:
    """sd-webui-segment-anything#202, a-person-mask-generator#62: on a Forge the picture lies in a canvas."""
    host = opened(script, canvas)
    own = script.PAGE._own["img2img"]
    given = own["show"].wired["click"]["inputs"]
    assert given[1 : 1 + len(script.page.PICTURES)] == [host[name] for name in script.page.PICTURES]
    assert given[1 + len(script.page.PICTURES) :] == [own["made"][name] for name in NAMES]
    assert own["send"].wired["click"]["outputs"][:2] == [host[script.page.UPLOAD], host[script.page.MASK]]
    assert own["send"].wired["then"]["inputs"] == [own["said"]]  # the tab is opened by what was said
    assert script.page.SENT in own["send"].wired["then"]["js"]
    assert own["made"]["threshold"].wired["change"]["inputs"][0] is own["look"]
    assert not host["html_log_img2img"].wired  # in gradio 4 its change has no end


def test_lines_are_shown_as_they_are(script: Any) -> None:
    assert script.page.paragraphs(["<a>"]) == "<p>&lt;a&gt;</p>"


def test_redrawing_before_a_look_loads_nothing(script: Any) -> None:
    assert script.PAGE.redraw(None, *[getattr(Settings(), name) for name in NAMES]) == ({}, {})
    assert "_ldznet_of_webui" not in own_modules(script)


def test_axes_change_the_arguments_of_their_picture(script: Any) -> None:
    """sd-perturbed-attention#54: an axis with choices gives no picture through the API, so these have none."""
    (known,) = script.scripts.scripts_data
    plot = known.module
    axes = {option.label: option for option in plot.axis_options[2:]}
    assert list(axes) == ["[LD-ZNet] phrases", "[LD-ZNet] head", "[LD-ZNet] threshold", "[LD-ZNet] grow"]
    later = Plot()
    for there in (plot, later, later):  # once each, also where the plot is loaded after this script
        script.scripts.scripts_data = plots(there)
        heard(script, "before_ui")
        assert [option.label for option in there.axis_options[2:]] == list(axes)
    assert type(axes["[LD-ZNet] phrases"]) is Plot.AxisOptionImg2Img
    assert type(axes["[LD-ZNet] threshold"]) is Plot.AxisOption  # the host shows those of this very class in both tabs
    p = SimpleNamespace()
    axes["[LD-ZNet] phrases"].apply(p, r"a dog\nthe sky", [])
    axes["[LD-ZNet] threshold"].apply(p, 0.25, [])
    changed = Settings.of(script.axes.changed(script.SETTINGS, [], p))
    assert changed == Settings(enabled=True, phrases="a dog\nthe sky", threshold=0.25)
    by_name = script.axes.changed(script.SETTINGS, [{"phrases": "a cat", "grow": 3}], p)
    assert Settings.of(by_name) == Settings(enabled=True, phrases="a dog\nthe sky", threshold=0.25, grow=3)
    off = SimpleNamespace()
    axes["[LD-ZNet] threshold"].apply(off, 0.25, [])
    assert not script.is_on(script.axes.changed(script.SETTINGS, [False, "a dog"], off))
    axes["[LD-ZNet] head"].confirm(p, ["attention (no download)"])
    with pytest.raises(ValueError, match="Expected a head among"):
        axes["[LD-ZNet] head"].confirm(p, ["none.safetensors"])
    with pytest.raises(ValueError, match="0 to 1 as threshold"):
        axes["[LD-ZNet] threshold"].confirm(p, [0.5, 2.0])


class App:
    """FastAPI's, with the host's own API or without."""

    def __init__(self, *routes: Any) -> None:
        self.routes, self.added = [SimpleNamespace(path="/", dependencies=[]), *routes], dict[str, Any]()

    def add_api_route(self, path: str, endpoint: Any, **named: Any) -> None:
        self.added[path] = (endpoint, named)


def test_the_route_is_behind_the_host_s_own_switch_and_authentication(script: Any) -> None:
    without = App()
    heard(script, "app_started", None, without)
    assert without.added == {}
    app = App(SimpleNamespace(path="/sdapi/v1/img2img", dependencies=["who are you"]))
    heard(script, "app_started", None, app)
    _, named = app.added["/ldznet/segment"]
    assert named == {"methods": ["POST"], "dependencies": ["who are you"]}


def test_the_route_s_errors_are_the_caller_s(script: Any) -> None:
    app = App(SimpleNamespace(path="/sdapi/v1/img2img", dependencies=[]))

    def serve(body: Any) -> Any:
        raise ValueError(f"Expected less, got {body}.")

    script.routes.add(app, serve)
    with pytest.raises(Refused) as caught:
        app.added["/ldznet/segment"][0]({"a": 1})
    assert (caught.value.status_code, caught.value.detail) == (422, "Expected less, got {'a': 1}.")


def test_txt2img_hides_what_is_img2img_s(script: Any) -> None:
    hidden = [name for name, component in script.components(False).items() if component.named.get("visible") is False]
    assert sorted(hidden) == sorted(script.OF_IMG2IMG)
    assert all(component.named.get("visible", True) for component in script.components(True).values())


def test_a_prompt_s_parts_have_a_text_for_each_stretch_of_steps(script: Any) -> None:
    asked: list[Any] = []

    def schedules(parts: list[str], *steps: Any) -> list[Any]:
        asked.append(steps)
        return [[[3, "early"], [20, f"{part} at the end"]] for part in parts]

    script.prompt_parser.get_multicond_prompt_list = lambda prompts: ([[(1, 1.0), (0, 0.5)]], ["b", "a"], {})
    script.prompt_parser.get_learned_conditioning_prompt_schedules = schedules
    script.shared.opts = SimpleNamespace(use_old_scheduling=False)
    p = SimpleNamespace(steps=20, firstpass_steps=40, step_multiplier=2, hr_second_pass_steps=0, is_hr_pass=False)
    assert script.texts(p, "a AND b") == [["early", "a at the end"], ["early", "b at the end"]]
    p.is_hr_pass = True
    script.texts(p, "a AND b")
    assert asked == [(40, None, False), (40, 40, False)]
