"""The pack, loaded as ComfyUI loads it, over the stand-in; and the real host, once a session."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from comfyui import host, standin

PHRASES = ("a star", "grass", "a fish")


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


@pytest.fixture
def segmented(nodes: ModuleType) -> Any:
    """Makes a LDZNET_SEGMENTATION of soft maps b p h w; all phrases are found but those that `scores` say are not."""
    pack = nodes.__name__.split(".")[0]
    library = importlib.import_module(f"{pack}.ldznet.segmentation")
    boundary = importlib.import_module(f"{nodes.__name__}._boundary")

    def make(maps: torch.Tensor, scores: list[list[float]] | None = None) -> Any:
        found = torch.ones(maps.shape[:2]) if scores is None else torch.tensor(scores)
        size = (maps.shape[2], maps.shape[3])
        result = library.Segmentation(torch.logit(maps, eps=1e-6), PHRASES[: maps.shape[1]], size, found)
        return boundary.Segmented(result, size)

    return make
