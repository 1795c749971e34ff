"""Dense captions, places, and the closed vocabulary of everything the world says."""

import numpy as np

from unimm.scenes.heldout import HELD_TRIPLES
from unimm.scenes.spec import NUMBERS, ObjectSpec, phrase_of, plural, with_article
from unimm.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    OPPOSITE,
    PICTURE_SIZE,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    SceneObject,
    relation_between,
)

PLACES = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)
"""Names of the picture's nine fields, by row and column."""

_SENTENCES = (
    "a picture of and an on with at the background",
    "how many objects are there ?",
    "what color is the ? is there a ? does it match ?",
    "small or large ? what pattern ? where yes no ,",
)


def words(text: str) -> list[str]:
    """Return the text's words, commas and question marks being words of their own."""
    return text.replace(",", " , ").replace("?", " ? ").split()


def _vocabulary() -> tuple[str, ...]:
    names = (*SHAPES, *map(plural, SHAPES), *COLOURS, *SIZES, *TEXTURES, *BACKGROUNDS)
    places = (place for row in PLACES for place in row)
    texts = (*_SENTENCES, *names, *places, *RELATIONS, *NUMBERS)
    return tuple(sorted({word for text in texts for word in words(text)}))


VOCABULARY = _vocabulary()
"""Every word of prompts, captions, questions and answers, over the full grammar."""


def place_of(one: SceneObject) -> str:
    """Return the ninth of the picture in which the object's centre lies."""
    return PLACES[one.y * 3 // PICTURE_SIZE][one.x * 3 // PICTURE_SIZE]


def describe_object(one: SceneObject) -> str:
    """Return the object's size, colour, texture unless solid, and shape, with its article."""
    texture = None if one.texture == "solid" else one.texture
    return with_article(phrase_of(ObjectSpec(one.shape, one.colour, one.size, texture)))


def dense_caption(scene: Scene, rng: np.random.Generator) -> str:
    """Return one of several wordings that name every object fully, where it is, and the background.

    A relation triple that is held out of training is never worded.
    """
    objects = list(scene.objects)
    rng.shuffle(objects)
    content = _related(objects) if len(objects) == 2 and rng.random() < 0.5 else None
    if content is None:
        placed = [f"{describe_object(one)} at the {place_of(one)}" for one in objects]
        content = " and ".join([", ".join(placed[:-1]), placed[-1]][len(placed) == 1 :])
    if rng.random() < 0.5:
        return f"{content} on a {scene.background} background"
    return f"a {scene.background} background with {content}"


def _related(objects: list[SceneObject]) -> str | None:
    """Return the two objects joined by their relation, or None where none may be worded."""
    first, second = objects
    relation = relation_between((first.x, first.y), (second.x, second.y))
    if relation is None:
        return None
    if (first.shape, relation, second.shape) in HELD_TRIPLES:
        first, second, relation = second, first, OPPOSITE[relation]
    if (first.shape, relation, second.shape) in HELD_TRIPLES:
        return None
    return f"{describe_object(first)} {relation} {describe_object(second)}"
