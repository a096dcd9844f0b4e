"""Right masks in the hosts' own UNet classes: the tiny world's weights in each of them, seen through its adapter, give
the tiny host's masks, and so does every host those of every other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from webui import classes

from ldznet import tinyworld
from ldznet.hosts.tiny import TinyHost
from ldznet.images import Picture

pytestmark = [pytest.mark.webui, pytest.mark.slow]
PLACES = {  # the folder of each host and its interpreter
    "A1111": ("A1111_PATH", "A1111_PYTHON"),
    "Forge": ("FORGE_PATH", "FORGE_PYTHON"),
    "reForge": ("REFORGE_PATH", "REFORGE_PYTHON"),
    "ComfyUI": ("COMFYUI_PATH", "COMFYUI_PYTHON"),
    "diffusers": (None, None),
}


@pytest.mark.parametrize("name", PLACES)
def test_masks_of_the_host_s_own_class_are_the_tiny_host_s(name: str, tmp_path: Path) -> None:
    """To 1e-3 in probability, both heads; taps to 1e-4 of their largest value."""
    folder, python = (os.environ.get(variable, "") if variable else "." for variable in PLACES[name])
    if not folder or not python:
        pytest.skip(f"no {name}: set ${PLACES[name][0]} to its folder and ${PLACES[name][1]} to its interpreter")
    tiny, scene = TinyHost.load(), tinyworld.scene(22, "photo")
    latents = tiny.encode_image(Picture.of(scene.image, None).at((scene.image.shape[0], scene.image.shape[1])))
    given, out = tmp_path / "latents.npy", tmp_path / "masks.npz"
    np.save(given, latents.numpy())
    interpreter = sys.executable if name == "diffusers" else python
    command = [interpreter, classes.__file__, name, folder, str(given), str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    expected, got = classes.measured(tiny, latents), np.load(out)
    assert set(got) == set(expected)
    for part, values in expected.items():
        tolerance = 1e-4 * np.abs(values).max() if part.startswith("tap") else 1e-3
        np.testing.assert_allclose(got[part], values, atol=tolerance, rtol=0, err_msg=part)
    assert expected["trained"].max() > 0.9
