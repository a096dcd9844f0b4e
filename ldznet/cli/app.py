"""The commands. Each parses, calls the library, and reports; `main` turns the library's errors into exit code 2."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError, shown
from .progress import console, progress_bar
from .train_app import Seed, train

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(train, name="train")


def _version(asked: bool) -> None:
    if asked:
        from .. import __version__

        typer.echo(f"ldznet {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and leave.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Words in, mask out, from the Stable Diffusion that is already loaded."""


def note(text: str) -> None:
    """On standard error, so that it stands in no list of files."""
    typer.echo(f"note: {text}", err=True)


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Where the contact sheet goes, a PNG.", dir_okay=False)
    ] = Path("ldznet-demo.png"),
    seed: Seed = 1,
) -> None:
    """Generate pictures, segment them by words, and write one contact sheet. Example: ldznet demo -o sheet.png"""
    from ..checkpoints import load_head
    from ..hosts.tiny import TinyHost
    from .demo import demo as run

    start = time.perf_counter()
    with console.status("Generating and segmenting …"):
        path = run(TinyHost.load(), load_head("tiny"), seed, out)
    console.print(f"Wrote {path} in {time.perf_counter() - start:.1f} s.")


@app.command()
def segment(
    image: Annotated[str, typer.Argument(help="The picture's file.")],
    text: Annotated[
        list[str], typer.Option(help='A phrase; "a - b" leaves b out, "a | b" is either. May be given several times.')
    ],
    model: Annotated[
        str | None,
        typer.Option(help='A diffusers folder, or a file of SD 1.x, 2.x or SDXL. "tiny": the embedded toy.'),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            help='"attention", "concepts", "tiny", "tiny-znet", a file; left out: "tiny" for "tiny", else "attention".'
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for masks, overlay and result.json.", file_okay=False)
    ] = Path("masks"),
    threshold: Annotated[float, typer.Option(help="On probabilities.", min=0, max=1)] = 0.5,
    ensemble: Annotated[int, typer.Option(help="How many (t, noise) pairs to average.", min=1)] = 1,
    resolution: Annotated[str, typer.Option(help='"head" or "native".')] = "head",
    seed: Seed = 0,
) -> None:
    """Masks of a picture. Example: ldznet segment photo.png --text "the dog" --text grass --model DIR --head FILE"""
    from .. import Predictor, load_head, open_host
    from ..images import open_picture
    from ..phrases import read
    from . import segment as run
    from .results import require_room

    if model is None:
        raise InputError(run.NO_MODEL)
    head = head or ("tiny" if model == "tiny" else "attention")
    picture = open_picture(image)
    read(text)
    require_room(out, run.names(text))
    if model == "tiny":
        note(run.TOY)
    with console.status("Loading …"):
        host, loaded = open_host(model), load_head(head)
    with progress_bar("Segmenting") as progress:
        predictor = Predictor(host, loaded, seed=seed, ensemble=ensemble, resolution=resolution, progress=progress)
        predictor.set_image(picture)
        result = predictor.predict(text)
    about = {"image": image, "model": model, "head": head, "seed": seed, "ensemble": ensemble, "resolution": resolution}
    for line in run.write_masks(picture, result, threshold, out, about):
        typer.echo(line)
    for remark in filter(None, [result.caveat, *result.hints]):
        note(remark)


@app.command()
def generate(
    captions: Annotated[list[str], typer.Argument(help="What to draw.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the pictures and result.json.", file_okay=False)
    ] = Path("pictures"),
    steps: Annotated[int, typer.Option(min=1, max=1000)] = 30,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance.", min=0, max=100)] = 5.0,
    seed: Seed = 0,
) -> None:
    """Pictures of the tiny world. Example: ldznet generate "a photo of a red star on grass" """
    from ..hosts.tiny import TinyHost
    from . import generate as run
    from .results import require_room

    require_room(out, run.names(captions))
    host = TinyHost.load()
    for remark in run.remarks(host, captions):
        note(remark)
    with console.status("Generating …"):
        latents = host.generate(captions, seed, steps, guidance)
    about = {"seed": seed, "steps": steps, "guidance": guidance}
    for line in run.write_pictures(host, latents, captions, out, about):
        typer.echo(line)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="The published checkpoint.")],
    target: Annotated[Path, typer.Argument(help="The .safetensors to write.")],
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16; as in the file if left out.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing target.")] = False,
) -> None:
    """One safetensors of the published checkpoint. Example: ldznet convert LDZNet_txt2mask.ckpt head.safetensors"""
    import torch

    from ..checkpoints.convert import convert as run

    dtypes = {None: None, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if dtype not in dtypes:
        raise InputError(f"Expected a dtype of float32, float16 or bfloat16, got {dtype}.")
    with progress_bar("Converting") as progress:
        report = run(source, target, dtypes[dtype], force=force, progress=progress)
    typer.echo(f"Wrote {report.target}: {report.tensors} tensors, {report.parameters / 1e6:.1f} M parameters.")


@app.command()
def shrink(
    source: Annotated[Path, typer.Argument(help="An LD-ZNet or ZNet: what convert takes, or wrote.")],
    target: Annotated[Path, typer.Argument(help="The .safetensors to write.")],
    base: Annotated[Path, typer.Option(help="The Stable Diffusion that it started from, with the LDM's names.")],
    rank: Annotated[int | None, typer.Option(help="Of every matrix's difference.", min=1)] = None,
    size: Annotated[float | None, typer.Option(help="Of the file in MB, in the place of a rank.", min=0)] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing target.")] = False,
) -> None:
    """A head as its difference from the model it runs on. Example: ldznet shrink head.safetensors small.safetensors
    --base sd-v1-4.ckpt --size 200"""
    from ..checkpoints.shrink import MEGABYTE
    from ..checkpoints.shrink import shrink as run

    with progress_bar("Shrinking") as progress:
        report = run(source, target, base, rank=rank, megabytes=size, force=force, progress=progress)
    typer.echo(
        f"Wrote {report.target}: {report.size / MEGABYTE:.1f} MB, ranks up to {report.rank}, with {report.energy:.1%} "
        "of the differences' energy."
    )
    typer.echo("By block: " + ", ".join(f"{block} {share:.0%}" for block, share in report.energies.items()))


@app.command()
def info(
    head: Annotated[
        str, typer.Argument(help='"attention", "concepts", "tiny", "tiny-light", "tiny-znet" or a .safetensors file.')
    ] = "tiny",
) -> None:
    """What a head is and asks for. Example: ldznet info tiny"""
    import dataclasses

    from ..checkpoints.load import head_info

    about = head_info(head)
    facts = {**dataclasses.asdict(about.config), "parameters": f"{about.parameters:,}", "dtype": about.dtype}
    for name, value in {**about.metadata, **facts}.items():  # whatever the file says, these are what is read
        typer.echo(f"{shown(name)}: {shown(value, 2000)}")


@app.command()
def evaluate(
    what: Annotated[
        str | None, typer.Argument(help='"tiny", "taps", "naming", "gates", "resolution" or "timestep".')
    ] = None,
    head: Annotated[
        list[str] | None,
        typer.Option(
            help='"attention", "concepts", "tiny", "tiny-light", "tiny-znet" or a file; with --dataset several times.'
        ),
    ] = None,
    scenes: Annotated[int, typer.Option(help="Of the tiny world; no training saw them.", min=2)] = 500,
    weights: Annotated[
        Path | None, typer.Option(help="For gates and naming: a folder of weights, if not our own.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="phrasecut, aigi, refcoco, refcoco+, gref, coco, folder, or T0 to T4.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The dataset's folder; docs/datasets.md says how it lies.")] = None,
    split: Annotated[str | None, typer.Option(help="Of the dataset; its usual one if left out.")] = None,
    model: Annotated[
        str, typer.Option(help='A diffusers folder, or a file of SD 1.x, 2.x or SDXL. "tiny": the embedded toy.')
    ] = "tiny",
    clipseg: Annotated[
        Path | None, typer.Option(help="A transformers folder of CLIPSeg, to be measured beside the heads.")
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(help="Squash pictures to so many pixels a side; 0: as they are.", min=0),
    ] = None,
    device: Annotated[str | None, typer.Option(help='Such as "cuda"; the CPU if left out.')] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for result.json, curve and cases.", file_okay=False)
    ] = None,
    json: Annotated[
        Path | None, typer.Option(help="Of the tiny world: write the table here, too.", dir_okay=False)
    ] = None,
    seed: Seed = 0,
) -> None:
    """Measure heads on a dataset, or the tiny world: heads, gates (exit code 1 where one fails), settings.

    Examples: ldznet evaluate tiny --scenes 500; ldznet evaluate --dataset phrasecut --data VGPhraseCut_v0 --model DIR
    --head FILE -o out; several processes: accelerate launch --num_processes 2 -m ldznet evaluate --dataset …"""
    from rich.console import Console

    if dataset is not None:
        if what is not None:
            raise InputError(f'Expected either --dataset or what of the tiny world to measure, got both, "{what}".')
        from .dataset import Setting
        from .dataset import evaluate as measure

        heads = tuple(head or () if clipseg else head or ["tiny" if model == "tiny" else "attention"])
        table = measure(Setting(dataset, data, split, heads, model, clipseg, size, scenes, device, seed), out)
        if table is not None:
            Console(width=205).print(table)
        return
    from ..tinyworld.world import WEIGHTS
    from . import evaluate as run

    what = what or "tiny"
    tables = {"tiny": run.tiny, "taps": run.taps, "resolution": run.resolution, "timestep": run.timestep}
    of_weights = {"naming": run.naming, "gates": run.gate_table}
    if what not in tables and what not in of_weights:
        raise InputError(f'Expected {", ".join(tables)}, naming or gates, got "{what}".')
    if what in of_weights:
        table, passed = of_weights[what](weights or WEIGHTS, scenes)
    else:
        table, passed = tables[what](head[0] if head else "tiny", scenes), True
    Console(width=205).print(table)
    if json is not None:
        run.write_table(table, json)
    if not passed:
        raise typer.Exit(1)
