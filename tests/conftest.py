"""Shapes in the library's signatures hold while tests run, where jaxtyping is installed; workers share the cores."""

from __future__ import annotations

import importlib.util
import os

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # before torch is imported; tests' own processes inherit it
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

if importlib.util.find_spec("jaxtyping"):
    import shapes_hold

    shapes_hold.install("ldznet")
