"""Unseen pictures of the miniature world, the same for every model."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from unimm.errors import UserError
from unimm.pipeline import Pipeline
from unimm.scenes import Grammar, Prompt, Scene, render, sample_prompt, sample_scene

# Training draws from other streams of its seed, so these pictures are new to a model.
_STREAM = 1_000_003


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


def grammar_name(grammar: Grammar) -> str:
    """Return the name under which the grammar's frozen prompts are kept."""
    for name, known in (("small", Grammar.small()), ("full", Grammar.full())):
        if grammar == known:
            return name
    raise UserError("there are frozen prompts for the grammars small and full only")


def true_samples(grammar: Grammar, count: int, *, seed: int, split: str) -> list[TrueSample]:
    """Return pictures of a split with the prompts that they were made for."""
    rng = np.random.default_rng([seed, _STREAM])
    samples = []
    for _ in range(count):
        prompt = sample_prompt(rng, grammar, split=split)
        scene = sample_scene(rng, grammar, prompt)
        samples.append(TrueSample(prompt, scene, Image.fromarray(render(scene))))
    return samples
