"""The pack, loaded as ComfyUI loads it, over the stand-in; and the real host, once a session."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from comfyui import host, standin


@pytest.fixture(scope="session")
def nodes() -> Iterator[ModuleType]:
    """`nodes/` as part of a package that has another name than ldznet, over the stand-in."""
    before = dict(sys.modules)
    standin.install()
    root = host.ROOT
    spec = importlib.util.spec_from_file_location(
        "a_pack", root / "__init__.py", submodule_search_locations=[str(root)]
    )
    assert spec is not None
    assert spec.loader is not None
    pack = importlib.util.module_from_spec(spec)
    sys.modules["a_pack"] = pack
    spec.loader.exec_module(pack)
    yield importlib.import_module("a_pack.nodes")
    for name in sys.modules.keys() - before.keys():
        del sys.modules[name]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real ComfyUI with this pack, on 127.0.0.1."""
    reason = host.reason_to_skip()
    if reason:
        pytest.skip(reason)
    running = host.Server(tmp_path_factory.mktemp("comfyui"))
    yield running
    running.stop()
