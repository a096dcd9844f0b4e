"""`scripts/ldznet_webui.py` over stand-ins of gradio and of the host's modules: its components, and that off is off."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from webui import standin

from ldznet.webui.settings import NAMES, TITLE, Settings

SCRIPT = Path(__file__).parents[2] / "scripts" / "ldznet_webui.py"


class Component:
    """A gradio component or container, as far as a section makes one."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.named = named

    def __enter__(self) -> None: ...

    def __exit__(self, *_: Any) -> None: ...


def stand_ins(folder: Path) -> dict[str, Any]:
    """`gradio` and `modules` by their names in sys.modules."""
    kinds = ("Accordion", "Row", "Slider", "Checkbox", "Radio", "Textbox", "Dropdown", "Number")
    parts = {
        "scripts": {"Script": object, "AlwaysVisible": "always"},
        "paths": {"models_path": str(folder)},
        "shared": {"sd_model": None, "state": SimpleNamespace(interrupt=None), "opts": None},
        **{
            name: {}
            for name in ("errors", "extra_networks", "images", "processing", "prompt_parser", "sd_models", "sd_vae")
        },
    }
    found: dict[str, Any] = {"gradio": ModuleType("gradio"), "modules": ModuleType("modules")}
    vars(found["gradio"]).update(dict.fromkeys(kinds, Component))
    for name, attributes in parts.items():
        module = found[f"modules.{name}"] = ModuleType(f"modules.{name}")
        vars(module).update(attributes)
        setattr(found["modules"], name, module)
    return found


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, module in stand_ins(tmp_path).items():
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("ldznet_webui_under_test", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in [name for name in sys.modules if name.startswith(module.NAME)]:
        del sys.modules[name]


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
    section.postprocess_image_after_composite(p, pp, *arguments)
    section.postprocess(p, None, *arguments)
    assert vars(p) == before
    assert p.extra_generation_params == {"Denoising strength": 0.75}
    assert pp.image == "as it was"
    assert own_modules(script) == {f"{script.NAME}_settings"}


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
