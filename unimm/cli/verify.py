"""``unimm verify``: how well pictures match a prompt."""

from typing import Annotated, cast, get_args

import typer

from unimm.cli.inputs import as_model_input, read_input
from unimm.cli.options import (
    AllowUrlsOption,
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
        list[str],
        typer.Argument(metavar="FILE...", help="Pictures (files or URLs) or latents files."),
    ],
    *,
    verifier: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="`yes_no`; `prompt_likelihood`, the mean log-probability of the prompt's tokens "
            "as a description; `ensemble`, the log-odds plus the whole prompt's log-probability.",
        ),
    ] = "yes_no",
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    quantize: QuantizeOption = None,
    offload: OffloadOption = False,
    allow_urls: AllowUrlsOption = False,
    as_json: JsonOption = False,
) -> None:
    """Score how well pictures match a prompt.

    By default a score is the natural-log odds that the model gives to *yes*: 0 is undecided, +3 is
    95% sure.

    **Example:** `unimm verify "a picture of a red circle" a.png b.png`
    """
    parse_prompt_argument(prompt)
    with stdout_kept_clean():
        from unimm.options import VerifierName, check_choice

        check_choice("verifier", verifier, get_args(VerifierName))
        sources = [read_input(file, allow_urls=allow_urls) for file in files]
        with working("loading the model", quiet=as_json):
            pipeline = load_pipeline(
                model, device=device, dtype=dtype, quantize=quantize, offload=offload
            )
        inputs = [as_model_input(source, space=pipeline.space) for source in sources]
        scores = pipeline.verify(prompt, inputs, verifier=cast("VerifierName", verifier))
    rows = [{"file": file, "score": score} for file, score in zip(files, scores, strict=True)]
    if as_json:
        print_json({"prompt": prompt, "scores": rows})
        return
    for file, score in zip(files, scores, strict=True):
        stdout.print(f"{score:+8.3f}  {file}", markup=False)
