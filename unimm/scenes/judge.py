"""GenEval's decision rule, exact: does a picture hold what its prompt says and nothing else?"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Protocol, runtime_checkable

from unimm.scenes.heldout import HELD_ARRANGEMENTS, HELD_COUNTS, HELD_NUMBER, HELD_PAIRS
from unimm.scenes.spec import ObjectSpec, Prompt, phrase_of, with_article
from unimm.scenes.world import UNKNOWN, relation_between


@runtime_checkable
class Seen(Protocol):
    """An object of a scene, or one that the detector found."""

    @property
    def shape(self) -> str: ...
    @property
    def colour(self) -> str: ...
    @property
    def size(self) -> str: ...
    @property
    def texture(self) -> str: ...
    @property
    def x(self) -> int: ...
    @property
    def y(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a picture is right, and if not, what was expected and what was found."""

    correct: bool
    reason: str


_CORRECT = Verdict(True, "as asked")


def judge(prompt: Prompt, seen: Sequence[Seen]) -> Verdict:
    """Compare what was seen with what the prompt says.

    Right means: the objects that the prompt names, each with the attributes that it gives, as
    many as it gives, in the relation that it gives (by the margin of 7 pixels), and no other
    object, since a prompt names all objects of its picture.
    """
    specs = prompt.spec.objects
    expected = prompt.text.removeprefix("a picture of ")
    if specs.count(specs[0]) == len(specs):
        return _judge_one_kind(specs[0], len(specs), expected, seen)
    if len(seen) != len(specs):
        return Verdict(False, f"expected {expected}, found {describe(seen)}")
    for order in permutations(seen):
        if all(map(_matches, order, specs)):
            return _judge_relation(prompt, order)
    return Verdict(False, f"expected {expected}, found {describe(seen)}")


def shows_held_out(prompt: Prompt, seen: Sequence[Seen]) -> bool:
    """Tell whether a picture shows what training must not, as pictures drawn by a model may.

    The rules are those of :func:`unimm.scenes.sample_scene`: no held-out pair, no held-out
    number, and no held-out arrangement of two shapes where the prompt asks for no relation.
    """
    if any((one.colour, one.shape) in HELD_PAIRS for one in seen) or len(seen) >= HELD_NUMBER:
        return True
    numbers = Counter(one.shape for one in seen)
    if any((number, shape) in HELD_COUNTS for shape, number in numbers.items()):
        return True
    if len(seen) != 2 or prompt.spec.relation is not None:
        return False
    first, second = seen
    relation = relation_between((first.x, first.y), (second.x, second.y))
    return (first.shape, relation, second.shape) in HELD_ARRANGEMENTS


def _judge_one_kind(spec: ObjectSpec, number: int, expected: str, seen: Sequence[Seen]) -> Verdict:
    matching = sum(_matches(one, spec) for one in seen)
    if matching == number == len(seen):
        return _CORRECT
    if matching == len(seen) and matching > 0:
        return Verdict(False, f"expected {expected}, found {matching}")
    return Verdict(False, f"expected {expected}, found {describe(seen)}")


def _judge_relation(prompt: Prompt, order: Sequence[Seen]) -> Verdict:
    relation = prompt.spec.relation
    if relation is None:
        return _CORRECT
    first, second = order
    found = relation_between((first.x, first.y), (second.x, second.y))
    if found == relation:
        return _CORRECT
    wanted = f"expected the {first.shape} {relation} the {second.shape}"
    return Verdict(False, f"{wanted}, found it {found or 'in no clear relation'}")


def _matches(one: Seen, spec: ObjectSpec) -> bool:
    return (
        one.shape == spec.shape
        and spec.colour in (None, one.colour)
        and spec.size in (None, one.size)
        and spec.texture in (None, one.texture)
    )


def describe(seen: Sequence[Seen]) -> str:
    """Return the objects in words, as in `a small red solid circle and a ...`, or `nothing`."""
    return " and ".join(map(_describe_one, seen)) or "nothing"


def _describe_one(one: Seen) -> str:
    if one.shape == UNKNOWN:
        return "something of no known shape"
    return with_article(phrase_of(ObjectSpec(one.shape, one.colour, one.size, one.texture)))
