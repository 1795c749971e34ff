"""The decision rule: what is right, what is wrong, and what is said about it."""

import numpy as np
import pytest

from unimm.scenes import (
    Grammar,
    SceneObject,
    judge,
    parse_prompt,
    sample_prompt,
    sample_scene,
    shows_held_out,
    split_of,
)
from unimm.scenes.heldout import HELD_TRIPLES
from unimm.scenes.world import OPPOSITE

FULL = Grammar.full()
HELD_MIRRORS = {(other, OPPOSITE[relation], shape) for shape, relation, other in HELD_TRIPLES}


def seen(text: str) -> list[SceneObject]:
    """Read `SHAPE COLOUR x y` or `SHAPE COLOUR SIZE TEXTURE x y`, separated by commas."""
    objects = []
    for words in (part.split() for part in text.split(",") if part.strip()):
        shape, colour, *more, x, y = words
        size, texture = more or ("small", "solid")
        objects.append(SceneObject(shape, colour, size, texture, int(x), int(y)))
    return objects


@pytest.mark.parametrize(
    ("prompt", "objects"),
    [
        ("a circle", "circle red 9 9"),
        ("a red circle", "circle red 9 9"),
        ("a large circle", "circle red large dotted 20 20"),
        ("a dotted circle", "circle red large dotted 20 20"),
        ("a circle and a square", "square red 9 9, circle blue 40 9"),
        ("three stars", "star red 9 9, star blue 30 9, star red 50 9"),
        ("two red stars", "star red 9 9, star red 30 9"),
        ("a circle left of a square", "square red 40 9, circle blue 9 9"),
        ("a circle right of a square", "square red 9 9, circle blue 40 20"),
        ("a circle above a square", "circle blue 9 9, square red 9 40"),
        ("a circle below a square", "circle blue 9 40, square red 9 9"),
        ("a blue circle and a red square", "square red 9 9, circle blue 40 9"),
    ],
)
def test_what_is_asked_is_right(prompt: str, objects: str) -> None:
    verdict = judge(parse_prompt(f"a picture of {prompt}", FULL), seen(objects))
    assert verdict.correct
    assert verdict.reason == "as asked"


@pytest.mark.parametrize(
    ("prompt", "objects", "reason"),
    [
        ("three stars", "star red 9 9, star red 30 9", "expected three stars, found 2"),
        ("two stars", "star red 9 9, star red 30 9, star red 50 9", "expected two stars, found 3"),
        ("a circle", "", "expected a circle, found nothing"),
        ("a circle", "square red 9 9", "expected a circle, found a small red solid square"),
        (
            "a circle",
            "circle red 9 9, ring orange 40 9",
            "expected a circle, found a small red solid circle and a small orange solid ring",
        ),
        ("a large circle", "circle red 9 9", "expected a large circle, found a small red"),
        ("a striped circle", "circle red 9 9", "expected a striped circle, found a small red"),
        ("a blue circle", "circle red 9 9", "expected a blue circle, found a small red"),
        ("two red stars", "star red 9 9, star blue 30 9", "expected two red stars, found a small"),
        (
            "a circle and a square",
            "circle red 9 9",
            "expected a circle and a square, found a small",
        ),
        ("a circle and a square", "circle red 9 9, circle red 40 9", "expected a circle and a"),
        (
            "a blue circle and a red square",
            "circle red 9 9, square blue 40 9",
            "expected a blue circle and a red square, found a small red solid circle and",
        ),
        (
            "a circle left of a square",
            "circle red 40 9, square red 9 9",
            "expected the circle left of the square, found it right of",
        ),
        (
            "a circle above a square",
            "circle red 9 9, square red 40 40",
            "expected the circle above the square, found it in no clear relation",
        ),
        (
            "a circle left of a square",
            "circle red 9 9, square red 40 9, star red 20 50",
            "expected a circle left of a square, found a small red solid circle and",
        ),
    ],
)
def test_what_is_not_asked_is_wrong_and_said(prompt: str, objects: str, reason: str) -> None:
    verdict = judge(parse_prompt(f"a picture of {prompt}", FULL), seen(objects))
    assert not verdict.correct
    assert verdict.reason.startswith(reason)


@pytest.mark.parametrize(("across", "is_right"), [(6, False), (7, True), (8, True)])
def test_a_relation_needs_seven_pixels_more_along_than_across(across: int, is_right: bool) -> None:
    prompt = parse_prompt("a picture of a circle left of a square", FULL)
    objects = seen(f"circle red 9 20, square red {9 + 20 + across} 40")
    assert judge(prompt, objects).correct is is_right


def test_the_order_of_what_was_seen_does_not_matter() -> None:
    prompt = parse_prompt("a picture of a red circle above a blue ring", FULL)
    objects = seen("circle red 9 9, ring blue 9 40")
    assert judge(prompt, objects) == judge(prompt, objects[::-1])


@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        ("square red 20 32, circle blue 44 32", False),
        ("circle red 20 32, square blue 44 32", True),
        ("diamond blue 20 32, diamond blue 44 32", True),
        (
            "square red 9 9, square red 30 9, square red 50 9, square red 9 40, square red 40 40",
            True,
        ),
        ("", False),
    ],
)
def test_what_training_must_not_show_is_seen(objects: str, expected: bool) -> None:
    prompt = parse_prompt("a picture of a circle and a square", FULL)
    assert shows_held_out(prompt, seen(objects)) == expected


def test_a_training_prompt_may_ask_for_the_mirror_of_a_held_arrangement() -> None:
    first, relation, second = min(HELD_TRIPLES - HELD_MIRRORS)
    places = {"left of": "10 32", "right of": "54 32", "above": "32 10", "below": "32 54"}
    objects = f"{first} white {places[relation]}, {second} white {places[OPPOSITE[relation]]}"
    open_prompt = parse_prompt(f"a picture of a {first} and a {second}", FULL)
    mirror = parse_prompt(f"a picture of a {second} {OPPOSITE[relation]} a {first}", FULL)
    assert split_of(mirror) == "train"
    assert shows_held_out(open_prompt, seen(objects))
    assert not shows_held_out(mirror, seen(objects))


@pytest.mark.parametrize("grammar", [FULL, Grammar.small()])
def test_no_training_picture_shows_what_is_held_out(grammar: Grammar) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        prompt = sample_prompt(rng, grammar)
        assert not shows_held_out(prompt, sample_scene(rng, grammar, prompt).objects)
