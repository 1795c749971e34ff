"""Near misses: prompts that differ from a true one in a single thing and are false of the scene."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from unimm.scenes.grammar import Grammar, split_of
from unimm.scenes.judge import judge
from unimm.scenes.spec import ObjectSpec, Prompt, Spec, prompt_of, skill_of
from unimm.scenes.world import OPPOSITE, RELATIONS, Scene

_TRIES = 4
"""Draws of each kind before it is left out; only held-out words make a draw fail."""


def near_misses(
    prompt: Prompt, scene: Scene, rng: np.random.Generator, grammar: Grammar
) -> list[Prompt]:
    """Return near misses of the prompt, one of every kind that it allows, all false of the scene.

    Kinds: colours swapped, another relation (the opposite one where the prompt has one), one
    object more or fewer, another colour, another shape, another size, another texture. Near
    misses of a training prompt are themselves training prompts, so that no held-out words are
    ever learned as wrong.
    """
    found = []
    for draw in _DRAWS:
        for _ in range(_TRIES):
            spec = draw(prompt, scene, rng, grammar)
            if spec is None:
                break
            if is_near_miss(spec, prompt, scene):
                found.append(prompt_of(spec))
                break
    return found


def draw_near_miss(
    prompt: Prompt, scene: Scene, rng: np.random.Generator, grammar: Grammar
) -> Prompt | None:
    """Return one near miss, kinds alike; None in the rare case that every draw fails."""
    for k in rng.permutation(len(_DRAWS)):
        spec = _DRAWS[k](prompt, scene, rng, grammar)
        if spec is not None and is_near_miss(spec, prompt, scene):
            return prompt_of(spec)
    return None


def is_near_miss(spec: Spec, prompt: Prompt, scene: Scene) -> bool:
    """Tell whether this can be said, may be said of a picture of the prompt, and is false."""
    if skill_of(spec) is None:
        return False
    other = prompt_of(spec)
    if split_of(prompt) == "train" and split_of(other) != "train":
        return False
    return not judge(other, scene.objects).correct


def _pick(rng: np.random.Generator, choices: Sequence[str]) -> str | None:
    return choices[int(rng.random() * len(choices))] if choices else None


def _swapped(
    prompt: Prompt, scene: Scene, rng: np.random.Generator, grammar: Grammar
) -> Spec | None:
    if len(prompt.spec.objects) != 2 or prompt.skill == "counting":
        return None
    first, second = prompt.spec.objects
    # What the prompt leaves open is taken from the scene, whose objects keep the prompt's order.
    colours = scene.objects[1].colour, scene.objects[0].colour
    objects = ObjectSpec(first.shape, colours[0]), ObjectSpec(second.shape, colours[1])
    return Spec(objects, prompt.spec.relation)


def _other_relation(
    prompt: Prompt, scene: Scene, rng: np.random.Generator, grammar: Grammar
) -> Spec | None:
    if len(prompt.spec.objects) != 2 or prompt.skill == "counting":
        return None
    if prompt.spec.relation is not None:
        return replace(prompt.spec, relation=OPPOSITE[prompt.spec.relation])
    return replace(prompt.spec, relation=_pick(rng, RELATIONS))


def _other_number(
    prompt: Prompt, scene: Scene, rng: np.random.Generator, grammar: Grammar
) -> Spec | None:
    objects = prompt.spec.objects
    if objects.count(objects[0]) != len(objects):
        return None
    number = len(objects) + (1 if rng.random() < 0.5 else -1)
    if not 1 <= number <= grammar.max_objects:
        number = 2 * len(objects) - number
    if not 1 <= number <= grammar.max_objects:
        return None
    return Spec((ObjectSpec(objects[0].shape, objects[0].colour),) * number)


def _other_colour(
    prompt: Prompt, scene: Scene, rng: np.random.Generator, grammar: Grammar
) -> Spec | None:
    objects = list(prompt.spec.objects)
    k = int(rng.random() * len(objects))
    seen = {one.colour for one in scene.objects}
    colour = _pick(rng, [c for c in grammar.colours if c not in seen])
    if colour is None:
        return None
    changed = ObjectSpec(objects[k].shape, colour)
    if prompt.skill in ("single_object", "counting", "colors"):
        return Spec((changed,) * len(objects))
    objects = [
        ObjectSpec(o.shape, one.colour) for o, one in zip(objects, scene.objects, strict=True)
    ]
    objects[k] = changed
    return Spec(tuple(objects), prompt.spec.relation)


def _other_shape(
    prompt: Prompt, scene: Scene, rng: np.random.Generator, grammar: Grammar
) -> Spec | None:
    objects = list(prompt.spec.objects)
    named = {o.shape for o in objects}
    shape = _pick(rng, [s for s in grammar.shapes if s not in named])
    if shape is None:
        return None
    if objects.count(objects[0]) == len(objects):
        return Spec((replace(objects[0], shape=shape),) * len(objects))
    k = int(rng.random() * len(objects))
    objects[k] = replace(objects[k], shape=shape)
    return Spec(tuple(objects), prompt.spec.relation)


def _other_size(
    prompt: Prompt, scene: Scene, rng: np.random.Generator, grammar: Grammar
) -> Spec | None:
    if prompt.skill != "single_object":
        return None
    size = _pick(rng, [s for s in grammar.sizes if s != scene.objects[0].size])
    return None if size is None else Spec((ObjectSpec(scene.objects[0].shape, size=size),))


def _other_texture(
    prompt: Prompt, scene: Scene, rng: np.random.Generator, grammar: Grammar
) -> Spec | None:
    one = scene.objects[0]
    if prompt.skill != "single_object":
        return None
    texture = _pick(rng, [t for t in grammar.textures if t != one.texture])
    return None if texture is None else Spec((ObjectSpec(one.shape, texture=texture),))


_Draw = Callable[[Prompt, Scene, np.random.Generator, Grammar], Spec | None]

_DRAWS: tuple[_Draw, ...] = (
    _swapped,
    _other_relation,
    _other_number,
    _other_colour,
    _other_shape,
    _other_size,
    _other_texture,
)
