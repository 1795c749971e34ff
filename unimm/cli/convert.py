"""``unimm convert``: rewrite a model, ours or another system's, as a directory of ours."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unimm.cli.options import load_pipeline, parse_dtype
from unimm.cli.output import progress_bar, stdout, working
from unimm.errors import UserError
from unimm.files import check_new_directory

if TYPE_CHECKING:
    import torch

SYSTEMS = ("unimm", "scale-rae", "rae", "rae-dit")


def convert(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="[SYSTEM] SOURCE DIR",
            help="Whose model (`unimm`, `scale-rae`, `rae` or `rae-dit`), where it is (a folder, "
            "hub id, or file for `rae-dit`), and the directory to write.",
        ),
    ],
    dtype: Annotated[
        str, typer.Option(metavar="DTYPE", help="`float32`, `bfloat16` or `float16`.")
    ] = "float32",
    tower: Annotated[
        str | None,
        typer.Option(metavar="PLACE", help="Vision tower: a Hugging Face folder or hub id."),
    ] = None,
    decoder: Annotated[
        str | None,
        typer.Option(metavar="PLACE", help="Pixel decoder or diffusers' VAE: a folder or hub id."),
    ] = None,
) -> None:
    """Rewrite a model: in another precision, or from another system's files.

    **Examples**

    - `unimm convert runs/joint/model small-bf16 --dtype bfloat16`
    - `unimm convert scale-rae nyu-visionx/Scale-RAE-Qwen1.5B_DiT2.4B scale-rae --dtype bfloat16`
    - `unimm convert rae RAE-dinov2-wReg-base-ViTXL-n08 rae-dinov2`
    """
    system, source, destination = _parse(places)
    check_new_directory(destination)
    if system == "unimm":
        with working("converting"):
            load_pipeline(source, device="cpu", dtype=dtype).save_pretrained(destination)
    else:
        _convert_foreign(
            system, source, destination, parse_dtype(dtype), tower=tower, decoder=decoder
        )
    stdout.print(str(destination), markup=False)


def _parse(places: list[str]) -> tuple[str, str, Path]:
    if len(places) == 2:
        places = ["unimm", *places]
    if len(places) != 3:
        raise UserError(f"convert takes [SYSTEM] SOURCE DIR, got {len(places)} arguments")
    system, source, destination = places
    if system not in SYSTEMS:
        raise UserError(f"unknown system {system!r}; choose from {', '.join(SYSTEMS)}")
    return system, source, Path(destination)


def _convert_foreign(
    system: str,
    source: str,
    destination: Path,
    dtype: "torch.dtype",
    *,
    tower: str | None,
    decoder: str | None,
) -> None:
    import torch

    from unimm.checkpoints.foreign import load_scale_rae
    from unimm.checkpoints.parts import PATTERNS
    from unimm.checkpoints.rae_autoencoder import convert_autoencoder
    from unimm.checkpoints.rae_dit import convert_dit
    from unimm.locate import locate_model
    from unimm.pipeline import Pipeline

    if system == "rae-dit":
        convert_dit(Path(source), destination, dtype=dtype)
        return
    directory = locate_model(source, patterns=PATTERNS)
    if system == "rae":
        convert_autoencoder(directory, destination, dtype=dtype, tower=tower)
        return
    with progress_bar("reading tensors") as progress:
        foreign = load_scale_rae(
            directory,
            device=torch.device("cpu"),
            dtype=dtype,
            tower=tower,
            decoder=decoder,
            progress=progress,
        )
    with working("writing"):
        Pipeline(foreign.model, foreign.tokenizer, card=foreign.card).save_pretrained(destination)
