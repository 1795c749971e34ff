"""``unimm train RECIPE [KEY=VALUE ...]`` and ``unimm cache-latents RECIPE``."""

from pathlib import Path
from typing import Annotated

import typer

from unimm.cli.options import parse_dtype, pick_device
from unimm.cli.output import progress_bar, warn
from unimm.errors import UserError

from .recipes import find_recipe, recipe_names

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
cache_latents_app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
export_app = typer.Typer(add_completion=False, rich_markup_mode="markdown")


@app.command()
def train(
    recipe: Annotated[
        str | None, typer.Argument(help="A shipped recipe or a YAML file; none lists them.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Dotted overrides.")
    ] = None,
    *,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say what the run needs; train nothing.")
    ] = False,
    gpus: Annotated[int, typer.Option(min=1, help="With --plan: GPUs in all.")] = 8,
    peak_tflops: Annotated[float, typer.Option(help="With --plan: peak of one GPU.")] = 989.0,
    mfu: Annotated[float, typer.Option(help="With --plan: share of the peak reached.")] = 0.4,
) -> None:
    """Train by a recipe; an interrupted run goes on where its last checkpoint stands.

    On several GPUs a launcher starts the same command in every process:
    `torchrun --nproc-per-node 8 -m unimm train RECIPE`,
    `deepspeed --no_local_rank --module unimm train RECIPE`, or `srun unimm train RECIPE`.

    **Examples:** `unimm train scenes/vision` · `unimm train scenes/joint run.num_steps=20000` ·
    `unimm train scenes/zero --plan --gpus 8`
    """
    if recipe is None:
        typer.echo("\n".join(recipe_names()))
        return
    path = find_recipe(recipe)
    if plan:
        from .plan import Machine, plan_recipe  # imports torch

        machine = Machine(num_gpus=gpus, peak_tflops=peak_tflops, mfu=mfu)
        typer.echo("\n".join(plan_recipe(path, overrides or [], machine).lines()))
        return
    from .run import run_recipe  # imports torch

    model = run_recipe(path, overrides or [])
    if model is None:
        typer.echo("stopped after a checkpoint; the same command goes on from there", err=True)
    elif is_main_process():
        typer.echo(model)


@cache_latents_app.command()
def cache_latents(
    recipe: Annotated[str, typer.Argument(help="A recipe whose `data` section names the files.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Dotted overrides.")
    ] = None,
    *,
    model: Annotated[
        str | None, typer.Option(metavar="PLACE", help="Model whose encoder to use.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The cache; `data.latent_cache` by default."),
    ] = None,
    device: Annotated[str, typer.Option(help="`cpu`, `cuda` or `cuda:N`; `auto` picks.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Of the stored latents.")] = "bfloat16",
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures encoded at a time.")] = 64,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode pictures.")] = 0,
    part: Annotated[
        str, typer.Option(metavar="I/N", help="Do the I-th of N parts, from 0.")
    ] = "0/1",
) -> None:
    """Encode the pictures of a recipe's data once, so that training need not.

    Killed and started again, it goes on after the last whole file of latents.

    **Example:** `unimm cache-latents recipe.yaml --model my-model --output latents --device cuda`
    """
    import torch

    from unimm.fingerprint import latent_space_id
    from unimm.pipeline import Pipeline

    from .data.caching import cache_latents as encode_all
    from .data.caching import read_data_config

    data = read_data_config(find_recipe(recipe), overrides or [])
    root = output or data.latent_cache
    if root is None:
        raise UserError("name the cache with --output DIR, or as data.latent_cache in the recipe")
    place = torch.device(pick_device(device))
    pipeline = Pipeline.from_pretrained(model, device=place)
    spaces = {pipeline.space: pipeline.model.latents}
    if pipeline.model.vision is not None:  # a picture is read in one sample, drawn in another
        spaces[latent_space_id(pipeline.model, seen=True)] = pipeline.model.vision
    for name, space in spaces.items():
        with progress_bar("encoding") as progress:
            report = encode_all(
                data,
                space,
                space=name,
                root=root,
                device=place,
                dtype=parse_dtype(dtype),
                batch_size=batch_size,
                num_workers=workers,
                part=parse_part(part),
                progress=progress,
            )
        for problem in report.problems[:20]:
            warn(problem)
        typer.echo(
            f"{report.num_pictures} pictures, {report.num_encoded} of them new, "
            f"{len(report.problems)} samples that cannot be read",
            err=True,
        )
        typer.echo(report.folder)


def parse_part(text: str) -> tuple[int, int]:
    """Return (i, n) of ``i/n``."""
    first, _, count = text.partition("/")
    if not (first.isdecimal() and count.isdecimal() and int(first) < int(count)):
        raise UserError(f"--part must be I/N with I from 0 to N-1, such as 0/4, got {text!r}")
    return int(first), int(count)


@export_app.command()
def export(
    run_dir: Annotated[Path, typer.Argument(help="Directory of a run of the unified stage.")],
    out: Annotated[Path, typer.Argument(help="Directory for the model.")],
    raw: Annotated[
        bool, typer.Option("--raw", help="The weights themselves, not their moving average.")
    ] = False,
) -> None:
    """Write the model of a run's last checkpoint, whichever ZeRO stage and GPUs it is from.

    **Example:** `unimm export runs/scenes/zero my-model`
    """
    from .export import export_checkpoint  # imports torch

    typer.echo(export_checkpoint(run_dir, out, averaged=not raw))


def is_main_process() -> bool:
    """Return whether this is the process of a launched run that reports."""
    from .ranks import launched_ranks

    return launched_ranks().is_main
