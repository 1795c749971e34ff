"""The command tree: every command, one file each."""

import logging
import os
from typing import Annotated

import typer

from unimm.cli.applications import (
    cache_latents_command,
    eval_command,
    export_command,
    serve_command,
    train_command,
)
from unimm.cli.ask import ask
from unimm.cli.assemble import assemble
from unimm.cli.average import average
from unimm.cli.chat import chat
from unimm.cli.convert import convert
from unimm.cli.generate import generate
from unimm.cli.info import info
from unimm.cli.verify import verify

app = typer.Typer(
    name="unimm",
    help="Draw pictures, read them, and choose: one model does all three.",
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)

for _command in (generate, ask, verify, chat, info, convert, assemble, average):
    app.command()(_command)

# Their arguments belong to the applications, which parse them and print their own help.
_PASS_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
for _name, _application in (
    ("train", train_command),
    ("cache-latents", cache_latents_command),
    ("export", export_command),
    ("eval", eval_command),
    ("serve", serve_command),
):
    app.command(_name, context_settings=_PASS_ON)(_application)


@app.callback(invoke_without_command=True)
def unimm(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log what happens, on stderr.")
    ] = False,
) -> None:
    """Draw pictures, read them, and choose: one model does all three.

    **Examples**

    - `unimm generate "a picture of a blue circle and a red square" --best-of 8`
    - `unimm ask picture.png "what color is the circle?"`
    - `unimm chat`
    """
    _configure_logging(verbose=verbose)
    if version:
        from unimm import __version__

        typer.echo(f"unimm {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)


def _configure_logging(*, verbose: bool) -> None:
    """Log warnings of ours; what transformers warns of, such as odd token ids, on request."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
        force=True,
    )
    if not verbose:
        # Where it is not imported yet, it takes its level from the variable, not from its logger.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        logging.getLogger("transformers").setLevel(logging.ERROR)
