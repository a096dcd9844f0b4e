"""Opens files in a process of their own and says, a line each, how it went and what it cost. Not a test itself.

`python measuring.py OPENER FILE …`: each line is JSON with the file's name, the error's classes and text, the seconds
of CPU, and the megabytes that the process grew at its peak. Linux alone.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MOST = 4 * 2**30  # bytes of address space above what is there
TARGET = Path(tempfile.gettempdir()) / f"converted-{os.getpid()}.safetensors"
LONGEST = 30  # seconds


def megabytes(field: str) -> float:
    """Of this process by a field of its status: VmRSS is resident now, VmHWM was at most since `CLEAR`."""
    found = re.search(rf"{field}:\s+(\d+) kB", STATUS.read_text())
    assert found
    return int(found[1]) / 1024


def measured(call: Callable[[], Any]) -> dict[str, Any]:
    """What `call` raised and cost."""
    CLEAR.write_text("5")
    before, start, error = megabytes("VmRSS"), time.process_time(), None
    try:
        call()
    except Exception as raised:
        error = raised
    seconds, grown = time.process_time() - start, megabytes("VmHWM") - before
    kinds = [kind.__name__ for kind in type(error).__mro__] if error else []
    return {"seconds": seconds, "megabytes": grown, "kinds": kinds, "error": str(error) if error else None}


def openers() -> dict[str, Callable[[Path], Any]]:
    """What opens a file, by name; all that they import is imported here."""
    import torch

    import ldznet
    import ldznet.hosts.hf_diffusers
    from ldznet.checkpoints.convert import convert
    from ldznet.checkpoints.load import EMBEDDED, head_info

    torch.set_num_threads(1)

    def converted(path: Path) -> None:
        convert(EMBEDDED.get(str(path), path), TARGET, force=True)

    def host(path: Path) -> None:
        ldznet.open_host(str(path))

    return {"head": ldznet.load_head, "info": head_info, "convert": converted, "host": host}


def main(opener: str, *paths: str) -> None:
    """Opens each of `paths` by `opener` in a fork of this process, warmed up by the first, which is good."""
    opens = openers()[opener]
    opens(Path(paths[0]))
    TARGET.unlink(missing_ok=True)
    for path in map(Path, paths[1:]):
        sys.stdout.flush()
        child = os.fork()
        if not child:
            limit()
            print(json.dumps({"name": path.name, **measured(lambda path=path: opens(path))}), flush=True)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            print(json.dumps({"name": path.name, "seconds": LONGEST, "megabytes": 0, "kinds": [], "error": "killed"}))


def limit() -> None:
    """What hangs or swells without end is killed before it harms the machine."""
    signal.alarm(LONGEST)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST, resource.getrlimit(resource.RLIMIT_AS)[1]))


if __name__ == "__main__":
    main(*sys.argv[1:])
