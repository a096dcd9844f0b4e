"""What several tests of training share."""

from __future__ import annotations

import pytest
import torch

from ldznet.tinyworld import world


@pytest.fixture(scope="module")
def models() -> world.Models:
    """Untrained, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return world.fresh()
