"""Questions: every answer checked by a reader of its own, and balanced."""

import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from unimm.scenes import (
    KINDS,
    Grammar,
    Prompt,
    Question,
    Scene,
    SceneObject,
    judge,
    parse_prompt,
    questions,
    sample_prompt,
    sample_scene,
    split_of,
)
from unimm.scenes.heldout import HELD_PAIRS, HELD_TRIPLES

FULL, SMALL = Grammar.full(), Grammar.small()
NUMBERS = ["zero", "one", "two", "three", "four", "five"]
MORE_OF_SOME = {"is_relation": 4, "what_relation": 3, "count_shape": 3, "background": 0.3}
Asked = list[tuple[Prompt, Scene, list[Question]]]


def ask(
    grammar: Grammar,
    scenes: int,
    count: int,
    split: str = "train",
    tries: dict[str, float] | None = None,
) -> Asked:
    rng = np.random.default_rng(0)
    asked = []
    for _ in range(scenes):
        prompt = sample_prompt(rng, grammar, split)
        scene = sample_scene(rng, grammar, prompt)
        asked.append((prompt, scene, questions(scene, prompt, rng, grammar, count, tries=tries)))
    return asked


def is_related(first: SceneObject, relation: str, second: SceneObject) -> bool:
    dx, dy = first.x - second.x, first.y - second.y
    along, across = (dx, dy) if relation in ("left of", "right of") else (dy, dx)
    sign = 1 if relation in ("right of", "below") else -1
    return sign * along - abs(across) >= 7


def answer(question: str, scene: Scene) -> str:
    """Answer from the scene, reading nothing but the question."""
    objects = scene.objects

    def the(shape: str) -> SceneObject:
        (one,) = (o for o in objects if o.shape == shape)
        return one

    def yes(is_so: bool) -> str:
        return "yes" if is_so else "no"

    if question == "how many objects are there?":
        return NUMBERS[len(objects)]
    if question == "what color is the background?":
        return scene.background
    if m := re.fullmatch(r"how many (\w+?)(?:(?<=cross)es|s) are there\?", question):
        return NUMBERS[sum(o.shape == m[1] for o in objects)]
    if m := re.fullmatch(r"what color is the (\w+)\?", question):
        return the(m[1]).colour
    if m := re.fullmatch(r"is the (\w+) small or large\?", question):
        return the(m[1]).size
    if m := re.fullmatch(r"what pattern is the (\w+)\?", question):
        return the(m[1]).texture
    if m := re.fullmatch(r"where is the (\w+)\?", question):
        row = ["top", "", "bottom"][the(m[1]).y * 3 // 64]
        column = ["left", "", "right"][the(m[1]).x * 3 // 64]
        return f"{row} {column}".strip() or "center"
    if m := re.fullmatch(r"is there an? (\w+) (\w+)\?", question):
        return yes(any((o.colour, o.shape) == (m[1], m[2]) for o in objects))
    if m := re.fullmatch(r"what is (left of|right of|above|below) the (\w+)\?", question):
        (one,) = (o for o in objects if is_related(o, m[1], the(m[2])))
        return one.shape
    if m := re.fullmatch(r"is the (\w+) (left of|right of|above|below) the (\w+)\?", question):
        return yes(is_related(the(m[1]), m[2], the(m[3])))
    m = re.fullmatch(r"does it match (a picture of .+)\?", question)
    assert m, question
    return yes(judge(parse_prompt(m[1], FULL), objects).correct)


@pytest.mark.parametrize("split", ["train", "pair", "count", "count_five", "relation"])
def test_every_answer_is_true(split: str) -> None:
    for _, scene, asked in ask(FULL, 300, 8, split):
        for one in asked:
            assert answer(one.question, scene) == one.answer, (one, scene)


@pytest.mark.parametrize("grammar", [FULL, SMALL], ids=["full", "small"])
def test_every_kind_is_asked(grammar: Grammar) -> None:
    asked = {q.kind for *_, some in ask(grammar, 300, 6) for q in some}
    # All objects of the small grammar are solid, which leaves no pattern to ask for.
    assert asked == set(KINDS) - (set() if grammar is FULL else {"pattern"})


@pytest.mark.parametrize("count", [0, 1, 2, 6, 20])
def test_there_are_as_many_questions_as_asked_for(count: int) -> None:
    assert all(len(some) == count for *_, some in ask(FULL, 50, count))


def test_kinds_are_asked_as_often_as_they_are_tried() -> None:
    pictures = [(scene, prompt) for prompt, scene, _ in ask(FULL, 2500, 0)]

    def kinds(tries: dict[str, float] | None) -> Counter[str]:
        rng = np.random.default_rng(1)
        return Counter(
            q.kind for picture in pictures for q in questions(*picture, rng, FULL, 30, tries=tries)
        )

    plain = kinds(None)
    weighted = kinds({"is_relation": 3, "background": 0.25, "size": 0})
    # Four standard errors of about 1000 and 3000 draws.
    assert weighted["is_relation"] == pytest.approx(3 * plain["is_relation"], rel=0.15)
    assert plain["background"] == 2500
    assert weighted["background"] == pytest.approx(625, abs=4 * (2500 * 0.25 * 0.75) ** 0.5)
    assert weighted["size"] == 0


def test_few_questions_are_of_different_kinds() -> None:
    for *_, some in ask(FULL, 200, 3):
        assert len({q.kind for q in some}) == 3


@pytest.mark.parametrize("grammar", [FULL, SMALL], ids=["full", "small"])
@pytest.mark.parametrize("count", [2, 6])
@pytest.mark.parametrize("tries", [None, MORE_OF_SOME], ids=["alike", "more of some"])
def test_answers_are_balanced(grammar: Grammar, count: int, tries: dict[str, float] | None) -> None:
    """No answer is more than 1.35 times as frequent as its kind's mean answer, none below half."""
    answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for *_, asked in ask(grammar, 6000 // count, count, tries=tries):
        for one in asked:
            answers[one.kind][one.answer] += 1
    for kind, found in answers.items():
        mean = found.total() / len(found)
        slack = 4 * mean**0.5  # 4 standard errors of a count
        assert max(found.values()) <= 1.35 * mean + slack, (kind, found)
        assert min(found.values()) >= 0.5 * mean - slack, (kind, found)


def test_yes_and_no_are_even() -> None:
    answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for *_, asked in ask(FULL, 1500, 4):
        for one in asked:
            answers[one.kind][one.answer] += 1
    for kind in ("exists", "is_relation", "match"):
        share = answers[kind]["yes"] / answers[kind].total()
        # 0.03 for the few draws of a "no" that held-out words make fail, and 4 standard errors.
        assert abs(share - 0.5) < 0.03 + 4 * 0.5 / answers[kind].total() ** 0.5, kind


def test_training_questions_word_nothing_held_out() -> None:
    pairs = [f"{colour} {shape}?" for colour, shape in HELD_PAIRS]
    triples = [f"the {a} {relation} the {b}?" for a, relation, b in HELD_TRIPLES]
    answers = {(f"what is {relation} the {b}?", a) for a, relation, b in HELD_TRIPLES}
    for *_, asked in ask(FULL, 1000, 8):
        for one in asked:
            assert not any(one.question.endswith(ending) for ending in pairs + triples)
            assert (one.question, one.answer) not in answers
            if one.kind == "match":
                text = one.question.removeprefix("does it match ").removesuffix("?")
                assert split_of(parse_prompt(text, FULL)) == "train"
            assert not (one.question.startswith("how many") and one.answer == "five")


def test_held_out_pictures_are_asked_about_what_is_held_out() -> None:
    asked = [q for *_, some in ask(FULL, 200, 8, "pair") for q in some]
    pairs = [f"{colour} {shape}?" for colour, shape in HELD_PAIRS]
    held = [q.answer for q in asked if q.kind == "exists" and q.question.endswith(tuple(pairs))]
    assert {"yes", "no"} == set(held)


def test_a_seed_gives_the_same_questions() -> None:
    assert ask(FULL, 20, 6) == ask(FULL, 20, 6)
