"""Writes tests/data/prompts/: what the page itself would queue for each workflow. Run it after changing a workflow.

python tests/comfyui/write_prompts.py
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import browser
import host

PROMPTS = host.ROOT / "tests" / "data" / "prompts"


def write(page: browser.Page) -> None:
    """Every prompt."""
    PROMPTS.mkdir(exist_ok=True)
    for path in sorted((host.ROOT / "workflows").glob("*.json")):
        page.open(browser.read(path), path.stem)
        text = json.dumps(page.prompt(), indent=1, ensure_ascii=False)
        (PROMPTS / path.name).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        running = host.Server(Path(folder))
        try:
            opened = browser.Page(running.port)
            write(opened)
            opened.close()
        finally:
            running.stop()
