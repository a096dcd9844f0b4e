"""What several tests of a real host share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from webui import host


@pytest.fixture(scope="module")
def webui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[host.Webui]:
    """A host with its API alone, and nothing in its folders."""
    with contextlib.closing(host.Webui(*host.found(), tmp_path_factory.mktemp("webui"))) as running:
        yield running
