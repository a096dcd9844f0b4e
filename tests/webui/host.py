"""A real A1111 or Forge on a CPU, its API alone or its page too: started once for a module, from $WEBUI_PATH.

`$WEBUI_PYTHON` is its interpreter, `$WEBUI_FLAGS` what it needs beyond the flags here (A1111: `--use-cpu all --no-half
--precision full`; Forge and reForge: `--always-cpu`). The folder must be installed and hold one SD 1.x checkpoint. It
runs with a data folder of its own: its settings, this repository as the only extension, and what `$WEBUI_EXTENSIONS`
names (folders, parted as in $PATH). docs/webui.md says how to make one.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shlex
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ldznet.webui.settings import TITLE

FLAGS = ("--skip-prepare-environment", "--skip-torch-cuda-test", "--api", "--server-name", "127.0.0.1", "--no-hashing")
READY = {False: "Uvicorn running", True: "Startup time"}  # by whether there is a page
PATIENCE = 900  # seconds, on two cores that others use too
REPOSITORY, WITNESS = Path(__file__).parents[2], Path(__file__).parent / "witness"
CONFIG = {
    "live_previews_enable": False,
    "show_progress_type": "Approx cheap",
    "samples_save": False,
    "grid_save": False,
}
SIZE = (192, 128)  # width, height
BASE: dict[str, Any] = {
    "prompt": "a cat",
    "steps": 2,
    "width": SIZE[0],
    "height": SIZE[1],
    "seed": 1,
    "sampler_name": "Euler",
    "denoising_strength": 0.75,
    "inpainting_fill": 1,
    "inpaint_full_res": False,
    "mask_blur": 0,
}


def picture(seed: int = 0) -> Image.Image:
    """Soft colours, always the same."""
    colours = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize(SIZE, Image.Resampling.BICUBIC)


class Webui:
    """A host that answers."""

    def __init__(
        self, folder: Path, python: str, work: Path, *more: str, page: bool = False, extension: bool = True
    ) -> None:
        """`more` flags; `page` beside the API; without the `extension` too."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.address, self.data, self.log = f"http://127.0.0.1:{self.port}", work / "data", work / "log.txt"
        self._fill(extension)
        flags = [*FLAGS, "--port", str(self.port), "--data-dir", str(self.data), "--models-dir", str(folder / "models")]
        flags += ["--gradio-allowed-path", str(folder)]
        flags += [*([] if page else ["--nowebui"]), *shlex.split(os.environ.get("WEBUI_FLAGS", "")), *more]
        self.headers = {"Content-Type": "application/json"}
        with self.log.open("w") as out:
            command = [python, "launch.py", *flags]
            self.process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + PATIENCE
        while READY[page] not in self.log.read_text(errors="replace"):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.close()
                pytest.fail(f"the host did not start:\n{self.log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.5)

    def _fill(self, extension: bool) -> None:
        extensions = self.data / "extensions"
        extensions.mkdir(parents=True)
        more = filter(None, os.environ.get("WEBUI_EXTENSIONS", "").split(os.pathsep))
        for path in [WITNESS, *([REPOSITORY] if extension else []), *map(Path, more)]:
            (extensions / path.name).symlink_to(path)
        (self.data / "config.json").write_text(json.dumps(CONFIG))

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)

    def img2img(self, settings: Any = None, **changed: Any) -> tuple[list[np.ndarray], str]:
        """The pictures and the first one's infotext; `settings` are the section's arguments, None for none."""
        answer = self.answer(settings, **changed)
        return [decoded(image) for image in answer["images"]], json.loads(answer["info"])["infotexts"][0]

    def answer(self, settings: Any = None, **changed: Any) -> Any:
        """What img2img's API answers."""
        body = {**BASE, "init_images": [encoded(picture())], **changed}
        if settings is not None:
            own = {TITLE: {"args": settings if isinstance(settings, list) else [settings]}}
            body["alwayson_scripts"] = {**own, **changed.get("alwayson_scripts", {})}
        return self.post("/sdapi/v1/img2img", body)

    def txt2img(self) -> list[np.ndarray]:
        """The pictures of the same settings."""
        return [decoded(image) for image in self.post("/sdapi/v1/txt2img", BASE)["images"]]

    def stopped(self, seconds: float, how: str, run: Callable[[], Any]) -> Any:
        """What `run` gives where the host is told, after so many seconds, to "interrupt" or to "skip"."""
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(run)
            time.sleep(seconds)
            self.post(f"/sdapi/v1/{how}", {})
            return running.result(300)

    def post(self, path: str, body: Any) -> Any:
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, self.headers)
        try:
            with urllib.request.urlopen(request, timeout=500) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:  # with what the host says as its message
            said = error.read()
            raise urllib.error.HTTPError(
                error.url, error.code, said.decode(errors="replace"), error.headers, io.BytesIO(said)
            ) from None

    def get(self, path: str) -> Any:
        request = urllib.request.Request(self.address + path, headers=self.headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def witness(self) -> dict[str, int]:
        """`witness/scripts/witness.py` says of what."""
        return self.get("/witness")


def encoded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def decoded(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))


def found() -> tuple[Path, str]:
    """The host's folder and interpreter; skips with the reason where there is none."""
    folder, python = os.environ.get("WEBUI_PATH"), os.environ.get("WEBUI_PYTHON")
    if not folder or not python:
        pytest.skip("no A1111 or Forge: set $WEBUI_PATH to its folder and $WEBUI_PYTHON to its interpreter")
    if not (Path(folder) / "launch.py").is_file():
        pytest.skip(f"no A1111 or Forge in $WEBUI_PATH, {folder}: launch.py is missing")
    return Path(folder), python
