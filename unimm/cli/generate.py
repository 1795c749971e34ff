"""``unimm generate``: a prompt to a picture."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from unimm.cli.options import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    OffloadOption,
    QuantizeOption,
    load_pipeline,
    parse_prompt_argument,
    png_path,
    safetensors_path,
)
from unimm.cli.output import print_json, progress_bar, stdout, stdout_kept_clean, warn, working

if TYPE_CHECKING:
    from unimm.generation import Generation
    from unimm.options import SamplerName, VerifierName
    from unimm.pipeline import Pipeline


def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to draw.")],
    *,
    best_of: Annotated[
        int,
        typer.Option("--best-of", "-n", metavar="N", help="Draw N candidates, keep the best."),
    ] = 1,
    steps: Annotated[
        int | None, typer.Option(metavar="S", help="Sampler steps.", show_default="the model's")
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            metavar="G", help="How closely to follow the prompt.", show_default="the model's"
        ),
    ] = None,
    exit_scale: Annotated[
        float | None,
        typer.Option(
            metavar="E",
            help="How far to move away from the early exit, for models that have one; 1 is off.",
            show_default="the model's",
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="`euler`, `heun` or `midpoint`; `official` repeats Scale-RAE's released sampler, "
            "errors included.",
            show_default="the model's",
        ),
    ] = None,
    verifier: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="How candidates are scored: `yes_no`, `prompt_likelihood`, or `ensemble` of both.",
            show_default="the model's",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="I", help="Same seed, same picture.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE.png", help="The picture.", show_default="from the prompt"
        ),
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="All candidates with their scores.")
    ] = None,
    save_latents: Annotated[
        Path | None,
        typer.Option(metavar="FILE.safetensors", help="The latents of the picture kept."),
    ] = None,
    model: ModelOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    quantize: QuantizeOption = None,
    offload: OffloadOption = False,
    as_json: JsonOption = False,
) -> None:
    """Draw a picture.

    The model reads its own candidates back, and only the one it likes best is decoded.

    **Examples**

    - `unimm generate "a picture of a red circle" --out circle.png`
    - `unimm generate "a picture of two stars" --best-of 8 --sheet sheet.png --json`
    """
    parse_prompt_argument(prompt)
    out = png_path(out or default_path(prompt, seed))
    sheet = png_path(sheet) if sheet else None
    save_latents = safetensors_path(save_latents) if save_latents else None
    with stdout_kept_clean():
        from unimm.options import GenerationOptions

        options = GenerationOptions(
            best_of=best_of,
            num_steps=steps,
            guidance_scale=guidance_scale,
            exit_scale=exit_scale,
            # Any other text is refused, with the names that are known.
            sampler=cast("SamplerName | None", sampler),
            verifier=cast("VerifierName | None", verifier),
            seed=seed,
        )
        with working("loading the model", quiet=as_json):
            pipeline = load_pipeline(
                model, device=device, dtype=dtype, quantize=quantize, offload=offload
            )
        warn_if_unknown(pipeline, prompt)
        with progress_bar(f"drawing {options.best_of}", quiet=as_json) as progress:
            (generation,) = pipeline.generate(prompt, options, progress=progress)
        decodes = write_results(
            pipeline, generation, out=out, sheet=sheet, save_latents=save_latents
        )
    document = generation_document(
        generation, image=out, latents=save_latents, pixel_decodes=decodes
    )
    if as_json:
        print_json(document)
    else:
        _print_summary(document, sheet)


def default_path(prompt: str, seed: int) -> Path:
    """Return a file name in the current folder made of the prompt's words and the seed."""
    words = "".join(letter if letter.isalnum() else " " for letter in prompt.lower()).split()
    return Path(f"{'-'.join(words)[:60].strip('-') or 'picture'}-{seed}.png")


def warn_if_unknown(pipeline: "Pipeline", prompt: str) -> None:
    """Warn when the model was trained on a closed language and has not learned the prompt."""
    grammar = pipeline.model.config.grammar
    if grammar is None:
        return
    from unimm.scenes import Grammar, parse_prompt, split_of

    try:
        split = split_of(parse_prompt(prompt, Grammar.from_dict(grammar)))
    except ValueError as error:
        warn(f"this model has not learned such a prompt, expect little of it: {error}")
    else:
        if split != "train":
            warn(
                f"this combination was held out of the training (split {split!r}), to see what the "
                f"model makes of it: expect little"
            )


def write_results(
    pipeline: "Pipeline",
    generation: "Generation",
    *,
    out: Path,
    sheet: Path | None,
    save_latents: Path | None,
) -> int:
    """Write the picture, the sheet and the latents; return how many pictures were decoded."""
    import torch

    from unimm.image import contact_sheet, save_png
    from unimm.latents_file import save_latents as write_latents

    notes = {"prompt": generation.prompt, "seed": str(generation.seed)}
    decodes = generation.pixel_decodes
    save_png(generation.image, out, text={**notes, "candidate": str(generation.chosen)})
    if save_latents:
        write_latents(save_latents, generation.latents[None], space=pipeline.space, notes=notes)
    if sheet:
        candidates = generation.candidates
        images = pipeline.decode_images(torch.stack([one.latents for one in candidates]))
        decodes += len(images)
        captions = [f"{one.index}: {_score_text(one.score)}" for one in candidates]
        chosen = [one.index for one in candidates].index(generation.chosen)
        save_png(contact_sheet(images, captions, chosen=chosen), sheet, text=notes)
    return decodes


def generation_document(
    generation: "Generation",
    *,
    image: Path,
    latents: Path | None,
    pixel_decodes: int,
) -> dict[str, Any]:
    """Return the JSON document of a generation."""
    return {
        "prompt": generation.prompt,
        "seed": generation.seed,
        "chosen": generation.chosen,
        "candidates": [
            {
                "index": one.index,
                "seed": one.seed,
                "score": one.score,
                "nfe": one.nfe,
                "pruned_at": one.pruned_at,
            }
            for one in generation.candidates
        ],
        "image": str(image),
        "latents": None if latents is None else str(latents),
        "nfe": generation.nfe,
        "pixel_decodes": pixel_decodes,
        "seconds": dict(generation.seconds),
    }


def _print_summary(document: dict[str, Any], sheet: Path | None) -> None:
    candidates = document["candidates"]
    (chosen,) = [one for one in candidates if one["index"] == document["chosen"]]
    seconds = sum(document["seconds"].values())
    stdout.print(document["image"], markup=False)
    score = _score_text(chosen["score"])
    stdout.print(
        f"  candidate {chosen['index']} of {len(candidates)}, score {score}, "
        f"{document['nfe']} denoiser evaluations, {seconds:.1f} s",
        style="dim",
        markup=False,
    )
    for path in (sheet, document["latents"]):
        if path:
            stdout.print(str(path), markup=False)


def _score_text(score: float | None) -> str:
    return "-" if score is None else f"{score:+.2f}"
