"""``unimm convert``: rewrite a model directory."""

from pathlib import Path
from typing import Annotated

import typer

from unimm.cli.options import load_pipeline
from unimm.cli.output import stdout, working
from unimm.errors import UserError


def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A model directory or hub id.")],
    destination: Annotated[Path, typer.Argument(metavar="DIR", help="The directory to write.")],
    dtype: Annotated[
        str, typer.Option(metavar="DTYPE", help="`float32`, `bfloat16` or `float16`.")
    ] = "float32",
) -> None:
    """Rewrite a model in another precision.

    **Example:** `unimm convert runs/joint/model small-bf16 --dtype bfloat16`
    """
    if destination.exists():
        raise UserError(f"{destination} exists; name a directory that does not")
    if not destination.absolute().parent.is_dir():
        raise UserError(f"there is no folder {destination.absolute().parent}; create it first")
    with working("converting"):
        load_pipeline(source, device="cpu", dtype=dtype).save_pretrained(destination)
    stdout.print(str(destination), markup=False)
