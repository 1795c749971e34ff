"""Options that several commands share, and what they stand for."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from unimm.errors import UserError

if TYPE_CHECKING:
    import torch

    from unimm.pipeline import Pipeline
    from unimm.quantize import Quantization

MODEL_HELP = "A model directory or hub id; the small model of the package by default."

ModelOption = Annotated[
    str | None, typer.Option("--model", "-m", metavar="MODEL", help=MODEL_HELP, show_default=False)
]
DeviceOption = Annotated[
    str, typer.Option(metavar="DEVICE", help="`cpu`, `cuda`, `cuda:1`, `mps`, or `auto`.")
]
DtypeOption = Annotated[
    str, typer.Option(metavar="DTYPE", help="`float32`, `bfloat16` or `float16`.")
]
QuantizeOption = Annotated[
    str | None,
    typer.Option(
        metavar="KIND", help="`8bit` or `4bit` for the language model.", show_default="neither"
    ),
]
OffloadOption = Annotated[
    bool, typer.Option("--offload", help="Keep tower and decoder on the CPU until they are used.")
]
AllowUrlsOption = Annotated[
    bool, typer.Option("--allow-urls", help="Fetch pictures that are named by an http(s) URL.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")
]


def parse_dtype(name: str) -> "torch.dtype":
    """Return the floating-point type of that name.

    Raises:
        UserError: There is no such type.
    """
    import torch

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise UserError(f"unknown dtype {name!r}; choose from {', '.join(known)}")
    return known[name]


def pick_device(name: str) -> str:
    """Return the device of that name; ``auto`` is the GPU where there is one."""
    import torch

    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def load_pipeline(
    model: str | None,
    *,
    device: str,
    dtype: str,
    quantize: str | None = None,
    offload: bool = False,
) -> "Pipeline":
    """Return the model of that name, ready to run.

    Raises:
        UserError: The device, dtype, quantisation or model cannot be used.
    """
    precision = parse_dtype(dtype)
    from unimm.pipeline import Pipeline

    return Pipeline.from_pretrained(
        model,
        device=pick_device(device),
        dtype=precision,
        # Any other text is refused, with the names that are known.
        quantize=cast("Quantization | None", quantize),
        offload=offload,
    )


def parse_prompt_argument(prompt: str) -> str:
    """Return the prompt unless it is empty.

    Raises:
        UserError: The prompt is empty.
    """
    if not prompt.strip():
        raise UserError("the prompt is empty; say what to draw")
    return prompt


def png_path(path: Path) -> Path:
    """Return the path if it names a PNG that can be written.

    Raises:
        UserError: It ends in something else than .png, or cannot be written.
    """
    return _checked(path, ".png")


def safetensors_path(path: Path) -> Path:
    """Return the path if it names a safetensors file that can be written.

    Raises:
        UserError: It ends in something else than .safetensors, or cannot be written.
    """
    return _checked(path, ".safetensors")


def _checked(path: Path, suffix: str) -> Path:
    from unimm.files import check_writable

    if path.suffix.lower() != suffix:
        raise UserError(f"cannot write {path}: its name must end in {suffix}")
    check_writable(path)
    return path
