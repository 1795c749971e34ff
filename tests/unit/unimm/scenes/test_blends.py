"""Blends lie between two colours, and never near one that is held out with their shape."""

from math import dist

import numpy as np
import pytest

from unimm.scenes import (
    COLOURS,
    Grammar,
    Prompt,
    Scene,
    blend_colours,
    blend_prompt,
    names_colours,
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
def test_a_blend_is_judged_by_the_names_nearest_to_its_colours(grammar: Grammar) -> None:
    renamed = 0
    for _, blend in blends(grammar):
        named = [spec.colour for spec in blend.named.spec.objects]
        assert named == [nearest(rgb_of(one.colour)) for one in blend.scenes[0].objects]
        plain = blend.prompt.spec.objects
        assert [o.shape for o in blend.named.spec.objects] == [o.shape for o in plain]
        assert blend.named.spec.relation == blend.prompt.spec.relation
        renamed += named != [spec.colour for spec in plain]
    assert renamed > 40


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
