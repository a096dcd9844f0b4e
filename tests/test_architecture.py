"""The direction of imports, kept by reading every file: the rules in one table."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "ldznet").rglob("*.py"))
ONE_FILE = {
    "diffusers": {"hosts/hf_diffusers.py", "tinyworld/joint.py"},
    "transformers": {"hosts/hf_diffusers.py", "evaluate/clipseg.py"},
    "accelerate": {"train/engine.py", "evaluate/shards.py"},
    "comfy": {"hosts/comfyui.py", "hosts/comfyui_heads.py", "hosts/comfyui_world.py"},
}
ORDER = (  # a part of ldznet imports what stands before it, and nothing after it
    *("errors", "bounds", "placing", "shapes", "writing", "sources", "clip_bpe", "phrases", "prompted", "combining"),
    *("contracts", "convolving", "taps", "parts", "schedule", "config", "images", "masks", "piecewise", "cropping"),
    *("shaping", "drawing", "segmentation", "frames", "steering", "attention", "clustering", "capture"),
    *("models", "checkpoints", "predictor", "tinyworld", "hosts", "webui", "data", "train", "evaluate", "cli"),
    "__main__",
)
NEVER = {"models": {"attention"}, "hosts": {"predictor"}, "train": {"hosts"}}  # though it stands before


def imports(source: str) -> list[tuple[int, str]]:
    """(level, dotted name) of every import in a file's text, those inside functions too."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found += [(node.level, str(name)) for name in names]
    return found


def forbidden(part: str) -> set[str]:
    """The parts that a part must not import; the package's own face shows all."""
    after = () if part == "__init__" else ORDER[ORDER.index(part) + 1 :]
    return {*after} | NEVER.get(part, set())


def complaints(name: str, source: str) -> list[str]:
    """What is wrong with the imports of the file `name` (relative to ldznet)."""
    part, depth = name.split("/")[0].removesuffix(".py"), name.count("/")
    found = []
    for level, module in imports(source):
        top = module.split(".")[0]
        absolute = level == 0 and (top in ("ldznet", "nodes") or name not in ONE_FILE.get(top, {name}))
        backwards = level == depth + 1 and top in forbidden(part)
        if absolute or backwards or level > depth + 1:
            found.append(f"{name} imports {'.' * level}{module}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_go_one_way(path: Path) -> None:
    assert complaints(path.relative_to(ROOT / "ldznet").as_posix(), path.read_text(encoding="utf-8")) == []


WRONG = [
    ("predictor.py", "from .hosts import open_host"),
    ("predictor.py", "from . import hosts"),
    ("models/unet.py", "def late():\n    from ..hosts.tiny import TinyHost"),
    ("models/unet.py", "from ..attention import AttentionHead"),
    ("train/head.py", "from ..hosts import tiny"),
    ("hosts/tiny.py", "from ..predictor import Predictor"),
    ("contracts.py", "from .config import HeadConfig"),
    ("checkpoints/load.py", "from ..tinyworld import world"),
    ("hosts/tiny.py", "import diffusers"),
    ("models/unet.py", "import comfy.ops"),
    ("models/unet.py", "from ldznet.errors import InputError"),
    ("taps.py", "import nodes"),
    ("taps.py", "from ..nodes import load"),
]


@pytest.mark.parametrize(("name", "source"), WRONG)
def test_a_wrong_import_is_seen(name: str, source: str) -> None:
    assert len(complaints(name, source)) == 1


NODE_FILES = sorted((ROOT / "nodes").glob("*.py"))
NODES_MAY = {"__future__", "comfy_api", "folder_paths", "torch"}  # beside the standard library, and what is relative


@pytest.mark.parametrize("path", NODE_FILES, ids=lambda p: p.name)
def test_nodes_reach_the_host_through_its_adapter(path: Path) -> None:
    for level, module in imports(path.read_text(encoding="utf-8")):
        top = module.split(".")[0]
        assert level or top in NODES_MAY or top in sys.stdlib_module_names, f"{path.name} imports {module}"


def test_the_root_imports_nothing_at_module_level() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    assert not any(isinstance(node, (ast.Import, ast.ImportFrom)) for node in tree.body)
