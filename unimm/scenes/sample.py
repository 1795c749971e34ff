"""Random prompts, and random scenes that show exactly what a prompt says.

Plain floats from one generator call each and rejection on integers: numpy's array calls would
cost more than the whole scene.
"""

import math
from functools import cache

import numpy as np

from unimm.scenes.grammar import Grammar, prompt_groups, textures_of
from unimm.scenes.heldout import HELD_ARRANGEMENTS, HELD_PAIRS
from unimm.scenes.spec import SKILLS, ObjectSpec, Prompt
from unimm.scenes.world import (
    EDGE_MARGIN,
    OBJECT_GAP,
    OUTLINE,
    PICTURE_SIZE,
    SIZES,
    Scene,
    SceneObject,
    relation_between,
)

PROMPTED_MARGIN = 9
"""Margin of a relation that the prompt asks for; two pixels above what makes it true, so that a
detector or a decoder that is off by one pixel does not turn a right picture into a wrong one."""

_TRIES_PER_OBJECT = 12

_Choices = tuple[tuple[str, tuple[str, ...]], ...]


@cache
def _prompt_pools(
    grammar: Grammar, split: str, skill: str | None
) -> tuple[tuple[tuple[Prompt, ...], ...], ...]:
    """Return per skill the pools that are drawn alike (position: without and with colours)."""
    skills = SKILLS if skill is None else (skill,)
    pools = tuple(groups for name in skills if (groups := prompt_groups(grammar, name, split)))
    if not pools:
        raise ValueError(
            f"the grammar has no prompt of split {split!r}"
            + (f" and skill {skill!r}" if skill else "")
            + "; choose another split or skill"
        )
    return pools


def sample_prompt(
    rng: np.random.Generator, grammar: Grammar, split: str = "train", skill: str | None = None
) -> Prompt:
    """Draw a prompt: skills alike, and half of the position prompts without colours.

    Raises:
        ValueError: if the split has no such prompt, or on an unknown split or skill.
    """
    pools = _prompt_pools(grammar, split, skill)
    groups = pools[int(rng.random() * len(pools))]
    group = groups[int(rng.random() * len(groups))] if len(groups) > 1 else groups[0]
    return group[int(rng.random() * len(group))]


@cache
def _colour_choices(grammar: Grammar, spec: ObjectSpec) -> _Choices:
    """Return the colours that an object may have, each with the textures it comes in."""
    if spec.colour is not None:
        colours: tuple[str, ...] = (spec.colour,)
    else:
        colours = tuple(c for c in grammar.colours if (c, spec.shape) not in HELD_PAIRS)
    choices = []
    for colour in colours:
        textures = textures_of(grammar, colour)
        if spec.texture is None:
            choices.append((colour, textures))
        elif spec.texture in textures:
            choices.append((colour, (spec.texture,)))
    if not choices:
        raise ValueError(f"no colour of the grammar fits {spec}; add colours to the grammar")
    return tuple(choices)


def sample_scene(rng: np.random.Generator, grammar: Grammar, prompt: Prompt) -> Scene:
    """Draw a scene that shows exactly the prompt's objects, what it leaves open at random.

    What is left open never shows a held-out pair, and no held-out arrangement of two shapes
    where the prompt does not ask for a relation.
    """
    specs = prompt.spec.objects
    while True:
        drawn = [_draw_attributes(rng, grammar, spec) for spec in specs]
        centres = _draw_centres(rng, [SIZES[d[2]] for d in drawn], [d[0] for d in drawn])
        if centres is not None and _fits(prompt, centres):
            break
    objects = tuple(
        SceneObject(shape, colour, size, texture, x, y)
        for (shape, colour, size, texture), (x, y) in zip(drawn, centres, strict=True)
    )
    background = grammar.backgrounds[int(rng.random() * len(grammar.backgrounds))]
    style = grammar.styles[int(rng.random() * len(grammar.styles))]
    return Scene(objects, background, style)


def _draw_attributes(
    rng: np.random.Generator, grammar: Grammar, spec: ObjectSpec
) -> tuple[str, str, str, str]:
    choices = _colour_choices(grammar, spec)
    colour, textures = choices[int(rng.random() * len(choices))]
    texture = textures[int(rng.random() * len(textures))] if len(textures) > 1 else textures[0]
    size = spec.size or grammar.sizes[int(rng.random() * len(grammar.sizes))]
    return spec.shape, colour, size, texture


def _draw_centres(
    rng: np.random.Generator, radii: list[int], shapes: list[str]
) -> list[tuple[int, int]] | None:
    """Return centres of objects that keep the gap, or None after too many tries."""
    random = rng.random
    placed: list[tuple[int, int]] = []
    for k, radius in enumerate(radii):
        low = radius + EDGE_MARGIN
        span = PICTURE_SIZE - 2 * low + 1
        for _ in range(_TRIES_PER_OBJECT):
            x, y = low + int(random() * span), low + int(random() * span)
            if all(
                _apart(x - px, y - py, (radius, shapes[k]), (radii[j], shapes[j]))
                for j, (px, py) in enumerate(placed)
            ):
                placed.append((x, y))
                break
        else:
            return None
    return placed


def _apart(dx: int, dy: int, first: tuple[int, str], second: tuple[int, str]) -> bool:
    """Tell whether two objects keep the gap, by their boxes or by their circumcircles."""
    if max(abs(dx), abs(dy)) >= first[0] + second[0] + OBJECT_GAP:
        return True
    return dx * dx + dy * dy >= _squared_reach(first, second)


@cache
def _squared_reach(first: tuple[int, str], second: tuple[int, str]) -> int:
    # More than the gap, since circumcircles are not aligned with the pixel grid.
    reach = first[0] * OUTLINE[first[1]] + second[0] * OUTLINE[second[1]] + OBJECT_GAP + 1.5
    return math.ceil(reach**2)


def _fits(prompt: Prompt, centres: list[tuple[int, int]]) -> bool:
    """Tell whether the arrangement is the prompt's, or an open one that may be shown."""
    if len(centres) < 2 or prompt.skill == "counting":
        return True
    (ax, ay), (bx, by) = centres
    relation = relation_between((ax, ay), (bx, by))
    if prompt.spec.relation is not None:
        is_clear = abs(abs(ax - bx) - abs(ay - by)) >= PROMPTED_MARGIN
        return relation == prompt.spec.relation and is_clear
    first, second = prompt.spec.objects
    return (first.shape, relation, second.shape) not in HELD_ARRANGEMENTS
