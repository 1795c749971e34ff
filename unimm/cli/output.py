"""What commands print: results on stdout, everything else on stderr."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

stdout = Console(highlight=False, soft_wrap=True)
stderr = Console(stderr=True, highlight=False, soft_wrap=True)


def report_error(message: str) -> None:
    """Print an error as one line on stderr."""
    typer.echo(f"unimm: {' '.join(message.split())}", err=True)


def warn(message: str) -> None:
    """Print a warning as one line on stderr."""
    stderr.print(f"unimm: {message}", style="yellow", markup=False)


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document on stdout."""
    typer.echo(json.dumps(document, ensure_ascii=False, allow_nan=False))


@contextlib.contextmanager
def stdout_kept_clean() -> Iterator[None]:
    """Send whatever libraries print to stderr, so that stdout holds the result alone."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def working(message: str, *, quiet: bool = False) -> Iterator[None]:
    """Show a spinner on stderr while the block runs, if a person is watching."""
    if quiet or not stderr.is_terminal:
        yield
        return
    with stderr.status(message):
        yield


@contextlib.contextmanager
def progress_bar(message: str, *, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on stderr while the block runs, if a person is watching.

    Yields:
        A function to call with the steps done and all steps.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    hidden = quiet or not stderr.is_terminal
    with Progress(
        SpinnerColumn(),
        *columns,
        TimeElapsedColumn(),
        console=stderr,
        transient=True,
        disable=hidden,
    ) as progress:
        task = progress.add_task(message, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
