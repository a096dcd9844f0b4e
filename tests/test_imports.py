"""What is not needed is not imported: help without torch, a head without torch's compiler."""

from __future__ import annotations

import subprocess
import sys

import pytest

import ldznet

HELP = """
import sys; sys.argv = ['ldznet', '--help']
try:
    from ldznet.cli import main; main()
except SystemExit: pass
"""
LOAD = "import ldznet; ldznet.load_head('tiny'); ldznet.open_host('tiny')"


@pytest.mark.parametrize(
    ("code", "absent"), [(HELP, "torch"), ("import ldznet; ldznet.__version__", "torch"), (LOAD, "torch._dynamo")]
)
def test_nothing_is_imported_for_nothing(code: str, absent: str) -> None:
    """The compiler takes a second, ten times what the rest of loading does; torch takes two."""
    script = f"{code}\nimport sys; print('imported', {absent!r} in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.endswith("imported False\n"), answer.stdout[-200:]


def test_every_public_name_is_there() -> None:
    for name in ldznet.__all__:
        assert getattr(ldznet, name) is getattr(ldznet, name)
    assert ldznet.Predictor.__module__ == "ldznet.predictor"
    with pytest.raises(AttributeError, match="no attribute 'Predictr'"):
        _ = ldznet.Predictr
