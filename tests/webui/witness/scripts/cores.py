"""An extension for tests: soft inpainting of a Forge is told of seven cores.

Told of six or fewer, it shares a picture's pixels among none, and repaints nothing, whatever the mask.
"""

from modules import script_callbacks, scripts

CORES = 7


def on_app_started(demo, app):
    """Once all scripts are loaded."""
    for script in scripts.scripts_data:
        if hasattr(script.module, "weighted_histogram_filter") and hasattr(script.module, "cpu_count"):
            script.module.cpu_count = lambda: CORES


script_callbacks.on_app_started(on_app_started)
