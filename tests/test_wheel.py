"""The wheel as people install it: whole, and `ldznet demo` runs from it in another folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON, PACKAGES = ("Scripts/python.exe", "Lib") if os.name == "nt" else ("bin/python3", "lib/*")
IN_A_CHECKOUT = ("ldznet", "README.md", "LICENSE", "NOTICE", "pyproject.toml")


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources, offline, with the setuptools that is here."""
    pytest.importorskip("setuptools", minversion="69")
    pytest.importorskip("build")
    pytest.importorskip("pip")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in IN_A_CHECKOUT:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", target, source, cwd=target)
    (built,) = target.glob("*.whl")
    return built


def data_files() -> set[str]:
    """What the library reads beside its code: all that git tracks in it, or all that is there without git."""
    folders = ("ldznet/tinyworld/weights", "ldznet/hosts/sd1", "ldznet/hosts/sd2", "ldznet/hosts/sdxl")
    try:
        tracked = run("git", "ls-files", *folders, cwd=ROOT).split()
    except (OSError, AssertionError):
        tracked = [str(path.relative_to(ROOT).as_posix()) for folder in folders for path in (ROOT / folder).iterdir()]
    return {*tracked, "ldznet/py.typed"}


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_all_that_it_reads(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ldznet").rglob("*.py")}
    assert len(data_files()) > 8
    assert (modules | data_files()) - names == set()
    inside = {name for name in names if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in inside} == {"ldznet"}
    assert any(name.endswith("/NOTICE") for name in names)


@pytest.fixture
def installed(wheel: Path, tmp_path: Path) -> Path:
    """A clean environment with the wheel in it; what the wheel needs comes from the environment of the tests."""
    environment = tmp_path / "environment"
    venv.create(environment, symlinks=os.name != "nt")
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        environment / PYTHON,
        "install",
        "--no-deps",
        "--no-index",
        wheel,
        cwd=tmp_path,
    )
    (packages,) = environment.glob(f"{PACKAGES}/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return environment


@pytest.mark.slow
def test_demo_runs_from_the_installed_wheel(installed: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    where = run(installed / PYTHON, "-c", "import ldznet; print(ldznet.__file__)", cwd=elsewhere).strip()
    assert Path(where).is_relative_to(installed)
    (command,) = installed.glob("*/ldznet*")
    run(command, "demo", "--out", "sheet.png", cwd=elsewhere)
    assert [path.name for path in elsewhere.iterdir()] == ["sheet.png"]
    assert (elsewhere / "sheet.png").read_bytes().startswith(b"\x89PNG")
