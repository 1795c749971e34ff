"""``unimm verify``: how well pictures match a prompt."""

from pathlib import Path
from typing import Annotated

import typer

from unimm.cli.inputs import as_model_input, read_input
from unimm.cli.options import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    OffloadOption,
    QuantizeOption,
    load_pipeline,
    parse_prompt_argument,
)
from unimm.cli.output import print_json, stdout, stdout_kept_clean, working


def verify(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What they should show.")],
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Pictures or latents files.")
    ],
    *,
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    quantize: QuantizeOption = None,
    offload: OffloadOption = False,
    as_json: JsonOption = False,
) -> None:
    """Score how well pictures match a prompt.

    A score is the natural-log odds that the model gives to *yes*: 0 is undecided, +3 is 95% sure.

    **Example:** `unimm verify "a picture of a red circle" a.png b.png`
    """
    parse_prompt_argument(prompt)
    with stdout_kept_clean():
        sources = [read_input(file) for file in files]
        with working("loading the model", quiet=as_json):
            pipeline = load_pipeline(
                model, device=device, dtype=dtype, quantize=quantize, offload=offload
            )
        inputs = [as_model_input(source, space=pipeline.space) for source in sources]
        scores = pipeline.verify(prompt, inputs)
    rows = [{"file": str(file), "score": score} for file, score in zip(files, scores, strict=True)]
    if as_json:
        print_json({"prompt": prompt, "scores": rows})
        return
    for file, score in zip(files, scores, strict=True):
        stdout.print(f"{score:+8.3f}  {file}", markup=False)
