"""Captions and the closed vocabulary."""

import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from unimm.scenes import (
    SKILLS,
    SPLITS,
    VOCABULARY,
    Grammar,
    Scene,
    SceneObject,
    dense_caption,
    prompts,
    questions,
    sample_prompt,
    sample_scene,
    words,
)
from unimm.scenes.heldout import HELD_TRIPLES
from unimm.scenes.text import describe_object, place_of

FULL = Grammar.full()


def scenes(count: int, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    splits = [SPLITS[k % len(SPLITS)] for k in range(count)]
    return [sample_scene(rng, FULL, sample_prompt(rng, FULL, split)) for split in splits]


def test_a_caption_names_every_object_fully_and_the_background() -> None:
    rng = np.random.default_rng(0)
    for scene in scenes(400):
        caption = dense_caption(scene, rng)
        named = re.findall(r"(small|large) (\w+) (?:(striped|dotted) )?(\w+)", caption)
        assert Counter((h, c, z, t or "solid") for z, c, t, h in named) == Counter(
            (one.shape, one.colour, one.size, one.texture) for one in scene.objects
        )
        assert f"a {scene.background} background" in caption


def test_a_caption_says_where_its_objects_are() -> None:
    rng = np.random.default_rng(0)
    related = 0
    for scene in scenes(400):
        caption = dense_caption(scene, rng)
        if len({describe_object(one) for one in scene.objects}) < len(scene.objects):
            continue  # the caption's objects cannot be told apart
        if relation := re.search(r"(\w+) (left of|right of|above|below) \w+ \w+ ", caption):
            related += 1
            first, second = sorted(scene.objects, key=lambda o: caption.find(describe_object(o)))
            dx, dy = first.x - second.x, first.y - second.y
            along = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[relation[2]]
            assert along - min(abs(dx), abs(dy)) >= 7
        else:
            said = re.findall(r" at the ((?:top|bottom) (?:left|right)|\w+)", caption)
            assert Counter(said) == Counter(place_of(one) for one in scene.objects)
    assert related > 50


def test_a_caption_never_words_a_held_out_triple() -> None:
    rng = np.random.default_rng(0)
    held = [s for s in scenes(1500) if len(s.objects) == 2]
    for scene in held:
        text = dense_caption(scene, rng)
        for shape, relation, other in HELD_TRIPLES:
            assert not re.search(rf"{shape} {relation} an? [a-z ]*\b{other}\b", text), text


def test_wordings_vary() -> None:
    rng = np.random.default_rng(0)
    scene = Scene(
        (
            SceneObject("circle", "blue", "small", "solid", 10, 30),
            SceneObject("square", "red", "large", "dotted", 45, 30),
        ),
        "sky",
        "plain",
    )
    captions = {dense_caption(scene, rng) for _ in range(100)}
    assert "a small blue circle left of a large red dotted square on a sky background" in captions
    assert (
        "a sky background with a large red dotted square at the right and a small blue circle "
        "at the left"
    ) in captions
    assert len(captions) == 8  # two orders, with relation or places, background first or last


def test_nothing_said_is_outside_the_vocabulary() -> None:
    rng = np.random.default_rng(0)
    known = set(VOCABULARY)
    said = [p.text for skill in SKILLS for split in SPLITS for p in prompts(FULL, skill, split)]
    said += [dense_caption(scene, rng) for scene in scenes(300)]
    for k in range(300):
        prompt = sample_prompt(rng, FULL, SPLITS[k % len(SPLITS)])
        asked = questions(sample_scene(rng, FULL, prompt), prompt, rng, FULL, 8)
        said += [text for one in asked for text in (one.question, one.answer)]
    used = {word for text in said for word in words(text)}
    assert used == known


def test_words_split_off_marks() -> None:
    assert words("a ring, a star?") == ["a", "ring", ",", "a", "star", "?"]
    assert all(a < b for a, b in pairwise(VOCABULARY))


@pytest.mark.parametrize(
    ("x", "y", "place"),
    [
        (8, 8, "top left"),
        (21, 32, "left"),
        (22, 32, "center"),
        (42, 43, "bottom"),
        (43, 8, "top right"),
    ],
)
def test_places_are_ninths_of_the_picture(x: int, y: int, place: str) -> None:
    assert place_of(SceneObject("circle", "red", "small", "solid", x, y)) == place
