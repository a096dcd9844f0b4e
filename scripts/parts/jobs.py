"""The model, for one who asks outside of a run."""

import contextlib

from modules import call_queue, sd_models, shared


@contextlib.contextmanager
def job():
    """Alone with the model that the user has chosen; a stop of the last run is forgotten."""
    with call_queue.queue_lock:
        shared.state.begin(job="ldznet")
        try:
            if hasattr(sd_models, "forge_model_reload"):
                sd_models.forge_model_reload()
            yield
        finally:
            shared.state.end()
