"""The same content in other words."""

import numpy as np
import pytest

from unimm.scenes import (
    SKILLS,
    Grammar,
    ObjectSpec,
    Spec,
    judge,
    parse_prompt,
    prompt_of,
    prompts,
    sample_prompt,
    sample_scene,
    split_of,
    wordings,
)
from unimm.scenes.heldout import HELD_TRIPLES
from unimm.scenes.world import OPPOSITE

GRAMMARS = pytest.mark.parametrize("grammar", [Grammar.small(), Grammar.full()], ids=repr)


@GRAMMARS
def test_all_wordings_are_true_of_the_same_pictures(grammar: Grammar) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        prompt, another = sample_prompt(rng, grammar), sample_prompt(rng, grammar)
        for scene in (sample_scene(rng, grammar, prompt), sample_scene(rng, grammar, another)):
            said = [parse_prompt(text, grammar) for text in wordings(prompt)]
            assert len({judge(one, scene.objects).correct for one in said}) == 1


@GRAMMARS
def test_training_prompts_are_worded_as_training_prompts(grammar: Grammar) -> None:
    for skill in SKILLS:
        for prompt in prompts(grammar, skill):
            first, *others = [parse_prompt(text, grammar) for text in wordings(prompt)]
            assert first == prompt
            assert all(split_of(other) == "train" for other in others)
            assert len(others) <= (skill in ("two_object", "position", "color_attr"))
            assert all(prompt.text in wordings(other) for other in others)


def test_the_opposite_relation_is_said_of_the_other_object() -> None:
    prompt = prompt_of(Spec((ObjectSpec("cross"), ObjectSpec("square")), "above"))
    assert wordings(prompt) == (
        "a picture of a cross above a square",
        "a picture of a square below a cross",
    )
    two = prompt_of(Spec((ObjectSpec("ring", "red"), ObjectSpec("star", "blue"))))
    assert wordings(two)[1] == "a picture of a blue star and a red ring"


def test_a_held_out_wording_is_never_said() -> None:
    shape, relation, other = min(HELD_TRIPLES)
    said = prompt_of(Spec((ObjectSpec(other), ObjectSpec(shape)), OPPOSITE[relation]))
    assert split_of(said) == "train"
    assert wordings(said) == (said.text,)
