"""A tiny host of random weights, and a count of its passes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from attention import unets

from ldznet.hosts.tiny import TinyHost


@pytest.fixture(scope="module")
def host() -> TinyHost:
    return unets.tiny_host()


@pytest.fixture
def passes(host: TinyHost) -> Iterator[list[int]]:
    """One entry for each pass of the host's UNet."""
    runs: list[int] = []
    handle = host.models.unet.input_blocks[0][0].register_forward_hook(lambda m, args, out: runs.append(len(args)))
    yield runs
    handle.remove()
