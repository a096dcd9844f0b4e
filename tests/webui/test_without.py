"""A real A1111 or Forge without the extension, and with it switched off behind a password: the same pictures."""

from __future__ import annotations

import base64
import urllib.error
from pathlib import Path

import numpy as np
import pytest
from webui import host

pytestmark = [pytest.mark.webui, pytest.mark.slow]
WHO = "someone:a word"


def pictures(webui: host.Webui) -> list[np.ndarray]:
    """Of txt2img, and of img2img after a run that leaves the generator where every first run does."""
    return [*webui.txt2img(), *webui.img2img()[0]]


def test_switched_off_it_is_not_there(tmp_path: Path) -> None:
    found = host.found()
    without = host.Webui(*found, tmp_path / "without", extension=False)
    try:
        expected = pictures(without)
    finally:
        without.close()
    webui = host.Webui(*found, tmp_path / "with", "--api-auth", WHO)
    try:
        with pytest.raises(urllib.error.HTTPError) as caught:
            webui.post("/ldznet/segment", {})
        assert caught.value.code == 401
        webui.headers["Authorization"] = "Basic " + base64.b64encode(WHO.encode()).decode()
        seen = pictures(webui)
        with pytest.raises(urllib.error.HTTPError) as caught:
            webui.post("/ldznet/segment", {})
        assert caught.value.code == 422
    finally:
        webui.close()
    assert len(seen) == len(expected) == 2
    assert all(np.array_equal(one, other) for one, other in zip(seen, expected, strict=True))
