"""``unimm train RECIPE [KEY=VALUE ...]``."""

from pathlib import Path
from typing import Annotated

import typer

from .recipes import find_recipe, recipe_names

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")
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
