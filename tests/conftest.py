"""Shapes in the library's signatures hold while tests run, where jaxtyping is installed."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("jaxtyping"):
    import shapes_hold

    shapes_hold.install("ldznet")
