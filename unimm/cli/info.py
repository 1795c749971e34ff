"""``unimm info``: what a model is made of and how much memory it takes."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from unimm.cli.options import MODEL_HELP, JsonOption, load_pipeline
from unimm.cli.output import print_json, stdout, stdout_kept_clean, working

if TYPE_CHECKING:
    from unimm.pipeline import Pipeline

BYTES = {"float32": 4, "bfloat16": 2}


def info(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a model's parts, parameters and memory by dtype.

    **Example:** `unimm info`
    """
    with stdout_kept_clean(), working("loading the model", quiet=as_json):
        pipeline = load_pipeline(model, device="cpu", dtype="float32")
        document = info_document(model, pipeline)
    if as_json:
        print_json(document)
    else:
        _print(document)


def info_document(model: str | None, pipeline: "Pipeline") -> dict[str, Any]:
    """Return the JSON document that describes a model."""
    from unimm.model import PARTS

    parts = {
        name: sum(parameter.numel() for parameter in pipeline.model.part(name).parameters())
        for name in PARTS
    }
    return {
        "model": model or "the small model of the package",
        "latent_space": pipeline.space,
        "parts": [
            {"name": name, "parameters": count, "bytes": _bytes(count)}
            for name, count in parts.items()
        ],
        "parameters": sum(parts.values()),
        "bytes": _bytes(sum(parts.values())),
    }


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
    stdout.print(f"latent space {document['latent_space']}", style="dim")
