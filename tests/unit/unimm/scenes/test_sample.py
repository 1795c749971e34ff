"""Sampled scenes show what their prompt says, and never what is held out."""

from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from unimm.scenes import (
    PICTURE_SIZE,
    SKILLS,
    SPLITS,
    Grammar,
    Prompt,
    Scene,
    SceneObject,
    judge,
    parse_prompt,
    sample_prompt,
    sample_scene,
    split_of,
)
from unimm.scenes.heldout import HELD_ARRANGEMENTS, HELD_PAIRS
from unimm.scenes.masks import shape_mask
from unimm.scenes.world import EDGE_MARGIN, OBJECT_GAP, SIZES, relation_between

FULL, SMALL = Grammar.full(), Grammar.small()
GRAMMARS = pytest.mark.parametrize("grammar", [FULL, SMALL], ids=["full", "small"])


def sample(
    grammar: Grammar, count: int, split: str = "train", seed: int = 0
) -> list[tuple[Prompt, Scene]]:
    rng = np.random.default_rng(seed)
    drawn = [sample_prompt(rng, grammar, split) for _ in range(count)]
    return [(prompt, sample_scene(rng, grammar, prompt)) for prompt in drawn]


def ink(one: SceneObject) -> NDArray[np.int64]:
    """Return the pixels at the object's rim that it covers by half or more, (P, 2)."""
    covered = np.pad(shape_mask(one.shape, one.size) > 0.4999, 1)
    inner = covered[:-2, 1:-1] & covered[2:, 1:-1] & covered[1:-1, :-2] & covered[1:-1, 2:]
    rows, columns = np.nonzero(covered[1:-1, 1:-1] & ~inner)
    r = SIZES[one.size]
    return np.stack([columns + one.x - r, rows + one.y - r], axis=1)


@pytest.mark.parametrize(
    ("grammar", "split"),
    [(FULL, split) for split in SPLITS]
    + [(SMALL, split) for split in SPLITS if split != "count_five"],
)
def test_every_scene_is_right_for_its_prompt(grammar: Grammar, split: str) -> None:
    for prompt, scene in sample(grammar, 400, split):
        assert split_of(prompt) == split
        verdict = judge(prompt, scene.objects)
        assert verdict.correct, (prompt.text, verdict.reason)
        assert scene.background in grammar.backgrounds
        assert scene.style in grammar.styles
        for one in scene.objects:
            assert one.shape in grammar.shapes
            assert one.colour in grammar.colours
            assert one.size in grammar.sizes
            assert one.texture in grammar.textures
            assert one.texture == "solid" or one.colour not in ("black", "white", "brown")


def test_objects_keep_apart_and_off_the_edge() -> None:
    gaps = []
    for _, scene in sample(FULL, 150) + sample(FULL, 60, "count_five"):
        pixels = [ink(one) for one in scene.objects]
        for some in pixels:
            assert some.min() >= EDGE_MARGIN
            assert some.max() < PICTURE_SIZE - EDGE_MARGIN
        for first, second in combinations(pixels, 2):
            apart = np.abs(first[:, None] - second[None]) - 1
            gaps.append(np.hypot(*np.maximum(apart, 0).transpose(2, 0, 1)).min())
    assert min(gaps) >= OBJECT_GAP


@GRAMMARS
def test_training_never_shows_what_is_held_out(grammar: Grammar) -> None:
    for prompt, scene in sample(grammar, 1500):
        assert not {(one.colour, one.shape) for one in scene.objects} & HELD_PAIRS
        if prompt.skill in ("two_object", "color_attr"):
            first, second = scene.objects
            relation = relation_between((first.x, first.y), (second.x, second.y))
            assert (first.shape, relation, second.shape) not in HELD_ARRANGEMENTS


@pytest.mark.parametrize("split", SPLITS[2:])
def test_held_out_prompts_leave_no_other_rule_broken(split: str) -> None:
    """A split tests one thing: colours that its prompts leave open are never held-out pairs."""
    for prompt, scene in sample(FULL, 300, split):
        for asked, one in zip(prompt.spec.objects, scene.objects, strict=True):
            assert asked.colour is not None or (one.colour, one.shape) not in HELD_PAIRS


def test_skills_are_drawn_alike_and_half_of_the_positions_without_colours() -> None:
    rng = np.random.default_rng(0)
    drawn = [sample_prompt(rng, FULL) for _ in range(6000)]
    counts = Counter(prompt.skill for prompt in drawn)
    # 4 standard errors of 6000 draws with probability 1/6, and of 1000 with 1/2.
    assert all(abs(counts[skill] - 1000) < 4 * 29 for skill in SKILLS)
    positions = [p for p in drawn if p.skill == "position"]
    plain = sum(p.spec.objects[0].colour is None for p in positions)
    assert abs(plain / len(positions) - 0.5) < 4 * 0.016


def test_what_a_prompt_leaves_open_takes_every_value() -> None:
    rng = np.random.default_rng(0)
    prompt = parse_prompt("a picture of a triangle", FULL)
    scenes = [sample_scene(rng, FULL, prompt) for _ in range(600)]
    objects = [scene.objects[0] for scene in scenes]
    assert {one.colour for one in objects} == set(FULL.colours) - {"pink"}
    assert {one.size for one in objects} == set(FULL.sizes)
    assert {one.texture for one in objects} == set(FULL.textures)
    assert {(s.background, s.style) for s in scenes} == {
        (background, style) for background in FULL.backgrounds for style in FULL.styles
    }
    assert min(one.x for one in objects) < 16
    assert max(one.y for one in objects) > 48


def test_a_seed_gives_the_same_scenes() -> None:
    assert sample(FULL, 50, seed=3) == sample(FULL, 50, seed=3)
    assert sample(FULL, 50, seed=3) != sample(FULL, 50, seed=4)


def test_a_split_without_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match="no prompt of split 'count_five'; choose another"):
        sample_prompt(np.random.default_rng(0), SMALL, "count_five")
    with pytest.raises(ValueError, match="no prompt of split 'pair' and skill 'two_object'"):
        sample_prompt(np.random.default_rng(0), FULL, "pair", "two_object")


def test_a_grammar_without_a_fitting_colour_is_refused() -> None:
    """No striped circle can be drawn where all colours are solid ones."""
    grammar = replace(FULL, colours=("black", "white"))
    prompt = parse_prompt("a picture of a striped circle", grammar)
    with pytest.raises(ValueError, match="add colours to the grammar"):
        sample_scene(np.random.default_rng(0), grammar, prompt)
