"""gradio and the host's modules as far as `scripts/ldznet_webui.py` touches them."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

OTHERS = ("call_queue", "errors", "extra_networks", "images", "processing", "prompt_parser", "sd_models", "sd_vae")
GRADIO = "4.40.0"
INTERFACE = ("settings", "axes", "jobs", "page", "routes")  # all that is loaded while the section is off
SCRIPT = Path(__file__).parents[2] / "scripts" / "ldznet_webui.py"


class Component:
    """A gradio component or container, as far as a section makes one; `wired` holds its events."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.named, self.wired = named, dict[str, Any]()
        self.elem_id, self.elem_classes = named.get("elem_id"), named.get("elem_classes", [])

    def click(self, *handler: Any, **named: Any) -> Component:
        self.wired["click"] = {"fn": handler, **named}
        return self

    def then(self, **named: Any) -> None:
        self.wired["then"] = named

    def change(self, *handler: Any, **named: Any) -> None:
        self.wired["change"] = {"fn": handler, **named}

    def __enter__(self) -> None: ...

    def __exit__(self, *_: Any) -> None: ...


class Refused(Exception):
    """FastAPI's HTTPException."""

    def __init__(self, status_code: int, detail: str) -> None:
        self.status_code, self.detail = status_code, detail


class Heard(list[Any]):
    """A moment that the host tells of: a list of those who listen."""

    def __call__(self, callback: Any) -> None:
        self.append(callback)


class Told:
    """The hosts' `Script`, as far as it tells which host it is."""

    def postprocess_image_after_composite(self, p: Any, pp: Any, *arguments: Any) -> None: ...


class Plot:
    """The host's module of the X/Y/Z plot, as far as axes are added to it."""

    def __init__(self) -> None:
        self.axis_options = [kind("Nothing", str, None, None) for kind in (self.AxisOption, self.AxisOptionImg2Img)]

    class AxisOption:
        def __init__(self, label: str, type: Any, apply: Any, confirm: Any) -> None:
            self.label, self.type, self.apply, self.confirm, self.choices = label, type, apply, confirm, None

    class AxisOptionImg2Img(AxisOption): ...


class Runner:
    """No scripts yet."""

    alwayson_scripts = ()


def plots(plot: Plot) -> list[Any]:
    """The scripts that the host has loaded before an extension's."""
    return [SimpleNamespace(script_class=type("S", (), {"__module__": "xyz_grid.py"}), module=plot)]


def stand_ins(folder: Path, script: type = Told) -> dict[str, Any]:
    """`gradio` and `modules` by their names in sys.modules."""
    kinds = ("Accordion", "Row", "Slider", "Checkbox", "Radio", "Textbox", "Dropdown", "Number")
    kinds += ("Button", "State", "Image", "HTML")
    moments = {f"on_{what}": Heard() for what in ("after_component", "before_ui", "app_started")}
    parts = {
        "scripts": {"Script": script, "AlwaysVisible": "always", "scripts_data": plots(Plot()), "ScriptRunner": Runner},
        "script_callbacks": moments,
        "paths": {"models_path": str(folder)},
        "shared": {"sd_model": None, "state": SimpleNamespace(interrupt=None), "opts": None},
        **{name: {} for name in OTHERS},
    }
    found: dict[str, Any] = {"gradio": ModuleType("gradio"), "modules": ModuleType("modules")}
    found["fastapi"] = ModuleType("fastapi")
    vars(found["fastapi"]).update(Body=lambda default: default, HTTPException=Refused)
    made = {kind: type(kind, (Component,), {}) for kind in kinds}
    vars(found["gradio"]).update(made, __version__=GRADIO, update=dict)
    for name, attributes in parts.items():
        module = found[f"modules.{name}"] = ModuleType(f"modules.{name}")
        vars(module).update(attributes)
        setattr(found["modules"], name, module)
    return found


def heard(script: Any, moment: str, *given: Any) -> None:
    """The host tells of a moment."""
    for callback in getattr(script.script_callbacks, f"on_{moment}"):
        callback(*given)
