"""``unimm train RECIPE [KEY=VALUE ...]``."""

from typing import Annotated

import typer

from .recipes import find_recipe, recipe_names

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")


@app.command()
def train(
    recipe: Annotated[
        str | None, typer.Argument(help="A shipped recipe or a YAML file; none lists them.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Dotted overrides.")
    ] = None,
) -> None:
    """Train by a recipe; an interrupted run goes on where its last checkpoint stands.

    **Examples:** `unimm train scenes/vision` · `unimm train scenes/joint run.num_steps=20000`
    """
    if recipe is None:
        typer.echo("\n".join(recipe_names()))
        return
    path = find_recipe(recipe)
    from .run import run_recipe  # imports torch

    model = run_recipe(path, overrides or [])
    if model is None:
        typer.echo("stopped after a checkpoint; the same command goes on from there", err=True)
    else:
        typer.echo(model)
