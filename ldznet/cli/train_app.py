"""The commands under `ldznet train`: a stage of the tiny world's recipe, all of them, a head over another model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

Seed = Annotated[int, typer.Option(help="Seed of the noise; the same seed gives the same masks.", min=0)]
STAGES = {  # of `recipe.STAGES`, which waits for torch
    "all": "All models of the tiny world, one after the other. Example: ldznet train all --out runs",
    "vae": "The tiny world's VAE.",
    "classifier": "The judge of the tiny world's pictures, for the gates.",
    "probe": "The judge of the tiny world's latents, for the gates and the UNet.",
    "text": "The tiny world's text encoder.",
    "ldm": "The tiny world's denoising UNet.",
    "ldznet": "The head *tiny*, an LD-ZNet.",
    "light": "The head *tiny-light*.",
    "sd3": "A small SD 3 of the tiny world; needs diffusers.",
}

train = typer.Typer(
    no_args_is_help=True,
    help="Train the tiny world's models, or a head over a Stable Diffusion; goes on where it was stopped. Example: "
    "ldznet train all --out runs",
)


def _stage(name: str) -> Callable[..., None]:
    def run(
        data: Annotated[str, typer.Option(help='"tinyworld", or a folder with an index.jsonl.')] = "tinyworld",
        images: Annotated[int, typer.Option(help="How many scenes of the tiny world to draw.", min=1)] = 40_000,
        steps: Annotated[int | None, typer.Option(help="Optimizer steps; the recipe's if left out.", min=1)] = None,
        batch: Annotated[int | None, typer.Option(help="Images a step; the recipe's if left out.", min=1)] = None,
        out: Annotated[
            Path, typer.Option("--out", "-o", help="Folder for data, states and logs.", file_okay=False)
        ] = Path("runs"),
        weights: Annotated[
            Path, typer.Option(help="Folder of the weights: read from, and written to.", file_okay=False)
        ] = Path("runs/weights"),
        binding: Annotated[
            float, typer.Option(help="Of the LDM: how much each noun's attention is drawn to its thing.", min=0)
        ] = 0.0,
    ) -> None:
        from .train import Setting
        from .train import train as work

        for path in work(name, Setting(data, images, steps, batch, out, weights, binding)):
            typer.echo(f"Wrote {path}.")

    return run


for _name, _help in STAGES.items():
    train.command(_name, help=_help)(_stage(_name))


@train.command()
def head(
    model: Annotated[
        str, typer.Option(help='A diffusers folder, or a file of SD 1.x, 2.x or SDXL. "tiny": the embedded toy.')
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The head, a new .safetensors.", dir_okay=False)],
    tier: Annotated[
        str,
        typer.Option(
            help='"light": a decoder over latents and taps, no second pass. "one": a pass of the model\'s own UNet '
            'under small changes. "two": taps, then such a pass.'
        ),
    ] = "two",
    dataset: Annotated[
        str, typer.Option(help="phrasecut, aigi, refcoco, refcoco+, gref, coco, folder, or tinyworld.")
    ] = "tinyworld",
    data: Annotated[Path | None, typer.Option(help="The dataset's folder; docs/datasets.md says how it lies.")] = None,
    split: Annotated[str, typer.Option(help="Of the dataset: what to learn from.")] = "train",
    runs: Annotated[Path, typer.Option(help="Folder for data, states and logs.", file_okay=False)] = Path("runs/head"),
    steps: Annotated[int | None, typer.Option(help="Optimizer steps; 20,000 if left out.", min=1)] = None,
    batch: Annotated[int | None, typer.Option(help="Phrases a step and process; 64 if left out.", min=1)] = None,
    size: Annotated[int | None, typer.Option(help="Side of the pictures; 384 if left out, SDXL 1024.", min=8)] = None,
    rank: Annotated[
        int | None,
        typer.Option(help="Of the changes to the UNet's linear layers; 32 if left out, SDXL 16.", min=1, max=4096),
    ] = None,
    images: Annotated[int, typer.Option(help="How many scenes of the tiny world to draw.", min=1)] = 40_000,
    check: Annotated[int, typer.Option(help="Unseen pictures to segment at each save, where there are.", min=0)] = 32,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Compute parts of the UNet twice to save memory.")
    ] = False,
    teacher: Annotated[
        Path | None, typer.Option(help="A trained head over the same model, half of whose masks are learned.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights and batches.", min=0)] = 0,
) -> None:
    """A head over a Stable Diffusion, from phrases and masks. Example: ldznet train head --tier two --model
    sd15.safetensors --dataset phrasecut --data VGPhraseCut_v0 --out head.safetensors

    Runs on a GPU where there is one; on several with: accelerate launch -m ldznet train head …"""
    from .train_head import Setting
    from .train_head import train as work

    numbers = (steps, batch, size, rank, images, check)
    setting = Setting(tier, model, dataset, data, split, out, runs, *numbers, recompute, teacher, seed)
    typer.echo(f"Wrote {work(setting, lambda text: typer.echo(text, err=True))}.")
