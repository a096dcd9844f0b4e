"""The direction of imports, kept by reading every file: style.md's rules, in one table."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "ldznet").rglob("*.py"))
ONE_FILE = {
    "diffusers": {"hosts/hf_diffusers.py"},
    "transformers": {"hosts/hf_diffusers.py"},
    "accelerate": {"train/engine.py"},
    "comfy": {"hosts/comfyui.py"},
}
NEVER = {  # part: what it must not import, relative to ldznet
    "attention": {"hosts", "models", "predictor", "checkpoints", "train", "evaluate", "cli"},
    "models": {"hosts", "predictor", "checkpoints", "train", "evaluate", "cli"},
    "contracts": {"hosts", "models", "predictor", "checkpoints"},
    "predictor": {"hosts", "train", "evaluate", "cli"},
    "train": {"hosts", "cli"},
    "hosts": {"predictor", "train", "evaluate", "cli"},
}


def imports(path: Path) -> list[tuple[int, str]]:
    """(level, dotted name) of every import in a file, those inside functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found += [(node.level, str(name)) for name in names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_go_one_way(path: Path) -> None:
    name = path.relative_to(ROOT / "ldznet").as_posix()
    part, depth = name.split("/")[0].removesuffix(".py"), name.count("/")
    for level, module in imports(path):
        top = module.split(".")[0]
        assert level or top not in ("ldznet", "nodes"), f"{name} imports {module} absolutely"
        assert level or top not in ONE_FILE or name in ONE_FILE[top], f"{name} imports {module}"
        assert level != depth + 1 or top not in NEVER.get(part, set()), f"{name} imports {module}"


NODE_FILES = sorted((ROOT / "nodes").glob("*.py"))
NODES_MAY = {"__future__", "comfy_api", "folder_paths", "torch"}  # beside the standard library, and what is relative


@pytest.mark.parametrize("path", NODE_FILES, ids=lambda p: p.name)
def test_nodes_reach_the_host_through_its_adapter(path: Path) -> None:
    for level, module in imports(path):
        top = module.split(".")[0]
        assert level or top in NODES_MAY or top in sys.stdlib_module_names, f"{path.name} imports {module}"


def test_the_root_imports_nothing_at_module_level() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    assert not any(isinstance(node, (ast.Import, ast.ImportFrom)) for node in tree.body)
