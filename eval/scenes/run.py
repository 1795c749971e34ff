"""All measurements of one model of the miniature world."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from unimm.errors import UserError
from unimm.options import GenerationOptions
from unimm.pipeline import Pipeline
from unimm.scenes import Prompt

from .chatting import hold_chats, summarise_chats
from .drawing import draw_outcomes, summarise
from .reading import measure_reading
from .reconstruction import measure_reconstruction
from .samples import frozen_prompts, grammar_of, true_samples

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_GROUP_SIZE = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What is measured and how; see ``unimm eval scenes --help``."""

    model: str | None
    parts: tuple[str, ...]
    splits: tuple[str, ...]
    best_of: int
    num_prompts: int
    num_pictures: int
    num_steps: int | None
    guidance_scale: float | None
    seed: int
    device: str
    dtype: str


def measure(settings: Settings) -> dict[str, Any]:
    """Return the results as a JSON-ready tree."""
    if settings.dtype not in _DTYPES:
        raise UserError(f"dtype must be one of {', '.join(_DTYPES)}, got {settings.dtype!r}")
    pipeline = Pipeline.from_pretrained(
        settings.model, device=settings.device, dtype=_DTYPES[settings.dtype]
    )
    grammar = grammar_of(pipeline)
    results: dict[str, Any] = {}
    samples = true_samples(grammar, settings.num_pictures, seed=settings.seed, split="train")
    if "reconstruction" in settings.parts:
        results["reconstruction"] = asdict(measure_reconstruction(pipeline, samples))
    if "reading" in settings.parts:
        results["reading"] = asdict(
            measure_reading(pipeline, samples, grammar, seed=settings.seed, per_picture=4)
        )
    if "drawing" in settings.parts:
        results["drawing"] = {
            split: _measure_split(pipeline, frozen_prompts(grammar, split), settings, split)
            for split in settings.splits
        }
    if "chat" in settings.parts:
        results["chat"] = _measure_chats(pipeline, frozen_prompts(grammar, "train"), settings)
    return results


def _measure_chats(
    pipeline: Pipeline, prompts: Sequence[Prompt], settings: Settings
) -> dict[str, Any]:
    spread = _spread(prompts, settings.num_prompts)
    options = GenerationOptions(
        num_steps=settings.num_steps, guidance_scale=settings.guidance_scale, seed=settings.seed
    )
    chats = track(
        hold_chats(pipeline, spread, options),
        description="holding chats",
        total=len(spread),
        console=Console(file=sys.stderr),
    )
    return asdict(summarise_chats(list(chats)))


def _spread(prompts: Sequence[Prompt], most: int) -> list[Prompt]:
    """Return at most so many prompts, spread evenly over the list."""
    count = min(most, len(prompts))
    return [prompts[i * len(prompts) // count] for i in range(count)]


def _measure_split(
    pipeline: Pipeline, prompts: Sequence[Prompt], settings: Settings, split: str
) -> dict[str, Any]:
    spread = _spread(prompts, settings.num_prompts)
    options = GenerationOptions(
        best_of=settings.best_of,
        num_steps=settings.num_steps,
        guidance_scale=settings.guidance_scale,
        seed=settings.seed,
        verifier="yes_no",
        batch_size=settings.best_of * _GROUP_SIZE,
    )
    outcomes = track(
        draw_outcomes(pipeline, spread, options, group_size=_GROUP_SIZE),
        description=f"drawing {split}",
        total=len(spread),
        console=Console(file=sys.stderr),
    )
    return asdict(summarise(list(outcomes)))
