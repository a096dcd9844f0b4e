"""What a host runs after it has installed this pack; and the converter for those who have nothing but a host.

    python install.py                                          checks, makes the model folder, says what to do next
    python install.py convert FILE [OUTPUT] [--dtype float16]  published checkpoint → one safetensors
    python install.py shrink FILE BASE [OUTPUT] [--size 300]   the same as a small file over the model it started from

ComfyUI-Manager and A1111 call it without arguments. It downloads and installs nothing. Nothing may import it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).absolute().parent  # not resolved: the pack may be a link inside custom_nodes
HEAD_NAME, SMALL_NAME = "LDZNet_txt2mask.safetensors", "LDZNet_txt2mask_small.safetensors"
NEEDED = {  # by the name that is imported
    "torch": "torch",
    "safetensors": "safetensors",
    "numpy": "numpy",
    "PIL": "pillow",
    "einops": "einops",
    "scipy": "scipy",
}
READY = 'ready. With the head "attention (no download)" it works with the SD 1.x, 2.x and SDXL checkpoints you have.'
DTYPES = ("float16", "bfloat16", "float32")


def model_folder() -> Path | None:
    """The host's models/ldznet, made where it is missing; None if the pack lies neither in a folder custom_nodes
    (ComfyUI) nor in the extensions of an A1111 or a Forge, which its launch.py tells."""
    host, kind = ROOT.parent.parent, ROOT.parent.name.lower()
    if kind != "custom_nodes" and not (kind == "extensions" and (host / "launch.py").is_file()):
        return None
    folder = host / "models" / "ldznet"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def missing_line() -> str:
    """What to install, in one line; empty if nothing is missing."""
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    return (
        f'Missing {", ".join(missing)}. Run: "{sys.executable}" -m pip install {" ".join(missing)}' if missing else ""
    )


def check() -> int:
    """Says what is missing and what comes next. Always 0: a pack whose weights are not there yet is installed."""
    print(f"LDZNet: {missing_line() or READY}")
    folder = model_folder()
    if folder and not any(folder.glob("*.safetensors")):
        print(f"LDZNet: for sharper masks on SD 1.x, get LDZNet_txt2mask.ckpt (see {ROOT / 'docs' / 'checkpoints.md'})")
        print(f'and run: "{sys.executable}" "{ROOT / "install.py"}" convert LDZNet_txt2mask.ckpt --dtype float16')
        print(f"It becomes {folder / HEAD_NAME}.")
    return 0


def load_package() -> None:
    """Puts this folder's `ldznet` into sys.modules by its location: -I and an installed copy make no difference."""
    spec = importlib.util.spec_from_file_location("ldznet", ROOT / "ldznet" / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ldznet"] = module
    spec.loader.exec_module(module)


def percent_printer() -> Callable[[int, int], None]:
    """A callback that prints each tenth of the way."""
    printed = -1

    def show(done: int, total: int) -> None:
        nonlocal printed
        tenth = 10 * done // total
        if tenth > printed:
            printed = tenth
            print(f"{10 * tenth} %", flush=True)

    return show


def refuse(message: str) -> int:
    """Says why on standard error; 2 is the exit code for it."""
    print(message, file=sys.stderr)
    return 2


def convert(arguments: argparse.Namespace) -> None:
    """Writes the head that a checkpoint holds, and says what."""
    torch = importlib.import_module("torch")
    converter = importlib.import_module("ldznet.checkpoints.convert")
    dtype = getattr(torch, arguments.dtype) if arguments.dtype else None
    source, target = Path(arguments.file), target_of(arguments, HEAD_NAME)
    report = converter.convert(source, target, dtype, force=arguments.force, progress=percent_printer())
    print(f"Wrote {report.target} ({report.parameters / 1e6:.1f} M parameters, {report.size / 1e9:.2f} GB).")


def shrink(arguments: argparse.Namespace) -> None:
    """Writes a head as its difference from the model that it started from, and says how much of that is kept."""
    shrinking = importlib.import_module("ldznet.checkpoints.shrink")
    setting = {"rank": arguments.rank} if arguments.rank else {"megabytes": arguments.size}
    report = shrinking.shrink(
        arguments.file,
        target_of(arguments, SMALL_NAME),
        arguments.base,
        force=arguments.force,
        progress=percent_printer(),
        **setting,
    )
    print(f"Wrote {report.target} ({report.size / 1e6:.1f} MB, {report.energy:.1%} of the differences' energy).")


def target_of(arguments: argparse.Namespace, name: str) -> Path:
    """The output asked for; else `name` in the host's model folder, or beside the file."""
    return Path(arguments.output or (model_folder() or Path(arguments.file).absolute().parent) / name)


def written(write: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> int:
    """0 when the head is written, 2 with one line on standard error when it is not."""
    if missing_line():
        return refuse(missing_line())
    load_package()
    try:
        write(arguments)
    except importlib.import_module("ldznet.errors").LDZNetError as error:
        return refuse(str(error))
    return 0


def main() -> int:
    """The exit code of the command line."""
    parser = argparse.ArgumentParser(description="Checks the installation of LDZNet, or converts its checkpoint.")
    commands = parser.add_subparsers(dest="command")
    command = commands.add_parser(
        "convert", help="published checkpoint to safetensors", epilog="Example: install.py convert LDZNet_txt2mask.ckpt"
    )
    command.add_argument("file", help="the downloaded LDZNet_txt2mask.ckpt")
    command.add_argument(
        "output", nargs="?", help=f"default: {HEAD_NAME} in the host's models/ldznet, else beside FILE"
    )
    command.add_argument("--dtype", choices=DTYPES, help="default: that of the file; float16 halves it")
    command.add_argument("--force", action="store_true", help="replace an existing output")
    command = commands.add_parser(
        "shrink",
        help="a head as a small file over the model that it started from",
        epilog="Example: install.py shrink LDZNet_txt2mask.ckpt sd-v1-4.ckpt",
    )
    command.add_argument("file", help="the downloaded LDZNet_txt2mask.ckpt, or what convert made of it")
    command.add_argument("base", help="the Stable Diffusion 1.4 that it started from, .ckpt or .safetensors")
    command.add_argument(
        "output", nargs="?", help=f"default: {SMALL_NAME} in the host's models/ldznet, else beside FILE"
    )
    command.add_argument("--size", type=float, default=300.0, help="of the output in MB (default: 300)")
    command.add_argument("--rank", type=int, help="of every difference, in the place of a size")
    command.add_argument("--force", action="store_true", help="replace an existing output")
    arguments = parser.parse_args()
    write = {"convert": convert, "shrink": shrink}.get(arguments.command)
    return written(write, arguments) if write else check()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("Stopped. Nothing was written.")
    except OSError as error:
        sys.exit(refuse(f"Could not read or write a file: {error}. Check the path, its rights and the free space."))
