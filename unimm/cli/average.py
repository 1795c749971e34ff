"""``unimm average``: the mean of models that began as one."""

from pathlib import Path
from typing import Annotated

import typer

from unimm.cli.options import parse_dtype
from unimm.cli.output import stdout, working
from unimm.errors import UserError
from unimm.files import check_new_directory


def average(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL MODEL... DIR",
            help="Model directories or hub ids, and the directory to write.",
        ),
    ],
    weights: Annotated[
        list[float] | None,
        typer.Option(
            "--weight", metavar="W", help="Once for each model, in order.", show_default="alike"
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option(metavar="DTYPE", help="`float32`, `bfloat16` or `float16`.")
    ] = "float32",
) -> None:
    """Write the mean of models that were trained from one and the same.

    **Examples**

    - `unimm average runs/a/model runs/b/model mean --dtype bfloat16`
    - `unimm average runs/a/model runs/b/model mean --weight 2 --weight 1`
    """
    *models, destination = places
    precision = parse_dtype(dtype)
    if len(models) < 2:
        raise UserError(
            f"average takes MODEL MODEL... DIR, at least three places, got {len(places)}"
        )
    check_new_directory(Path(destination))
    from unimm.averaging import average as average_models

    with working("averaging"):
        mean = average_models(models, weights)
        mean.save_pretrained(destination, dtype=precision)
    stdout.print(destination, markup=False)
