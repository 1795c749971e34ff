"""``unimm ask``: a question about a picture."""

from typing import Annotated

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
)
from unimm.cli.output import print_json, stdout, stdout_kept_clean, working
from unimm.errors import UserError


def ask(
    image: Annotated[
        str, typer.Argument(metavar="IMAGE", help="A picture (file or URL) or a latents file.")
    ],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask about it.")],
    *,
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    quantize: QuantizeOption = None,
    offload: OffloadOption = False,
    allow_urls: AllowUrlsOption = False,
    as_json: JsonOption = False,
) -> None:
    """Answer a question about a picture.

    **Example:** `unimm ask circle.png "what color is the circle?"`
    """
    if not question.strip():
        raise UserError("the question is empty; say what to ask")
    with stdout_kept_clean():
        source = read_input(image, allow_urls=allow_urls)
        with working("loading the model", quiet=as_json):
            pipeline = load_pipeline(
                model, device=device, dtype=dtype, quantize=quantize, offload=offload
            )
        answer = pipeline.ask(as_model_input(source, space=pipeline.space), question)
    if as_json:
        print_json({"image": image, "question": question, "answer": answer})
    else:
        stdout.print(answer, markup=False)
