"""All measurements of one model of the miniature world."""

from dataclasses import asdict
from functools import partial
from typing import Any

from unimm.options import GenerationOptions
from unimm.scenes import Prompt

from .chatting import RequestOutcome, hold_chat, summarise_chats
from .drawing import PromptOutcome, draw_group, summarise
from .processes import Workers, load_pipeline, workers
from .reading import measure_reading
from .reconstruction import measure_reconstruction
from .samples import frozen_prompts, grammar_of, true_samples
from .settings import Settings

_GROUP_SIZE = 16


def measure(settings: Settings) -> dict[str, Any]:
    """Return the results as a JSON-ready tree."""
    pipeline = load_pipeline(settings)
    grammar = grammar_of(pipeline)
    results: dict[str, Any] = {}
    samples = true_samples(grammar, settings.num_pictures, seed=settings.seed, split="train")
    if "reconstruction" in settings.parts:
        results["reconstruction"] = asdict(measure_reconstruction(pipeline, samples))
    if "reading" in settings.parts:
        results["reading"] = asdict(
            measure_reading(pipeline, samples, grammar, seed=settings.seed, per_picture=4)
        )
    with workers(settings.processes) as team:
        if "drawing" in settings.parts:
            results["drawing"] = {
                split: _measure_split(settings, split, team) for split in settings.splits
            }
        if "chat" in settings.parts:
            results["chat"] = _measure_chats(settings, team)
    return results


def _measure_split(settings: Settings, split: str, team: Workers) -> dict[str, Any]:
    firsts = range(0, len(_prompts(settings, split)), _GROUP_SIZE)
    groups = team.each(
        partial(_draw_group, settings, split), firsts, description=f"drawing {split}"
    )
    return asdict(summarise([outcome for group in groups for outcome in group]))


def _draw_group(settings: Settings, split: str, first: int) -> list[PromptOutcome]:
    group = _prompts(settings, split)[first : first + _GROUP_SIZE]
    options = GenerationOptions(
        best_of=settings.best_of,
        num_steps=settings.num_steps,
        guidance_scale=settings.guidance_scale,
        seed=settings.seed,
        verifier="yes_no",
        batch_size=settings.best_of * _GROUP_SIZE,
    )
    return draw_group(load_pipeline(settings), group, options, first_index=first)


def _measure_chats(settings: Settings, team: Workers) -> dict[str, Any]:
    numbers = range(len(_prompts(settings, "train")))
    chats = team.each(partial(_hold_chat, settings), numbers, description="holding chats")
    return asdict(summarise_chats(chats))


def _hold_chat(settings: Settings, number: int) -> list[RequestOutcome]:
    options = GenerationOptions(
        num_steps=settings.num_steps, guidance_scale=settings.guidance_scale, seed=settings.seed
    )
    prompts = _prompts(settings, "train")
    return hold_chat(load_pipeline(settings), prompts, options, number=number)


def _prompts(settings: Settings, split: str) -> list[Prompt]:
    """Return at most so many prompts as are asked for, spread evenly over the list."""
    prompts = frozen_prompts(grammar_of(load_pipeline(settings)), split)
    count = min(settings.num_prompts, len(prompts))
    return [prompts[i * len(prompts) // count] for i in range(count)]
