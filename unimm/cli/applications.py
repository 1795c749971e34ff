"""``unimm train``, ``eval`` and ``serve``: find the application and hand it the arguments.

In a checkout the applications are the folders ``training``, ``eval`` and ``serving`` beside
``unimm``; in a wheel they are ``unimm_training`` and so on. Each has a module ``cli`` with a typer
application ``app``.
"""

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

import unimm
from unimm.errors import MissingExtraError, UnimmError, UserError


def train_command(context: typer.Context) -> None:
    """Train a model by a recipe.

    **Example:** `unimm train scenes/joint optimizer.lr=1e-4`
    """
    _run("training", context)


def cache_latents_command(context: typer.Context) -> None:
    """Encode training pictures once, ahead of training.

    **Example:** `unimm cache-latents recipe.yaml --model my-model --output latents`
    """
    _run("training", context, attribute="cache_latents_app")


def export_command(context: typer.Context) -> None:
    """Write the model of a training run's last checkpoint.

    **Example:** `unimm export runs/scenes/zero my-model`
    """
    _run("training", context, attribute="export_app")


def eval_command(context: typer.Context) -> None:
    """Measure a model's quality, speed and memory.

    **Example:** `unimm eval scenes --best-of 16`
    """
    _run("eval", context)


def serve_command(context: typer.Context) -> None:
    """Serve a model over HTTP.

    **Example:** `unimm serve --port 8000`
    """
    _run("serving", context)


def import_application(name: str, *, beside: Path | None = None, attribute: str = "app") -> Any:
    """Return the typer application of ``training``, ``eval`` or ``serving``.

    Args:
        name: The application's name in a checkout.
        attribute: What its module ``cli`` calls it.
        beside: The folder that holds the packages; where ``unimm`` lies, by default.

    Raises:
        MissingExtraError: It needs a package that is not installed.
        UserError: This installation has no such application.
        UnimmError: Another package of the same name hides it.
    """
    root = beside or Path(unimm.__file__).resolve().parent.parent
    module = next(
        (module for module in (f"unimm_{name}", name) if (root / module / "cli.py").is_file()), None
    )
    if module is None:
        raise UserError(f"this installation of unimm {unimm.__version__} has no part called {name}")
    with extra_named(name):
        cli = importlib.import_module(f"{module}.cli")
    if not Path(str(cli.__file__)).resolve().is_relative_to(root):
        raise UnimmError(
            f"the package {module} at {cli.__file__} hides unimm's own; use another environment"
        )
    return getattr(cli, attribute)


@contextlib.contextmanager
def extra_named(name: str) -> Iterator[None]:
    """Turn the want of another project's package into the command that installs an extra.

    Raises:
        MissingExtraError: In the place of ModuleNotFoundError.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "unimm", "metaquery", name, f"unimm_{name}"):
            raise
        raise MissingExtraError(missing, extra=name) from error


def _run(name: str, context: typer.Context, *, attribute: str = "app") -> None:
    application = import_application(name, attribute=attribute)
    with extra_named(name):
        status = application(
            args=context.args, prog_name=f"unimm {context.info_name}", standalone_mode=False
        )
    if isinstance(status, int) and status:
        raise typer.Exit(status)
