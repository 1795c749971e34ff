"""Near misses: one thing changed, false of the scene."""

import numpy as np
import pytest

from unimm.scenes import (
    SPLITS,
    Grammar,
    Prompt,
    Scene,
    SceneObject,
    judge,
    near_misses,
    parse_prompt,
    sample_prompt,
    sample_scene,
    split_of,
)

FULL, SMALL = Grammar.full(), Grammar.small()


def texts(prompt: str, objects: list[SceneObject], grammar: Grammar = FULL) -> set[str]:
    """Return all near misses that many draws find, without `a picture of`."""
    rng = np.random.default_rng(0)
    asked = parse_prompt(f"a picture of {prompt}", grammar)
    scene = Scene(tuple(objects), "gray", "plain")
    assert judge(asked, objects).correct
    drawn = [near_misses(asked, scene, rng, grammar) for _ in range(200)]
    return {one.text.removeprefix("a picture of ") for some in drawn for one in some}


def an(shape: str, colour: str, x: int = 20, y: int = 20) -> SceneObject:
    return SceneObject(shape, colour, "small", "solid", x, y)


@pytest.mark.parametrize("grammar", [FULL, SMALL], ids=["full", "small"])
def test_near_misses_are_false_in_the_grammar_and_trained_on(grammar: Grammar) -> None:
    rng = np.random.default_rng(0)
    splits = SPLITS if grammar is FULL else ("train", "pair", "count", "relation")
    for k in range(400):
        prompt = sample_prompt(rng, grammar, splits[k % len(splits)])
        scene = sample_scene(rng, grammar, prompt)
        found = near_misses(prompt, scene, rng, grammar)
        assert found, prompt.text
        for other in found:
            assert not judge(other, scene.objects).correct
            assert parse_prompt(other.text, grammar) == other
            if split_of(prompt) == "train":
                assert split_of(other) == "train"


def test_colours_are_swapped() -> None:
    found = texts("a red square and a blue ring", [an("square", "red"), an("ring", "blue", 50)])
    assert "a blue square and a red ring" in found


def test_relations_are_turned_around() -> None:
    found = texts("a square left of a ring", [an("square", "red"), an("ring", "blue", 50)])
    assert "a square right of a ring" in found


def test_an_open_relation_is_claimed_wrongly() -> None:
    found = texts("a square and a ring", [an("square", "red"), an("ring", "blue", 50)])
    assert "a square left of a ring" not in found
    assert {"a square right of a ring", "a square above a ring"} <= found


def test_counts_are_off_by_one() -> None:
    objects = [an("square", "red", x, y) for x, y in ((10, 10), (30, 10), (50, 10))]
    counts = {text for text in texts("three red squares", objects) if text.endswith("red squares")}
    assert counts == {"two red squares", "four red squares"}
    assert {t for t in texts("three red squares", objects, SMALL) if t.endswith("red squares")} == {
        "two red squares"
    }
    single = {t for t in texts("two red squares", objects[:2]) if "red square" in t}
    assert single == {"a red square", "three red squares"}


def test_other_colours_are_not_there() -> None:
    found = texts("a square", [an("square", "red")])
    assert "a blue square" in found
    assert "a red square" not in found


def test_other_shapes_sizes_and_textures() -> None:
    found = texts("a small square", [an("square", "red")])
    assert {"a small circle", "a large square", "a striped square", "two squares"} <= found
    assert "a small square" not in found


def test_no_held_out_words_are_learned_as_wrong() -> None:
    """`red circle` is held out: no training picture may answer no to it."""
    found = texts("a circle", [an("circle", "blue")])
    assert "a red circle" not in found
    assert "a black circle" not in found
    held: Prompt = parse_prompt("a picture of a red circle", FULL)
    assert split_of(held) == "pair"
