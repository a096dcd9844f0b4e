"""A real host, and the section's script over stand-ins of one."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from webui import host
from webui.standin_modules import SCRIPT, Told, stand_ins


@pytest.fixture(scope="module")
def webui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[host.Webui]:
    """A host with its API alone, and nothing in its folders."""
    with contextlib.closing(host.Webui(*host.found(), tmp_path_factory.mktemp("webui"))) as running:
        yield running


@pytest.fixture(params=[Told])
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Any]:
    """`scripts/ldznet_webui.py`, loaded as a host loads it; the parameter is the host's class `Script`."""
    for name, module in stand_ins(tmp_path, request.param).items():
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("ldznet_webui_under_test", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in [name for name in sys.modules if name.startswith(module.NAME)]:
        del sys.modules[name]
