"""Blends lie between two colours, and never near one that is held out with their shape."""

from dataclasses import replace
from math import dist

import numpy as np
import pytest

from unimm.scenes import (
    COLOURS,
    Grammar,
    ObjectSpec,
    Prompt,
    Scene,
    Spec,
    blend_colours,
    blend_prompt,
    colours_of,
    detect,
    judge,
    names_colours,
    prompt_of,
    render,
    sample_prompt,
    sample_scene,
)
from unimm.scenes.blends import BlendedPrompt, allowed_parts
from unimm.scenes.heldout import HELD_PAIRS
from unimm.scenes.world import BLEND_PARTS, blended_colour, rgb_of

FULL, SMALL = Grammar.full(), Grammar.small()
GRAMMARS = pytest.mark.parametrize("grammar", [FULL, SMALL], ids=["full", "small"])


def coloured(grammar: Grammar, count: int) -> list[tuple[Prompt, Scene]]:
    rng = np.random.default_rng(0)
    drawn = [sample_prompt(rng, grammar) for _ in range(4 * count)]
    return [(p, sample_scene(rng, grammar, p)) for p in drawn if names_colours(p)][:count]


def blends(grammar: Grammar, count: int = 200) -> list[tuple[Scene, BlendedPrompt]]:
    rng = np.random.default_rng(1)
    samples = coloured(grammar, count)
    return [(scene, blend_prompt(prompt, [scene], rng, grammar)) for prompt, scene in samples]


def nearest(rgb: tuple[float, ...]) -> str:
    return min(COLOURS, key=lambda colour: dist(COLOURS[colour], rgb))


def test_a_blend_lies_between_its_colours() -> None:
    quarter = blended_colour("white", "black", BLEND_PARTS // 4)
    assert rgb_of(quarter) == pytest.approx([0.75 * 250 + 0.25 * 15] * 3)
    assert blended_colour("red", "red", 5) == "red"
    assert rgb_of("red") == COLOURS["red"]


@GRAMMARS
def test_a_blend_is_drawn_in_its_colour(grammar: Grammar) -> None:
    for scene, blend in blends(grammar, 40):
        (moved,) = blend.scenes
        picture = render(moved)
        for before, one in zip(scene.objects, moved.objects, strict=True):
            if one.texture == "solid" and one.shape != "ring":
                assert np.abs(picture[one.y, one.x] - np.array(rgb_of(one.colour))).max() <= 1
            assert (one.shape, one.x, one.y) == (before.shape, before.x, before.y)


@GRAMMARS
def test_prompts_differ_in_colours_alone_and_pictures_lie_at_their_share(grammar: Grammar) -> None:
    for _, blend in blends(grammar):
        assert 0 < blend.share < 1
        without = [
            [word for word in prompt.text.split() if word not in (*COLOURS, "a", "an")]
            for prompt in (blend.prompt, blend.other)
        ]
        assert without[0] == without[1]
        sides = blend.prompt.spec.objects, blend.other.spec.objects
        for first, second, one in zip(*sides, blend.scenes[0].objects, strict=True):
            a, b = np.array(COLOURS[str(first.colour)]), np.array(COLOURS[str(second.colour)])
            assert rgb_of(one.colour) == pytest.approx(a + blend.share * (b - a))


@GRAMMARS
def test_of_two_kinds_mostly_one_alone_moves(grammar: Grammar) -> None:
    moves = []
    for _, blend in blends(grammar, 400):
        sides = blend.prompt.spec.objects, blend.other.spec.objects
        pairs = [(one, two.colour) for one, two in zip(*sides, strict=True)]
        if len(dict.fromkeys(blend.prompt.spec.objects)) == 2:
            moves.append(sum(one.colour != other for one, other in pairs))
        else:
            assert len({other for _, other in pairs}) == 1  # all of a kind move alike
    assert len(moves) > 100
    assert 0.55 < moves.count(1) / len(moves) < 0.95
    assert moves.count(0) <= 0.05 * len(moves)


def test_two_colours_are_enough_for_two_kinds() -> None:
    two = replace(SMALL, colours=("yellow", "white"))
    assert all(0 < blend.share < 1 for _, blend in blends(two, 40))


def is_right(blend: BlendedPrompt, scene: Scene) -> bool:
    return judge(blend.judged, detect(render(scene), colours_of(blend.judged))).correct


@GRAMMARS
def test_pictures_of_blends_are_right_and_those_in_other_colours_wrong(grammar: Grammar) -> None:
    judged = [(scene, blend) for scene, blend in blends(grammar) if blend.can_be_judged]
    assert len(judged) > 80
    # Measured: 3000 of 3000 of the small grammar. More than 2 wrong would be something new.
    assert sum(not is_right(blend, blend.scenes[0]) for _, blend in judged) <= 2
    for scene, blend in judged:
        moved = blend.scenes[0].objects
        pairs = [*zip(scene.objects, moved, strict=True)]
        if all(dist(rgb_of(one.colour), rgb_of(two.colour)) > 60 for one, two in pairs):
            assert not is_right(blend, scene), blend


def circles(first: str, second: str, parts: int) -> BlendedPrompt:
    prompt, other = (prompt_of(Spec((ObjectSpec("circle", c),))) for c in (first, second))
    return BlendedPrompt(prompt, other, parts / BLEND_PARTS, ())


def test_what_cannot_be_told_from_a_background_is_not_judged() -> None:
    assert not circles("black", "white", 9).can_be_judged  # gray
    assert circles("black", "white", 2).can_be_judged


def test_a_held_out_colour_keeps_its_name_beside_a_blend() -> None:
    near = circles("green", "black", 13).judged  # a black circle is held out
    assert {"black", "green+black*13"} <= set(colours_of(near))
    square = replace(near, spec=Spec((replace(near.spec.objects[0], shape="square"),)))
    assert "black" not in colours_of(square)
    beside = replace(square, spec=Spec((*square.spec.objects, ObjectSpec("circle", "red"))))
    assert "black" not in colours_of(beside)  # it is the square that may not be taken for one


def test_prompts_of_named_colours_are_judged_by_all_names() -> None:
    for _, blend in blends(SMALL, 5):
        assert colours_of(blend.prompt) == tuple(COLOURS)


@GRAMMARS
def test_no_blend_looks_like_a_held_out_pair(grammar: Grammar) -> None:
    rng = np.random.default_rng(2)
    scenes = [blend.scenes[0] for _, blend in blends(grammar)]
    scenes += [blend_colours(scene, rng, grammar) for _, scene in coloured(grammar, 200)]
    for one in (one for scene in scenes for one in scene.objects):
        assert (nearest(rgb_of(one.colour)), one.shape) not in HELD_PAIRS, one


def test_of_a_held_out_colour_there_is_less_than_half() -> None:
    for colour, shape in HELD_PAIRS:
        for own in COLOURS:
            if (own, shape) not in HELD_PAIRS:
                assert all(parts < BLEND_PARTS / 2 for parts in allowed_parts(shape, own, colour))


def test_colours_come_near_the_held_out_ones_and_everywhere_else() -> None:
    """Else there would be nothing to learn from."""
    assert max(allowed_parts("circle", "yellow", "red")) == BLEND_PARTS // 2 - 1
    assert allowed_parts("square", "red", "yellow") == tuple(range(1, BLEND_PARTS))
