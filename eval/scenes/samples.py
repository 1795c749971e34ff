"""Unseen pictures of the miniature world, the same for every model."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from unimm.errors import UserError
from unimm.pipeline import Pipeline
from unimm.scenes import (
    Grammar,
    Prompt,
    Scene,
    load_prompts,
    parse_prompt,
    render,
    sample_prompt,
    sample_scene,
)

# Training draws from other streams of its seed, so these pictures are new to a model.
_STREAM = 1_000_003

_LISTED = {"small": Grammar.small(), "full": Grammar.full()}
"""Grammars with frozen prompts; the last one holds every other."""


@dataclass(frozen=True, slots=True)
class TrueSample:
    """A rendered picture and what it shows."""

    prompt: Prompt
    scene: Scene
    picture: Image.Image


def grammar_of(pipeline: Pipeline) -> Grammar:
    """Return the world that a model was trained on.

    Raises:
        UserError: It was trained on no miniature world.
    """
    stored = pipeline.model.config.grammar
    if stored is None:
        raise UserError("this model was not trained on the miniature world; choose one that was")
    return Grammar.from_dict(stored)


def frozen_prompts(grammar: Grammar, split: str) -> list[Prompt]:
    """Return the frozen prompts of the smallest listed grammar that holds this one.

    Prompts with a word that this grammar lacks are left out.

    Raises:
        UserError: There is no such list, or nothing of it is left.
    """
    name = next(name for name, listed in _LISTED.items() if _holds(listed, grammar))
    try:
        listed_prompts = load_prompts(name, split)
    except ValueError as error:
        raise UserError(str(error)) from None
    inside = [prompt for prompt in listed_prompts if _is_inside(prompt, grammar)]
    if not inside:
        raise UserError(f"the model's grammar has no prompt of split {split!r}; choose another")
    return inside


def _holds(listed: Grammar, grammar: Grammar) -> bool:
    words = ("shapes", "colours", "sizes", "textures", "backgrounds", "styles")
    return grammar.max_objects <= listed.max_objects and all(
        set(getattr(grammar, name)) <= set(getattr(listed, name)) for name in words
    )


def _is_inside(prompt: Prompt, grammar: Grammar) -> bool:
    try:
        parse_prompt(prompt.text, grammar)
    except ValueError:
        return False
    return True


def true_samples(grammar: Grammar, count: int, *, seed: int, split: str) -> list[TrueSample]:
    """Return pictures of a split with the prompts that they were made for."""
    rng = np.random.default_rng([seed, _STREAM])
    samples = []
    for _ in range(count):
        prompt = sample_prompt(rng, grammar, split=split)
        scene = sample_scene(rng, grammar, prompt)
        samples.append(TrueSample(prompt, scene, Image.fromarray(render(scene))))
    return samples
