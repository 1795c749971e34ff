"""Questions about a scene with their answers, balanced within each kind.

Answers are balanced over pictures of sampled prompts, not within one picture: a question whose
answer is common is asked more rarely (`balance`).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from unimm.scenes import balance
from unimm.scenes.grammar import Grammar, split_of
from unimm.scenes.heldout import HELD_PAIRS, HELD_TRIPLES
from unimm.scenes.negatives import draw_near_miss
from unimm.scenes.spec import NUMBERS, ObjectSpec, Prompt, phrase_of, plural, with_article
from unimm.scenes.text import place_of
from unimm.scenes.world import RELATIONS, Scene, SceneObject, relation_between


@dataclass(frozen=True, slots=True)
class Question:
    """A question of some kind and its one right answer."""

    kind: str
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class _Subject:
    """What is asked about; `singles` are the objects that `the SHAPE` can mean."""

    scene: Scene
    prompt: Prompt
    grammar: Grammar
    is_training: bool
    singles: tuple[SceneObject, ...]


_Asked = tuple[str, str] | None
_T = TypeVar("_T")


def questions(
    scene: Scene,
    prompt: Prompt,
    rng: np.random.Generator,
    grammar: Grammar,
    count: int,
    *,
    tries: Mapping[str, float] | None = None,
) -> list[Question]:
    """Return this many questions: of different kinds first, then more yes/no questions.

    Questions on a training picture never word a held-out pair or triple: a "no" would teach
    that it is wrong.

    Args:
        scene: What the picture shows.
        prompt: What it was made for.
        rng: Source of chance.
        grammar: The world's words.
        count: Number of questions.
        tries: How often each kind is tried, once where nothing is said; half a try is one in
            every second picture.
    """
    shapes = Counter(one.shape for one in scene.objects)
    singles = tuple(one for one in scene.objects if shapes[one.shape] == 1)
    subject = _Subject(scene, prompt, grammar, split_of(prompt) == "train", singles)
    # A number of tries that is fixed: trying until something fits would undo the balance.
    tried = [kind for kind in KINDS for _ in range(_whole((tries or {}).get(kind, 1), rng))]
    asked = [q for kind in tried if (q := _ask(kind, subject, rng)) is not None]
    keys = [rng.random() / (2 if q.kind in _COUNTS else 1) for q in asked]
    chosen = [asked[k] for k in sorted(range(len(asked)), key=keys.__getitem__)[:count]]
    while len(chosen) < count:
        extra = _ask("match" if rng.random() < 0.5 else "exists", subject, rng)
        if extra is not None:
            chosen.append(extra)
    return chosen


def _whole(number: float, rng: np.random.Generator) -> int:
    """Round up or down by chance, so that the mean is kept."""
    rest = number % 1
    return int(number) + (1 if rest and rng.random() < rest else 0)


def _ask(kind: str, subject: _Subject, rng: np.random.Generator) -> Question | None:
    asked = _KINDS[kind](subject, rng)
    return None if asked is None else Question(kind, *asked)


def _pick(rng: np.random.Generator, choices: Sequence[_T]) -> _T | None:
    return choices[int(rng.random() * len(choices))] if choices else None


def _count(subject: _Subject, rng: np.random.Generator) -> _Asked:
    if rng.random() >= balance.number_shares(subject.grammar)[len(subject.scene.objects)]:
        return None
    return "how many objects are there?", NUMBERS[len(subject.scene.objects)]


def _count_shape(subject: _Subject, rng: np.random.Generator) -> _Asked:
    objects = subject.scene.objects
    zero_share, one_share = balance.shape_count_shares(
        subject.grammar, is_counting=subject.prompt.skill == "counting"
    )
    draw = rng.random()
    if draw < zero_share:
        present = {one.shape for one in objects}
        shape = _pick(rng, [s for s in subject.grammar.shapes if s not in present])
        return None if shape is None else (_how_many(shape), "zero")
    if draw >= zero_share + one_share:
        return None
    shape = objects[int(rng.random() * len(objects))].shape
    return _how_many(shape), NUMBERS[sum(one.shape == shape for one in objects)]


def _how_many(shape: str) -> str:
    return f"how many {plural(shape)} are there?"


def _color(subject: _Subject, rng: np.random.Generator) -> _Asked:
    one = _pick(rng, subject.singles)
    if one is None or rng.random() >= balance.colour_shares(subject.grammar)[one.colour]:
        return None
    return f"what color is the {one.shape}?", one.colour


def _background(subject: _Subject, rng: np.random.Generator) -> _Asked:
    return "what color is the background?", subject.scene.background


def _size(subject: _Subject, rng: np.random.Generator) -> _Asked:
    one = _pick(rng, subject.singles)
    return None if one is None else (f"is the {one.shape} small or large?", one.size)


def _pattern(subject: _Subject, rng: np.random.Generator) -> _Asked:
    one = _pick(rng, subject.singles)
    if one is None or rng.random() >= balance.texture_shares(subject.grammar)[one.texture]:
        return None
    return f"what pattern is the {one.shape}?", one.texture


def _place(subject: _Subject, rng: np.random.Generator) -> _Asked:
    one = _pick(rng, subject.singles)
    if one is None:
        return None
    place = place_of(one)
    if rng.random() >= balance.place_shares(one.size)[place]:
        return None
    return f"where is the {one.shape}?", place


def _exists(subject: _Subject, rng: np.random.Generator) -> _Asked:
    present = [(one.colour, one.shape) for one in subject.scene.objects]
    answer = "yes" if rng.random() < 0.5 else "no"
    pair = _pick(rng, present) if answer == "yes" else _absent_pair(subject, present, rng)
    if pair is None:
        return None
    return f"is there {with_article(phrase_of(ObjectSpec(pair[1], pair[0])))}?", answer


def _absent_pair(
    subject: _Subject, present: list[tuple[str, str]], rng: np.random.Generator
) -> tuple[str, str] | None:
    """Return a colour and shape that are not there, often sharing one of them with an object."""
    colours, shapes = subject.grammar.colours, subject.grammar.shapes
    for _ in range(20):
        near = present[int(rng.random() * len(present))]
        draw = rng.random()
        colour = near[0] if draw < 0.25 else colours[int(rng.random() * len(colours))]
        shape = near[1] if 0.25 <= draw < 0.5 else shapes[int(rng.random() * len(shapes))]
        is_held = subject.is_training and (colour, shape) in HELD_PAIRS
        if (colour, shape) not in present and not is_held:
            return colour, shape
    return None


def _related(first: SceneObject, second: SceneObject) -> str | None:
    return relation_between((first.x, first.y), (second.x, second.y))


def _may_word(subject: _Subject, first: SceneObject, relation: str, second: SceneObject) -> bool:
    return not subject.is_training or (first.shape, relation, second.shape) not in HELD_TRIPLES


def _what_relation(subject: _Subject, rng: np.random.Generator) -> _Asked:
    reference = _pick(rng, subject.singles)
    relation = _pick(rng, RELATIONS)
    if reference is None or relation is None:
        return None
    others = [one for one in subject.scene.objects if one is not reference]
    found = [one for one in others if _related(one, reference) == relation]
    if len(found) != 1 or not _may_word(subject, found[0], relation, reference):
        return None
    return f"what is {relation} the {reference.shape}?", found[0].shape


def _is_relation(subject: _Subject, rng: np.random.Generator) -> _Asked:
    if len(subject.singles) < 2:
        return None
    first, second = (subject.singles[k] for k in rng.permutation(len(subject.singles))[:2])
    true = _related(first, second)
    if true is None:
        return None
    answer = "yes" if rng.random() < 0.5 else "no"
    wrong = [relation for relation in RELATIONS if relation != true]
    relation = true if answer == "yes" else _pick(rng, wrong)
    assert relation
    if not _may_word(subject, first, relation, second):
        return None
    return f"is the {first.shape} {relation} the {second.shape}?", answer


def _match(subject: _Subject, rng: np.random.Generator) -> _Asked:
    if rng.random() < 0.5:
        return match_question(subject.prompt), "yes"
    other = draw_near_miss(subject.prompt, subject.scene, rng, subject.grammar)
    return None if other is None else (match_question(other), "no")


def match_question(prompt: Prompt) -> str:
    """Return the question whether a picture is right for the prompt."""
    return f"does it match {prompt.text}?"


_KINDS: dict[str, Callable[[_Subject, np.random.Generator], _Asked]] = {
    "count": _count,
    "count_shape": _count_shape,
    "color": _color,
    "background": _background,
    "size": _size,
    "pattern": _pattern,
    "place": _place,
    "exists": _exists,
    "what_relation": _what_relation,
    "is_relation": _is_relation,
    "match": _match,
}

KINDS = tuple(_KINDS)
"""Names of the kinds of question."""

_COUNTS = ("count", "count_shape")
"""Kinds kept twice as often as others, since balancing leaves most of them unasked."""
