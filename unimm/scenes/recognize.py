"""From a picture back to a scene, and from a scene to a prompt that it is right for."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unimm.scenes.detect import detect_background
from unimm.scenes.grammar import Grammar, split_of
from unimm.scenes.grouping import Detection
from unimm.scenes.judge import shows_held_out
from unimm.scenes.spec import ObjectSpec, Prompt, Spec, prompt_of, skill_of
from unimm.scenes.world import UNKNOWN, Scene, SceneObject, relation_between


def recognize(picture: NDArray[Any], seen: Sequence[Detection]) -> Scene | None:
    """Return the scene that a picture shows, None where something in it has no name.

    Args:
        picture: Of the world, uint8 of (64, 64, 3), RGB.
        seen: What :func:`unimm.scenes.detect` found in it.
    """
    background = detect_background(picture)
    objects = tuple(
        SceneObject(one.shape, one.colour, one.size, one.texture, one.x, one.y) for one in seen
    )
    names = (name for o in objects for name in (o.shape, o.colour, o.size, o.texture))
    if background is None or not objects or UNKNOWN in names:
        return None
    return Scene(objects, *background)


def prompt_for(
    scene: Scene, rng: np.random.Generator, grammar: Grammar
) -> tuple[Prompt, Scene] | None:
    """Return a training prompt that a scene is right for, and the scene in the prompt's order.

    None where none says all that is there, or the scene lies outside the grammar or shows what is
    held out of training.
    """
    if not _is_of(scene, grammar):
        return None
    objects = tuple(scene.objects[k] for k in rng.permutation(len(scene.objects)))
    specs = [spec for spec in _specs(objects) if skill_of(spec) is not None]
    found = [
        prompt
        for prompt in map(prompt_of, specs)
        if split_of(prompt) == "train" and not shows_held_out(prompt, objects)
    ]
    if not found:
        return None
    return found[int(rng.random() * len(found))], replace(scene, objects=objects)


def _is_of(scene: Scene, grammar: Grammar) -> bool:
    """Tell whether the grammar has words for all that is there."""
    return (
        scene.background in grammar.backgrounds
        and scene.style in grammar.styles
        and len(scene.objects) <= grammar.max_objects
        and all(
            one.shape in grammar.shapes
            and one.colour in grammar.colours
            and one.size in grammar.sizes
            and one.texture in grammar.textures
            for one in scene.objects
        )
    )


def _specs(objects: Sequence[SceneObject]) -> list[Spec]:
    """Return what may be said of these objects: with colours and without, and how two lie."""
    plain = tuple(ObjectSpec(one.shape) for one in objects)
    coloured = tuple(ObjectSpec(one.shape, one.colour) for one in objects)
    specs = [Spec(plain), Spec(coloured)]
    if len(objects) == 2:
        first, second = objects
        relation = relation_between((first.x, first.y), (second.x, second.y))
        if relation is not None:
            specs += [Spec(plain, relation), Spec(coloured, relation)]
    return specs
