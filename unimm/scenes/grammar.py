"""A grammar: which shapes, colours and so on a model works with, and every prompt over them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from itertools import permutations, product
from typing import Any

from unimm.scenes.heldout import HELD_COUNTS, HELD_NUMBER, HELD_PAIRS, HELD_TRIPLES
from unimm.scenes.spec import SKILLS, ObjectSpec, Prompt, Spec, prompt_of
from unimm.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    MAX_OBJECTS,
    RELATIONS,
    SHAPES,
    SIZES,
    SOLID_COLOURS,
    STYLES,
    TEXTURES,
)

SPLITS = ("train", "pair", "count", "count_five", "relation")

_WORLD = {
    "shapes": SHAPES,
    "colours": tuple(COLOURS),
    "sizes": tuple(SIZES),
    "textures": TEXTURES,
    "backgrounds": tuple(BACKGROUNDS),
    "styles": STYLES,
}


@dataclass(frozen=True, slots=True)
class Grammar:
    """The part of the world that a model has words and pictures for."""

    shapes: tuple[str, ...]
    colours: tuple[str, ...]
    sizes: tuple[str, ...]
    textures: tuple[str, ...]
    backgrounds: tuple[str, ...]
    styles: tuple[str, ...]
    max_objects: int

    def __post_init__(self) -> None:
        for name, known in _WORLD.items():
            _check_words(name, getattr(self, name), known)
        if type(self.max_objects) is not int or not 1 <= self.max_objects <= MAX_OBJECTS:
            raise ValueError(f"max_objects is {self.max_objects!r}; give 1 to {MAX_OBJECTS}")
        if "solid" not in self.textures and not SOLID_COLOURS.isdisjoint(self.colours):
            raise ValueError(
                f"textures {list(self.textures)} lack solid, the only one of "
                f"{', '.join(sorted(SOLID_COLOURS))}; add solid or leave these colours out"
            )

    @classmethod
    def full(cls) -> "Grammar":
        """Return the whole world."""
        return cls(
            shapes=SHAPES,
            colours=tuple(COLOURS),
            sizes=tuple(SIZES),
            textures=TEXTURES,
            backgrounds=tuple(BACKGROUNDS),
            styles=STYLES,
            max_objects=MAX_OBJECTS,
        )

    @classmethod
    def small(cls) -> "Grammar":
        """Return 4 shapes, 6 colours, large, solid, plain backgrounds, up to 3 objects."""
        return cls(
            shapes=("circle", "square", "triangle", "cross"),
            colours=("red", "yellow", "green", "blue", "black", "white"),
            sizes=("large",),
            textures=("solid",),
            backgrounds=tuple(BACKGROUNDS),
            styles=("plain",),
            max_objects=3,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Grammar":
        """Build a grammar from what `to_dict` returned.

        Raises:
            ValueError: on an unknown or missing key, or words outside the world.
        """
        names = [field.name for field in fields(cls)]
        if wrong := sorted(set(data) ^ set(names)):
            raise ValueError(f"a grammar has the keys {', '.join(names)}; check {', '.join(wrong)}")
        if odd := [name for name in _WORLD if not isinstance(data[name], list | tuple)]:
            raise ValueError(f"{odd[0]} is {data[odd[0]]!r}; give a list of names")
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in data.items()
        }
        return cls(**values)


def _check_words(name: str, words: object, known: tuple[str, ...]) -> None:
    if not isinstance(words, tuple) or not words or len(set(words)) != len(words):
        raise ValueError(f"{name} is {words!r}; give at least one name, each once")
    if unknown := [word for word in words if word not in known]:
        raise ValueError(f"{name} has {unknown[0]!r}; the world knows {', '.join(known)}")


def textures_of(grammar: Grammar, colour: str) -> tuple[str, ...]:
    """Return the textures that this colour comes in."""
    return ("solid",) if colour in SOLID_COLOURS else grammar.textures


def split_of(prompt: Prompt) -> str:
    """Return the split a prompt belongs to: `train` or the held-out rule it falls under.

    Where several rules hold, the first of count_five, count, pair and relation counts.
    """
    spec = prompt.spec
    counted = (len(spec.objects), spec.objects[0].shape)
    if prompt.skill == "counting" and counted[0] == HELD_NUMBER:
        return "count_five"
    if prompt.skill == "counting" and counted in HELD_COUNTS:
        return "count"
    if any((o.colour, o.shape) in HELD_PAIRS for o in spec.objects):
        return "pair"
    if spec.relation is not None:
        first, second = spec.objects
        if (first.shape, spec.relation, second.shape) in HELD_TRIPLES:
            return "relation"
    return "train"


@cache
def prompts(grammar: Grammar, skill: str, split: str = "train") -> tuple[Prompt, ...]:
    """Return every prompt of a skill and split, in a fixed order; empty where there is none.

    Raises:
        ValueError: on an unknown skill or split.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is none of {', '.join(SPLITS)}")
    return tuple(prompt for prompt in _all_prompts(grammar, skill) if split_of(prompt) == split)


@cache
def prompt_groups(
    grammar: Grammar, skill: str, split: str = "train"
) -> tuple[tuple[Prompt, ...], ...]:
    """Return the prompts of a skill and split in groups that are drawn alike.

    Position prompts without colours are one group, as in GenEval, and the hundred times more
    numerous ones with colours another.
    """
    found = prompts(grammar, skill, split)
    if skill != "position":
        return (found,) if found else ()
    plain = tuple(p for p in found if p.spec.objects[0].colour is None)
    coloured = tuple(p for p in found if p.spec.objects[0].colour is not None)
    return tuple(group for group in (plain, coloured) if group)


@cache
def _all_prompts(grammar: Grammar, skill: str) -> tuple[Prompt, ...]:
    if skill not in SKILLS:
        raise ValueError(f"skill {skill!r} is none of {', '.join(SKILLS)}")
    specs = {
        "single_object": _single_object,
        "two_object": _two_object,
        "counting": _counting,
        "colors": _colors,
        "position": _position,
        "color_attr": _color_attr,
    }[skill](grammar)
    return tuple(prompt_of(spec) for spec in specs)


def _single_object(grammar: Grammar) -> list[Spec]:
    plain = [ObjectSpec(shape) for shape in grammar.shapes]
    sized = [ObjectSpec(h, size=z) for h, z in product(grammar.shapes, grammar.sizes)]
    textured = [ObjectSpec(h, texture=t) for h, t in product(grammar.shapes, grammar.textures)]
    return [Spec((o,)) for o in plain + sized + textured]


def _two_object(grammar: Grammar) -> list[Spec]:
    if grammar.max_objects < 2:
        return []
    pairs = permutations(grammar.shapes, 2)
    return [Spec((ObjectSpec(first), ObjectSpec(second))) for first, second in pairs]


def _counting(grammar: Grammar) -> list[Spec]:
    numbers = range(2, grammar.max_objects + 1)
    choices = product(numbers, grammar.shapes, (None, *grammar.colours))
    return [Spec((ObjectSpec(shape, colour),) * n) for n, shape, colour in choices]


def _colors(grammar: Grammar) -> list[Spec]:
    return [Spec((ObjectSpec(h, c),)) for h, c in product(grammar.shapes, grammar.colours)]


def _color_attr(grammar: Grammar) -> list[Spec]:
    return [
        Spec((ObjectSpec(first.shape, c), ObjectSpec(second.shape, d)))
        for first, second in (spec.objects for spec in _two_object(grammar))
        for c, d in permutations(grammar.colours, 2)
    ]


def _position(grammar: Grammar) -> list[Spec]:
    pairs = _two_object(grammar) + _color_attr(grammar)
    return [Spec(pair.objects, relation) for pair, relation in product(pairs, RELATIONS)]
