"""A small file is refused in 2 s and 300 MB above a process that has imported ldznet, and in words of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from adversarial import making

SECONDS, MEGABYTES = 2, 300
LARGEST = 10**6  # bytes of a file that the budget is for
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from Linux's /proc")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return making.write(tmp_path_factory.mktemp("adversarial"))


def outcomes(opener: str, good: str, paths: list[Path]) -> dict[str, dict[str, Any]]:
    """What `measuring` says of each file, by name."""
    script = str(Path(__file__).with_name("measuring.py"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, script, opener, good, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return {record["name"]: record for record in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("opener", ["head", "info", "convert", "host"])
def test_every_small_file_is_refused_cheaply_and_in_our_words(opener: str, files: list[Path]) -> None:
    takes_all = opener in ("convert", "host")
    paths = [path for path in files if takes_all or path.suffix == ".safetensors"]
    assert max(path.stat().st_size for path in paths) < LARGEST
    found = outcomes(opener, "tiny", paths)
    assert len(found) == len(paths) >= 19
    dear = {n: r for n, r in found.items() if r["seconds"] > SECONDS or r["megabytes"] > MEGABYTES}
    foreign = {n: r for n, r in found.items() if "LDZNetError" not in r["kinds"]}
    unfit = {n: r["error"] for n, r in found.items() if not _is_fit(r["error"] or "")}
    assert (dear, foreign, unfit) == ({}, {}, {})


def _is_fit(message: str) -> bool:
    """Of one screen, with nothing in it that a terminal obeys."""
    return 40 < len(message) < 6000 and all(c.isprintable() or c == "\n" for c in message)
