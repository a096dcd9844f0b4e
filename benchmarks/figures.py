"""Every table and plot of docs/, made again.

    python benchmarks/figures.py                    all of them: some hours on two cores
    python benchmarks/figures.py --only coarse      the one of this name, or those whose name contains this
    python benchmarks/figures.py --missing          those that were never made
    python benchmarks/figures.py --render           none: the pages anew from the JSON that is there

A job's figures go to docs/figures/NAME.json with the command that made them. A page quotes them between
`<!-- figure NAME: column, column -->` and `<!-- end -->`; without columns, all of them. Brackets are 95 % intervals
over images where a page says nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from helpers import shown

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
COMFYUI = "$COMFYUI"  # in a command: the folder of a ComfyUI, of the environment
PASSES = ("one pass", "two passes, captured", "two passes, latent")
ONCE = (
    *("latent, 4 phrases", "image", "image, 512 px", "znet", "one pass, 8 phrases", "captured, bfloat16"),
    *("attention, 512 px", "attention, 512 px, 8 phrases", "grounded sam-b", "grounded sam-h"),
)
OVER_SDXL = ("SDXL, light, 1024 px", "SDXL, light, 512 px, 8 phrases")
FAST = tuple(f"{head}, four times the rate" for head in ("LD-ZNet", "rank 16", "rank 8", "rank 4"))
ONE_STEP = ("--size", "1024", "--steps", "1")
LEFT_OUT = ("LD-ZNet, best blocks, inputs left out", "rank 16, inputs left out")
OF_HEADS = ("RGBNet", "ZNet", "LD-ZNet", "LD-ZNet, best blocks", "rank 16", *FAST, *LEFT_OUT)
JOBS: dict[str, tuple[str, ...]] = {
    "tiny": ("ldznet", "evaluate", "tiny", "--scenes", "500"),
    "gates": ("ldznet", "evaluate", "gates", "--scenes", "500"),
    "taps": ("ldznet", "evaluate", "taps", "--head", "tiny", "--scenes", "40"),
    "taps-light": ("ldznet", "evaluate", "taps", "--head", "tiny-light", "--scenes", "40"),
    "resolution": ("ldznet", "evaluate", "resolution", "--scenes", "60"),
    "timestep": ("ldznet", "evaluate", "timestep", "--head", "tiny-light", "--scenes", "60"),
    "ablate": ("attention.py", "ablate", "--scenes", "20"),
    "ablate-weights": ("attention.py", "ablate", "--scenes", "20", "--only", "all blocks"),
    "ablate-T3": ("attention.py", "ablate", "--scenes", "20", "--test", "T3"),
    "compare": ("attention.py", "compare", "--scenes", "20"),
    "presence": ("attention.py", "presence", "--scenes", "40"),
    "edges": ("edges.py", "--scenes", "60"),
    "capture": ("capture.py", "--scenes", "60"),
    "coarse-regions": ("coarse.py", "regions", "--scenes", "100"),
    "coarse-timesteps": ("coarse.py", "phrases", "--choose", "--scenes", "30"),
    "coarse-phrases": ("coarse.py", "phrases", "--scenes", "50"),
    "coarse-noises": ("coarse.py", "noises", "--scenes", "30"),
    "coarse-labels": ("coarse.py", "labels", "--scenes", "50"),
    "coarse-captured": ("coarse.py", "captured", "--scenes", "50"),
    "heatmap": ("heatmap.py", "--scenes", "100"),
    "decoder": ("decoder.py", "--scenes", "100"),
    "usefulness": ("usefulness.py",),
    "heads": ("heads.py", "--seeds", "0", "--only", *OF_HEADS),
    "shrinking": ("shrinking.py", "--scenes", "60"),
    "attention-cost": ("attention_cost.py", "--model", "sd1", "--size", "512", "--pairs", "3"),
    "truncation": ("truncation.py", "--pairs", "9"),
    "peers": ("peers.py", "--pairs", "3", "--only", "light", "light, 8 phrases", "light, bfloat16", *PASSES, "clipseg"),
    "growth": ("peers.py", "--pairs", "2", "--growth"),
    "peers-once": ("peers.py", "--pairs", "1", "--cold", "--only", *ONCE),
    "peers-sdxl": ("peers.py", "--pairs", "1", "--cold", "--only", *OVER_SDXL),
    "capture-cost": ("capture_cost.py", "--comfyui", COMFYUI, "--size", "512", "--steps", "3"),
    "capture-cost-flux": ("capture_cost.py", "--comfyui", COMFYUI, "--family", "flux", *ONE_STEP),
    "capture-cost-zimage": ("capture_cost.py", "--comfyui", COMFYUI, "--family", "zimage", *ONE_STEP),
    "inpaint": ("inpaint.py", "--pictures", "20"),
    "steering": ("steering.py", "--seeds", "50"),
    "steering-tiny": ("steering.py", "--seeds", "50", "--head", "tiny", "--way", "cross-attention"),
    "frames": ("frames.py", "--scenes", "20"),
}
PICTURES: dict[str, tuple[str, ...]] = {  # by their file in docs/
    "coarse.png": ("coarse.py", "labels", "--picture"),
    "growth.png": ("peers.py", "--picture"),
    "heatmap.png": ("heatmap.py", "--picture"),
    "demo.png": ("ldznet", "demo", "-o"),
}
BLOCK = re.compile(r"(<!-- figure (?P<name>[\w-]+)(?:: (?P<columns>[^>]*))? -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--only", default="", help="the job of this name, or those whose name contains it")
    made.add_argument("--missing", action="store_true", help="jobs whose JSON or picture is not there")
    made.add_argument("--render", action="store_true", help="run nothing")
    made.add_argument("--docs", type=Path, default=DOCS, help="folder of the pages (default: docs)")
    made.add_argument("--scenes", help="of every job that has scenes, for a trial")
    given = made.parse_args()
    (given.docs / "figures").mkdir(parents=True, exist_ok=True)
    targets = {given.docs / "figures" / f"{name}.json": job for name, job in JOBS.items()}
    targets |= {given.docs / name: job for name, job in PICTURES.items()}
    exact = given.only in (*JOBS, *PICTURES)
    for target, job in targets.items():
        asked = given.only in (target.stem, target.name) if exact else given.only in target.stem
        if asked and not given.render and not (given.missing and target.exists()):
            print(f"{target.name}: {' '.join(job)}", flush=True)
            make(with_scenes(job, given.scenes), target)
            render(given.docs)
    render(given.docs)


def with_scenes(job: Sequence[str], scenes: str | None) -> tuple[str, ...]:
    """The job over another number of scenes."""
    job = tuple(job)
    if scenes is None or "--scenes" not in job:
        return job
    place = job.index("--scenes") + 1
    return (*job[:place], scenes, *job[place + 1 :])


def make(job: Sequence[str], target: Path) -> None:
    """Runs a job; its picture, or its figures with the command, become `target` when it is through."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / target.name
        done = subprocess.run([*command(job), *([] if target.suffix == ".png" else ["--json"]), str(out)])
        if done.returncode and not out.exists():  # a gate that fails is a figure, too
            sys.exit(f"{target.name} was not made: {' '.join(job)} ended with {done.returncode}.")
        if target.suffix == ".png":
            target.write_bytes(out.read_bytes())
            return
        said = {"command": written(job), "figures": json.loads(out.read_text(encoding="utf-8"))}
        target.write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def command(job: Sequence[str]) -> list[str]:
    """What is run; with ComfyUI's own interpreter, $COMFYUI_PYTHON, where its folder is asked for."""
    place = os.environ.get("COMFYUI", "")
    python = os.environ.get("COMFYUI_PYTHON", sys.executable) if COMFYUI in job else sys.executable
    rest = [place if part == COMFYUI else part for part in job]
    if COMFYUI in job and not place:
        sys.exit(f"Expected the folder of a ComfyUI in $COMFYUI for {' '.join(job)}.")
    return [python, "-m", *rest] if job[0] == "ldznet" else [python, str(HERE / rest[0]), *rest[1:]]


def written(job: Sequence[str]) -> str:
    """The command as a reader types it."""
    parts = job if job[0] == "ldznet" else ["python", f"benchmarks/{job[0]}", *job[1:]]
    return " ".join(f'"{part}"' if " " in part else part for part in parts)


def render(docs: Path) -> None:
    """Puts the figures that are there into the pages."""
    for page in sorted(docs.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        new = BLOCK.sub(lambda block: filled(block, docs), text)
        if new != text:
            page.write_text(new, encoding="utf-8")


def filled(block: re.Match[str], docs: Path) -> str:
    """A block of a page with its table; as it was where the figures are not there."""
    path = docs / "figures" / f"{block['name']}.json"
    if not path.exists():
        return block[0]
    said = json.loads(path.read_text(encoding="utf-8"))
    columns = [column.strip() for column in (block["columns"] or "").split(",") if column.strip()]
    return f"{block[1]}`{said['command']}`\n\n{table(said['figures'], columns)}\n{block[4]}"


def table(figures: Mapping[str, Any], columns: Sequence[str]) -> str:
    """Figures as a table of Markdown: rows by name, or columns and rows as `ldznet evaluate` has them."""
    if "columns" in figures:
        head = columns or figures["columns"]
        places = [figures["columns"].index(column) for column in head]
        rows = [[row[place] for place in places] for row in figures["rows"]]
        note = f"\n{figures['caption']}\n" if figures.get("caption") else ""
    else:
        kept = columns or list(dict.fromkeys(column for row in figures.values() for column in row))
        head, note = ["", *kept], ""
        rows = [[name, *(shown(row[c]) if c in row else "" for c in kept)] for name, row in figures.items()]
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines) + note


if __name__ == "__main__":
    main()
