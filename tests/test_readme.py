"""What the pages say, as far as a test can hold them to it: the code runs, commands stand first, links lead on."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_six_lines_run_as_they_stand(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in code.splitlines() if line]) == 6
    (tmp_path / "six.py").write_text(code, encoding="utf-8")
    names = runpy.run_path(str(tmp_path / "six.py"))
    masks = names["masks"]
    assert masks.shape == (1, 3, *names["scene"].image.shape[:2])
    assert masks[0, 1].any(), "no grass"


def test_a_stranger_sees_picture_commands_and_code_at_once() -> None:
    top = "\n".join(README.splitlines()[:40])
    assert all(text in top for text in ("](docs/demo.png)", "&& ldznet demo", "&& pytest", "import ldznet"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(
        r"`((?:ldznet|nodes|tests|benchmarks|docs|workflows)/[\w/.-]*)`", page.read_text(encoding="utf-8")
    )
    assert [name for name in named if "NAME" not in name and not (ROOT / name).exists()] == []
