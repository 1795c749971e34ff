"""``unimm info``: what a model is made of and how much memory it takes."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from unimm.cli.options import MODEL_HELP, JsonOption
from unimm.cli.output import print_json, stdout, stdout_kept_clean, working

if TYPE_CHECKING:
    from unimm.footprint import Footprint

BYTES = {"float32": 4, "bfloat16": 2}


def info(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a model's parts, parameters and memory by dtype; nothing is loaded.

    **Example:** `unimm info`
    """
    with stdout_kept_clean(), working("reading headers", quiet=as_json):
        document = describe(model)
    if as_json:
        print_json(document)
    else:
        _print(document)


def describe(model: str | None) -> dict[str, Any]:
    """Return the JSON document that describes a model."""
    from unimm.loading import inspect

    footprint, space = inspect(model)
    return {
        "model": model or "the small model of the package",
        "latent_space": space,
        "parts": [
            {"name": name, "parameters": count, "bytes": _bytes(count)}
            for name, count in footprint.parameters.items()
        ],
        "parameters": footprint.total,
        "bytes": _bytes(footprint.total),
        "quantized_language_bytes": _quantized(footprint),
    }


def _quantized(footprint: "Footprint") -> dict[str, int]:
    import torch

    from unimm.footprint import BITS

    return {kind: footprint.size("language", torch.bfloat16, kind) for kind in BITS}


def _bytes(parameters: int) -> dict[str, int]:
    return {dtype: parameters * width for dtype, width in BYTES.items()}


def _print(document: dict[str, Any]) -> None:
    table = Table(title=document["model"], title_justify="left")
    table.add_column("part")
    table.add_column("parameters", justify="right")
    for dtype in BYTES:
        table.add_column(dtype, justify="right")
    total = {"name": "all", "parameters": document["parameters"], "bytes": document["bytes"]}
    for row in (*document["parts"], total):
        if row is total:
            table.add_section()
        sizes = (f"{row['bytes'][dtype] / 2**20:,.1f} MiB" for dtype in BYTES)
        table.add_row(row["name"], f"{row['parameters']:,}", *sizes)
    stdout.print(table)
    quantized = ", ".join(
        f"{size / 2**20:,.1f} MiB in {kind}"
        for kind, size in document["quantized_language_bytes"].items()
    )
    stdout.print(f"language with --quantize: {quantized}", style="dim")
    if document["latent_space"]:
        stdout.print(f"latent space {document['latent_space']}", style="dim")
