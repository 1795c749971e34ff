"""Pictures between the named colours, to learn from: mixup of prompts and of what they show.

With few colours and shapes a model learns by heart which of their pairs never occur, and draws a
held-out pair as one that it has seen. Where colours are a continuum, of which names are points,
it has to learn that any shape comes in any colour: halfway from "a red square" to "a yellow
square" there is a square halfway from red to yellow.

Zhang et al., "mixup" (arXiv:1710.09412); here what is mixed are prompts that differ in colours
alone, so that a mixture of their pictures is a picture of the world.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from math import dist
from typing import TypeVar

import numpy as np

from unimm.scenes.grammar import Grammar
from unimm.scenes.heldout import HELD_PAIRS
from unimm.scenes.spec import ObjectSpec, Prompt, Spec, prompt_of
from unimm.scenes.world import BACKGROUNDS, BLEND_PARTS, COLOURS, Scene, blended_colour, rgb_of

T = TypeVar("T")

TOLD_APART = 46.0
"""Distance in RGB from which the detector tells a blend from another colour: half of the least
between two of the world's."""

STANDS_OUT = 60.0
"""Distance in RGB from which the detector sees all of an object before a background."""

ONE_MOVES = 0.7
"""How often one of two objects keeps its colour."""

HELD_DISTANCE = 1.25
"""How many times farther than from the nearest other colour of the world a blend must be from
every colour that its shape is never shown in."""


@dataclass(frozen=True, slots=True)
class BlendedPrompt:
    """A place between two prompts that differ in colours alone.

    Args:
        prompt: One of them, of the training split.
        other: The other one; it may name a held-out pair, whose colour the picture is then
            away from by more than half.
        share: How far from the first to the other, in (0, 1).
        scenes: What lies there.
    """

    prompt: Prompt
    other: Prompt
    share: float
    scenes: tuple[Scene, ...]

    @property
    def judged(self) -> Prompt:
        """The prompt with the blends in place of its colours: what a picture must show."""
        parts = round(self.share * BLEND_PARTS)
        objects = tuple(
            replace(one, colour=blended_colour(str(one.colour), str(two.colour), parts))
            for one, two in zip(self.prompt.spec.objects, self.other.spec.objects, strict=True)
        )
        return replace(self.prompt, spec=Spec(objects, self.prompt.spec.relation))

    @property
    def can_be_judged(self) -> bool:
        """Whether the detector sees these colours before any background, and tells them apart."""
        colours = {str(one.colour) for one in self.judged.spec.objects}
        return all(
            dist(rgb_of(colour), background) >= STANDS_OUT
            for colour in colours
            for background in BACKGROUNDS.values()
        ) and all(
            dist(rgb_of(one), rgb_of(two)) >= TOLD_APART for one, two in combinations(colours, 2)
        )


def colours_of(prompt: Prompt) -> tuple[str, ...]:
    """Return what a detector may call the colours in a picture of a prompt.

    The names of the world; for a prompt that asks for blends these too, without the names that
    they are too near to, unless such a name is held out with the blend's own shape.
    """
    blends = {
        (str(one.colour), one.shape)
        for one in prompt.spec.objects
        if one.colour is not None and one.colour not in COLOURS
    }
    names = (
        name
        for name, rgb in COLOURS.items()
        if all(
            (name, shape) in HELD_PAIRS or dist(rgb, rgb_of(blend)) >= TOLD_APART
            for blend, shape in blends
        )
    )
    return *names, *sorted({blend for blend, _ in blends})


def blend_colours(scene: Scene, rng: np.random.Generator, grammar: Grammar) -> Scene:
    """Return the scene with every object's colour moved some way towards another."""
    objects = []
    for one in scene.objects:
        other = _pick(rng, grammar.colours)
        parts = allowed_parts(one.shape, one.colour, other)
        moved = blended_colour(one.colour, other, _pick(rng, parts)) if parts else one.colour
        objects.append(replace(one, colour=moved))
    return replace(scene, objects=tuple(objects))


def names_colours(prompt: Prompt) -> bool:
    """Tell whether the prompt says what colour its objects have."""
    return all(one.colour is not None for one in prompt.spec.objects)


def blend_prompt(
    prompt: Prompt, scenes: Sequence[Scene], rng: np.random.Generator, grammar: Grammar
) -> BlendedPrompt:
    """Move a prompt, and pictures of it, some way towards the prompt with other colours.

    Args:
        prompt: Names the colour of each of its objects.
        scenes: Show it, their objects in its order.
        rng: Draws the other colours and how far they are.
        grammar: Whose colours, at least two.
    """
    specs = prompt.spec.objects
    common: set[int] = set()
    while not common:
        others = _other_colours(specs, rng, grammar)
        allowed = [
            set(allowed_parts(o.shape, str(o.colour), other))
            for o, other in zip(specs, others, strict=True)
        ]
        common = set.intersection(*allowed)
    objects = tuple(replace(o, colour=c) for o, c in zip(specs, others, strict=True))
    other = prompt_of(Spec(objects, prompt.spec.relation))
    parts = _pick(rng, sorted(common))
    moved = tuple(_moved(scene, others, parts) for scene in scenes)
    return BlendedPrompt(prompt, other, parts / BLEND_PARTS, moved)


@cache
def allowed_parts(shape: str, colour: str, other: str) -> tuple[int, ...]:
    """Return how many parts of another colour may be mixed into a shape's own in training.

    Of a colour that is held out with the shape always less than half, and nothing that comes near
    such a colour by another way, as orange and purple come near red.
    """
    most = (BLEND_PARTS - 1) // 2 if (other, shape) in HELD_PAIRS else BLEND_PARTS - 1
    held = [rgb_of(c) for c, s in HELD_PAIRS if s == shape]
    shown = [rgb for c, rgb in COLOURS.items() if (c, shape) not in HELD_PAIRS]
    blends = {k: rgb_of(blended_colour(colour, other, k)) for k in range(1, most + 1)}
    return tuple(
        k
        for k, rgb in blends.items()
        if all(dist(rgb, h) >= HELD_DISTANCE * min(dist(rgb, c) for c in shown) for h in held)
    )


def _other_colours(
    specs: Sequence[ObjectSpec], rng: np.random.Generator, grammar: Grammar
) -> list[str]:
    """Return other colours for objects, the same for those of one kind.

    Of two kinds mostly one alone gets another colour: which colour belongs to which shape is
    learned from what changes and what stays.
    """
    kinds = list(dict.fromkeys(specs))
    moving = kinds
    if 1 < len(kinds) < len(grammar.colours) and rng.random() < ONE_MOVES:
        moving = [_pick(rng, kinds)]
    taken = {one.colour for one in kinds if one not in moving}
    if len(moving) == 1:
        taken.add(moving[0].colour)
    drawn = [str(c) for c in rng.permutation(grammar.colours) if c not in taken]
    new = dict(zip(moving, drawn, strict=False))
    return [new.get(one, str(one.colour)) for one in specs]


def _pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    return choices[int(rng.random() * len(choices))]


def _moved(scene: Scene, others: Sequence[str], parts: int) -> Scene:
    objects = tuple(
        replace(one, colour=blended_colour(one.colour, other, parts))
        for one, other in zip(scene.objects, others, strict=True)
    )
    return replace(scene, objects=objects)
