"""Prompts as machine-checkable content, and the one wording of each.

The wordings are a miniature of GenEval's six skills (Ghosh et al. 2023, arXiv 2310.11513).
"""

from dataclasses import dataclass
from functools import cache

SKILLS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")

NUMBERS = ("zero", "one", "two", "three", "four", "five")
"""Number words by value."""


@dataclass(frozen=True, slots=True)
class ObjectSpec:
    """What a prompt says of one object; None is left open."""

    shape: str
    colour: str | None = None
    size: str | None = None
    texture: str | None = None


@dataclass(frozen=True, slots=True)
class Spec:
    """All objects of a picture and, for two, how the first lies to the second."""

    objects: tuple[ObjectSpec, ...]
    relation: str | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, the GenEval skill it asks for and its machine-checkable content."""

    text: str
    skill: str
    spec: Spec


def plural(shape: str) -> str:
    """Return the plural of a shape's name."""
    return shape + ("es" if shape.endswith("s") else "s")


def with_article(phrase: str) -> str:
    """Return the phrase behind `a`, or `an` before a vowel."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def phrase_of(spec: ObjectSpec) -> str:
    """Return the object's words without an article, as in `red circle`."""
    words = (spec.size, spec.colour, spec.texture, spec.shape)
    return " ".join(word for word in words if word is not None)


def skill_of(spec: Spec) -> str | None:
    """Return the skill whose prompts can say this, or None where no prompt can."""
    first = spec.objects[0]
    if spec.relation is None and all(other == first for other in spec.objects):
        return _skill_of_one_kind(first, len(spec.objects))
    if len(spec.objects) != 2:
        return None
    second = spec.objects[1]
    if first.shape == second.shape or any(o.size or o.texture for o in spec.objects):
        return None
    if first.colour is None and second.colour is None:
        return "two_object" if spec.relation is None else "position"
    if first.colour is None or second.colour is None or first.colour == second.colour:
        return None
    return "color_attr" if spec.relation is None else "position"


def _skill_of_one_kind(first: ObjectSpec, number: int) -> str | None:
    modifiers = sum(word is not None for word in (first.colour, first.size, first.texture))
    if number > 1:
        is_sayable = number < len(NUMBERS) and modifiers == (first.colour is not None)
        return "counting" if is_sayable else None
    if modifiers > 1:
        return None
    return "colors" if first.colour is not None else "single_object"


@cache
def prompt_of(spec: Spec) -> Prompt:
    """Return the prompt that says exactly this.

    Raises:
        ValueError: if no prompt of the six skills says it.
    """
    skill = skill_of(spec)
    if skill is None:
        raise ValueError(f"no prompt of the skills {', '.join(SKILLS)} says {spec}")
    first = spec.objects[0]
    if skill == "counting":
        words = [NUMBERS[len(spec.objects)], first.colour, plural(first.shape)]
        content = " ".join(word for word in words if word is not None)
    else:
        phrases = [with_article(phrase_of(o)) for o in spec.objects]
        content = f" {spec.relation or 'and'} ".join(phrases)
    return Prompt(f"a picture of {content}", skill, spec)
