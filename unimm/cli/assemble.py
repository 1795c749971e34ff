"""``unimm assemble``: a new model of released parts, to train."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from unimm.cli.options import parse_dtype
from unimm.cli.output import stdout, working
from unimm.files import check_new_directory

if TYPE_CHECKING:
    from metaquery.connector import ConnectorKind


def assemble(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="The directory to write.")],
    *,
    language: Annotated[
        str,
        typer.Option(
            metavar="PLACE", help="Language model: a Hugging Face folder, hub id or GGUF file."
        ),
    ],
    tower: Annotated[
        str, typer.Option(metavar="PLACE", help="Vision tower: a Hugging Face folder or hub id.")
    ],
    decoder: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE",
            help="Pixel decoder: a folder or hub id of Scale-RAE, or what a decoder stage wrote; "
            "without one the model draws latents only.",
        ),
    ] = None,
    vae: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE",
            help="Draw the latents of this AutoencoderKL instead of the tower's: a folder of "
            "diffusers or hub id (extra `vae`).",
        ),
    ] = None,
    generator: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            help="Of the DiT: `0.5B`, `2.4B`, `3.1B`, `5.5B`, `9.8B`, or a YAML file.",
        ),
    ] = "2.4B",
    connector: Annotated[
        str,
        typer.Option(
            metavar="KIND", help="To the DiT: `linear`, `mlp2`, `encoder6` or `encoder24`."
        ),
    ] = "linear",
    queries: Annotated[
        int, typer.Option(min=1, help="Learnable queries of a picture, a square number.")
    ] = 256,
    dtype: Annotated[
        str, typer.Option(metavar="DTYPE", help="`float32`, `bfloat16` or `float16`.")
    ] = "float32",
    seed: Annotated[int, typer.Option(min=0, help="Of the new weights.")] = 0,
) -> None:
    """Make a model of a language model and a vision tower; the rest of it is new and random.

    The tokenizer gets the marks around pictures. `unimm train` begins with the result.

    **Example:** `unimm assemble start --language Qwen/Qwen2.5-1.5B-Instruct --tower
    google/siglip2-so400m-patch14-224 --decoder nyu-visionx/siglip2_decoder --dtype bfloat16`
    """
    check_new_directory(out)
    precision = parse_dtype(dtype)
    from unimm.assembly import Assembly
    from unimm.checkpoints.fresh import assemble_model
    from unimm.errors import UserError
    from unimm.pipeline import Pipeline

    try:
        assembly = Assembly(
            language=language,
            tower=tower,
            decoder=decoder,
            vae=vae,
            generator=generator,
            # Any other text is refused, with the kinds that are known.
            connector=cast("ConnectorKind", connector),
            queries=queries,
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    with working("assembling"):
        made = assemble_model(assembly, dtype=precision, seed=seed)
    with working("writing"):
        Pipeline(made.model, made.tokenizer, card=made.card).save_pretrained(out)
    stdout.print(str(out), markup=False)
