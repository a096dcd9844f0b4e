"""What a large picture costs while it is set: megabytes, in a process of its own. Linux alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
MOST = {"array": 100, "PIL": 150, "turned": 400, "tensor": 150}  # megabytes above the picture itself
SCRIPT = """
import json, sys
import numpy as np, torch
from PIL import Image
from adversarial.measuring import measured
from ldznet import Predictor, load_head, open_host
kind, height, width = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
predictor = Predictor(open_host("tiny"), load_head("tiny"))
predictor.set_image(np.zeros((64, 64, 3), np.uint8))
options = {"value_range": (0, 1)} if kind == "tensor" else {}
if kind == "array":
    picture = np.zeros((height, width, 3), np.uint8)
    picture += 9
elif kind == "tensor":
    picture = torch.full((1, 3, height, width), 0.5)
else:
    picture = Image.new("RGB", (width, height), "red")
    if kind == "turned":
        picture.getexif()[0x0112] = 6
print(json.dumps(measured(lambda: predictor.set_image(picture, **options))))
"""
COMMAND = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, capture_output=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from Linux's /proc")


def grown(kind: str, height: int, width: int) -> float:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-c", SCRIPT, kind, str(height), str(width)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["error"] is None
    return found["megabytes"]


@pytest.mark.parametrize("kind", MOST)
def test_64_megapixels_cost_little_beside_themselves(kind: str) -> None:
    assert grown(kind, 8000, 8000) < MOST[kind]


@pytest.mark.skipif(not os.environ.get("LDZNET_LONG"), reason="$LDZNET_LONG is not set: half a minute")
def test_the_command_line_on_64_megapixels(tmp_path: Path) -> None:
    Image.new("RGB", (8000, 8000), "red").save(tmp_path / "large.png")
    words = [str(tmp_path / "large.png"), "--text", "grass", "--model", "tiny", "--out", str(tmp_path / "masks")]
    command = [sys.executable, "-c", COMMAND, sys.executable, "-m", "ldznet", "segment", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1400  # of which 340 are Python, torch and the models, and 190 to 250 the picture


def test_169_megapixels_cost_no_more() -> None:
    assert grown("PIL", 13_000, 13_000) < MOST["PIL"]
