"""``unimm eval BENCHMARK``."""

import dataclasses
import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", no_args_is_help=True)


class Part(StrEnum):
    """What of a model of the miniature world can be measured."""

    RECONSTRUCTION = "reconstruction"
    READING = "reading"
    DRAWING = "drawing"
    CHAT = "chat"


@app.callback()
def main() -> None:
    """Measure a model's quality."""


@app.command()
def scenes(
    *,
    model: Annotated[
        str | None, typer.Option(help="Directory; the small model if not given.")
    ] = None,
    part: Annotated[
        list[Part] | None, typer.Option(help="What to measure; everything if not given.")
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="Prompt lists: train, pair, count, relation.")
    ] = None,
    best_of: Annotated[int, typer.Option(min=1, help="Candidates of each prompt.")] = 16,
    num_prompts: Annotated[
        int, typer.Option(min=1, help="Prompts of each list, spread over it; 553 is all.")
    ] = 553,
    num_pictures: Annotated[int, typer.Option(min=1, help="True pictures to read.")] = 1000,
    steps: Annotated[int | None, typer.Option(min=1, help="Sampler steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(min=1.0)] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Annotated[str, typer.Option()] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    processes: Annotated[
        int, typer.Option(min=1, help="To draw and chat in, each with its own model: one a core.")
    ] = 1,
    out: Annotated[Path | None, typer.Option(help="Write the JSON document here, too.")] = None,
) -> None:
    """Measure a model of the miniature world: encode-decode, questions, drawing, choosing, chats.

    **Example:** `unimm eval scenes --part drawing --split train --best-of 16`
    """
    from .scenes.run import measure  # imports torch
    from .scenes.settings import Settings

    settings = Settings(
        model=model,
        parts=tuple(p.value for p in part or Part),
        splits=tuple(split or ("train", "pair", "count", "relation")),
        best_of=best_of,
        num_prompts=num_prompts,
        num_pictures=num_pictures,
        num_steps=steps,
        guidance_scale=guidance_scale,
        seed=seed,
        device=device,
        dtype=dtype,
        processes=processes,
    )
    results = measure(settings)
    document = json.dumps({"settings": dataclasses.asdict(settings), **results}, indent=2)
    if out:
        from unimm.files import atomic_write

        with atomic_write(out) as file:
            file.write(document.encode() + b"\n")
    sys.stdout.write(document + "\n")


@app.command()
def speed(
    *,
    model: Annotated[
        str | None, typer.Option(help="Directory; the small model if not given.")
    ] = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(min=1, help="Pictures drawn together; may be repeated.")
    ] = None,
    best_of: Annotated[int, typer.Option(min=1, help="Candidates of one shared call.")] = 8,
    steps: Annotated[int | None, typer.Option(min=1, help="Sampler steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(min=1.0)] = None,
    num_runs: Annotated[int, typer.Option(min=1, help="Timed runs of each figure.")] = 5,
    device: Annotated[str, typer.Option()] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
) -> None:
    """Time a picture by phase, throughput by batch size, and what best-of-N shares.

    Prints tables and, as the last line, the same figures as JSON.

    **Example:** `unimm eval speed --batch-size 1 --batch-size 8 --dtype bfloat16`
    """
    from .speed import SpeedSettings, run  # imports torch

    run(
        SpeedSettings(
            model=model,
            batch_sizes=tuple(batch_size or (1, 4, 16)),
            best_of=best_of,
            num_steps=steps,
            guidance_scale=guidance_scale,
            num_runs=num_runs,
            device=device,
            dtype=dtype,
        )
    )


@app.command()
def training_speed(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Dotted overrides of all variants."),
    ] = None,
    *,
    model: Annotated[
        str | None, typer.Option(help="Directory; the small model if not given.")
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="`padded`, `longest`, `packed`, `cached`, `checkpointed`, `compiled`; may be "
            "repeated. All are compared with the first.",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Times that the variants take turns.")] = 3,
    steps: Annotated[
        int, typer.Option(min=2, help="Steps of a run; the first half warms up.")
    ] = 16,
    samples: Annotated[int, typer.Option(min=1, help="Conversations of a step.")] = 32,
    max_length: Annotated[int, typer.Option(min=64, help="Positions of a row.")] = 512,
    device: Annotated[str, typer.Option()] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "bfloat16",
    peak_tflops: Annotated[float, typer.Option(min=0, help="Of the device, for the MFU.")] = 0.0,
) -> None:
    """Compare what a training step costs: padded or packed rows, cached latents, compilation.

    Trains on conversations of mixed lengths about the miniature world, each time by `unimm train`
    in a process of its own. Prints a table and, as the last line, the same figures as JSON.

    **Examples:** `unimm eval training-speed --variant padded --variant packed` ·
    `unimm eval training-speed --model my-model --device cuda --peak-tflops 790
    model.checkpoint_activations=true`
    """
    from .training_speed import VARIANTS, TrainingSpeedSettings, run

    run(
        TrainingSpeedSettings(
            model=model,
            variants=tuple(variant or VARIANTS),
            num_rounds=rounds,
            num_steps=steps,
            samples_per_step=samples,
            max_length=max_length,
            device=device,
            dtype=dtype,
            peak_tflops=peak_tflops,
            overrides=tuple(overrides or ()),
        )
    )
