"""A real ComfyUI for tests: where it is, a server of it with this pack, and a client."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
START_SECONDS, RUN_SECONDS = 600, 600
EXAMPLE = "example.png"  # that every ComfyUI has in its input folder, for Load Image
PACK = "ComfyUI-LDZNet"  # no identifier; with a space in it the host would serve neither help pages nor thumbnails


def folder() -> Path | None:
    """ComfyUI: $COMFYUI_PATH, else two folders up (a real install), else ~/comfy/ComfyUI."""
    given = os.environ.get("COMFYUI_PATH")
    places = [Path(given)] if given else [ROOT.parents[1], Path.home() / "comfy" / "ComfyUI"]
    return next((place for place in places if (place / "main.py").exists() and (place / "comfy").is_dir()), None)


def interpreter(comfyui: Path) -> Path | None:
    """$COMFYUI_PYTHON, else ComfyUI's own .venv."""
    given = os.environ.get("COMFYUI_PYTHON")
    places = [Path(given)] if given else [comfyui / ".venv/bin/python", comfyui / ".venv/Scripts/python.exe"]
    return next((place for place in places if place.exists()), None)


def reason_to_skip() -> str | None:
    """Why the tests with a host cannot run here; None where they can."""
    comfyui = folder()
    if comfyui is None:
        return "no ComfyUI in $COMFYUI_PATH, two folders up or ~/comfy/ComfyUI"
    if interpreter(comfyui) is None:
        return f"no interpreter for {comfyui} in $COMFYUI_PYTHON or its .venv"
    return None


def lacking(model: str, encoder: str = "") -> str | None:
    """Why a model of that class of comfy.supported_models, with that module of comfy.text_encoders where one is named,
    cannot be built here; None where this ComfyUI has them."""
    comfyui = folder()
    if comfyui is None or f"class {model}(" not in (comfyui / "comfy/supported_models.py").read_text(encoding="utf-8"):
        return f"this ComfyUI has no {model}"
    has_encoder = not encoder or (comfyui / "comfy/text_encoders" / f"{encoder}.py").exists()
    return None if has_encoder else f"this ComfyUI has no text encoder {encoder}"


class Server:
    """ComfyUI in a base folder of its own, this pack in its custom_nodes under a name that is no identifier."""

    def __init__(self, base: Path, options: Sequence[str] = ()) -> None:
        for name in ("custom_nodes", "models", "input", "output"):
            (base / name).mkdir(parents=True, exist_ok=True)
        (base / "custom_nodes" / PACK).symlink_to(ROOT)
        (base / "custom_nodes" / "probe").symlink_to(Path(__file__).parent / "probe")
        comfyui = folder()
        assert comfyui is not None
        if (comfyui / "input" / EXAMPLE).exists():
            shutil.copy(comfyui / "input" / EXAMPLE, base / "input" / EXAMPLE)
        self.port, self.client = _free_port(), uuid.uuid4().hex
        self.base, self.log = base, base / "log.txt"
        command = [str(interpreter(comfyui)), "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(self.port)]
        command += ["--disable-api-nodes", "--base-directory", str(base), *options]
        caching = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}  # or it starts in minutes
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=comfyui, env=caching, stdout=log, stderr=subprocess.STDOUT)
        self._wait()

    def stop(self) -> None:
        """Ends this server."""
        self.process.terminate()
        self.process.wait(30)

    def get(self, path: str) -> Any:
        """JSON of a GET."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=RUN_SECONDS) as answer:
            return json.load(answer)

    def post(self, path: str, body: Any) -> Any:
        """JSON of a POST; an error's own JSON where the server refuses."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=RUN_SECONDS) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            text = error.read()
        return json.loads(text) if text else None

    def run(self, prompt: dict[str, Any]) -> dict[str, Any]:
        """The history entry of a prompt that ran to its end; see `error_of` and `texts_of`."""
        answer = self.post("/prompt", {"prompt": prompt, "client_id": self.client})
        assert "prompt_id" in answer, answer
        return self.wait_for(answer["prompt_id"])

    def wait_for(self, prompt_id: str) -> dict[str, Any]:
        """The history entry of a prompt, when it is there."""
        until = time.monotonic() + RUN_SECONDS
        while time.monotonic() < until:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            time.sleep(0.1)
        raise TimeoutError(self.log.read_text()[-3000:])

    def saved(self, name: str) -> Any:
        """The list that a ProbeSave node wrote."""
        return torch.load(self.base / "output" / f"{name}.pt", weights_only=True)

    def picture(self, image: dict[str, str]) -> bytes:
        """The file of an output image."""
        query = urllib.parse.urlencode(image)
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/view?{query}", timeout=RUN_SECONDS) as answer:
            return answer.read()

    def _wait(self) -> None:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                self.get("/system_stats")
                return
            except OSError:
                time.sleep(0.5)
        self.stop()
        raise TimeoutError(self.log.read_text()[-3000:])


class Messages:
    """What the server tells a page while it runs: a websocket, read as far as tests need it."""

    def __init__(self, server: Server) -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.port), timeout=RUN_SECONDS)
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [
            f"GET /ws?clientId={server.client} HTTP/1.1",
            f"Host: 127.0.0.1:{server.port}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
        ]
        self._socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        self._stream = self._socket.makefile("rb")
        while self._stream.readline().strip():
            pass

    def until_done(self) -> list[dict[str, Any]]:
        """Every message up to and with the end of a prompt."""
        return self.until("execution_success", "execution_error", "execution_interrupted")

    def until(self, *types: str) -> list[dict[str, Any]]:
        """Every message up to and with the first of one of `types`."""
        found = []
        while True:
            message = self._next()
            if message is not None:
                found.append(message)
                if message["type"] in types:
                    return found

    def close(self) -> None:
        """Hangs up."""
        self._stream.close()
        self._socket.close()

    def _next(self) -> dict[str, Any] | None:
        """One frame; None for what is no text (previews, pings)."""
        head = self._stream.read(2)
        length = head[1] & 127
        if length >= 126:
            length = int.from_bytes(self._stream.read(2 if length == 126 else 8), "big")
        payload = self._stream.read(length)
        return json.loads(payload) if head[0] & 15 == 1 else None


def error_of(entry: dict[str, Any]) -> str | None:
    """The sentence that a failed run shows in its node; None for one that worked."""
    for kind, data in entry["status"]["messages"]:
        if kind == "execution_error":
            return data["exception_message"].strip()
    return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def interrupt(server: Server, prompt: dict[str, Any]) -> None:
    """Runs `prompt` until its first sign of progress."""
    messages = Messages(server)
    queued = server.post("/prompt", {"prompt": prompt, "client_id": server.client})["prompt_id"]
    reached = messages.until("progress", "execution_success", "execution_error")[-1]
    assert reached["type"] == "progress", reached
    server.post("/interrupt", {})
    assert messages.until_done()[-1]["type"] == "execution_interrupted"
    messages.close()
    server.wait_for(queued)
