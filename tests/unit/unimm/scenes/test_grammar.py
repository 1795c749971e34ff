"""Every prompt of the grammars, their wording and their splits."""

import hashlib
import re
from dataclasses import replace
from itertools import chain, pairwise

import pytest

from unimm.scenes import (
    COLOURS,
    RELATIONS,
    SHAPES,
    SKILLS,
    SPLITS,
    Grammar,
    ObjectSpec,
    Prompt,
    Spec,
    prompt_of,
    prompts,
    split_of,
)

FULL, SMALL = Grammar.full(), Grammar.small()

# Distinct prompts by skill, as counted for the grammar that this world reproduces: train, pair,
# count, count_five, relation.
FULL_COUNTS = {
    "single_object": (48, 0, 0, 0, 0),
    "two_object": (56, 0, 0, 0, 0),
    "counting": (174, 35, 55, 88, 0),
    "colors": (65, 15, 0, 0, 0),
    "position": (12164, 6832, 0, 0, 1388),
    "color_attr": (3332, 1708, 0, 0, 0),
}

SHAPE = "(circle|square|triangle|star|cross|ring|heart|diamond)"
COLOUR = "(?:red|orange|yellow|green|blue|purple|pink|brown|black|white)"
COLOURED = rf"(?:an orange|a (?!orange){COLOUR}) {SHAPE}"
PLURALS = "(?:circles|squares|triangles|stars|crosses|rings|hearts|diamonds)"
WORDINGS = {
    "single_object": rf"a picture of a (?:(?:small|large|solid|striped|dotted) )?{SHAPE}",
    "two_object": rf"a picture of a {SHAPE} and a (?!\1){SHAPE}",
    "counting": rf"a picture of (?:two|three|four|five) (?:{COLOUR} )?{PLURALS}",
    "colors": rf"a picture of {COLOURED}",
    "position": rf"a picture of (?:a {SHAPE} (?:left of|right of|above|below) a {SHAPE}"
    rf"|{COLOURED} (?:left of|right of|above|below) {COLOURED})",
    "color_attr": rf"a picture of {COLOURED} and {COLOURED}",
}

HELD_PAIRS = {
    "black circle",
    "blue cross",
    "brown ring",
    "brown square",
    "green ring",
    "green square",
    "orange diamond",
    "orange star",
    "pink triangle",
    "purple diamond",
    "purple star",
    "red circle",
    "white diamond",
    "white star",
    "yellow heart",
}
HELD_COUNTS = {"two diamonds", "three crosses", "three hearts", "four rings", "four stars"}


def split_by_words(text: str) -> str:
    """Tell the split from the prompt's words alone."""
    words = text.removeprefix("a picture of ").split()
    if words[0] == "five":
        return "count_five"
    if f"{words[0]} {words[-1]}" in HELD_COUNTS:
        return "count"
    singular = [re.sub("(?<=cross)es$|s$", "", w) if w != "cross" else w for w in words]
    if any(f"{a} {b}" in HELD_PAIRS for a, b in pairwise(singular)):
        return "pair"
    for relation in RELATIONS:
        if f" {relation} " in text:
            first, second = (w for w in words if w in SHAPES)
            if hashlib.sha256(f"{first}|{relation}|{second}".encode()).digest()[0] < 26:
                return "relation"
    return "train"


def everything(grammar: Grammar, skill: str) -> list[Prompt]:
    return list(chain.from_iterable(prompts(grammar, skill, split) for split in SPLITS))


@pytest.mark.parametrize("skill", SKILLS)
def test_the_full_grammar_has_as_many_prompts_as_was_counted(skill: str) -> None:
    assert tuple(len(prompts(FULL, skill, split)) for split in SPLITS) == FULL_COUNTS[skill]


@pytest.mark.parametrize("skill", SKILLS)
def test_every_prompt_is_worded_as_its_skill_asks(skill: str) -> None:
    found = everything(FULL, skill)
    wrong = [p.text for p in found if not re.fullmatch(WORDINGS[skill], p.text)]
    assert not wrong
    assert {p.skill for p in found} == {skill}
    assert len({p.text for p in found}) == len(found)


@pytest.mark.parametrize("skill", ["position", "color_attr"])
def test_two_objects_have_two_kinds_and_two_colours(skill: str) -> None:
    for prompt in everything(FULL, skill):
        first, second = prompt.spec.objects
        assert first.shape != second.shape
        assert first.colour != second.colour or first.colour is None


@pytest.mark.parametrize("skill", SKILLS)
def test_splits_follow_the_words(skill: str) -> None:
    for split in SPLITS:
        for prompt in prompts(FULL, skill, split):
            assert split_of(prompt) == split == split_by_words(prompt.text), prompt.text


def test_the_small_grammar_says_nothing_outside_it() -> None:
    text = " ".join(p.text for skill in SKILLS for p in everything(SMALL, skill))
    outside = "stars? rings? hearts? diamonds? orange purple pink brown striped dotted four five"
    assert not re.search(rf"\b({'|'.join(outside.split())})\b", text)
    assert {"circle", "crosses", "large", "solid", "three"} <= set(text.split())


def test_every_prompt_of_the_small_grammar_is_one_of_the_full() -> None:
    for skill in SKILLS:
        for split in SPLITS:
            assert set(prompts(SMALL, skill, split)) <= set(prompts(FULL, skill, split))


def test_a_grammar_of_one_object_has_no_prompts_of_two() -> None:
    one = replace(SMALL, max_objects=1)
    assert {s for s in SKILLS if everything(one, s)} == {"single_object", "colors"}


@pytest.mark.parametrize("grammar", [FULL, SMALL], ids=["full", "small"])
def test_a_grammar_comes_back_from_its_dictionary(grammar: Grammar) -> None:
    assert Grammar.from_dict(grammar.to_dict()) == grammar


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shapes": ["circle", "blob"]}, "shapes has 'blob'"),
        ({"shapes": []}, "at least one name"),
        ({"colours": ["red", "red"]}, "each once"),
        ({"colours": "red"}, "colours is 'red'; give a list"),
        ({"max_objects": 6}, "max_objects is 6; give 1 to 5"),
        ({"max_objects": True}, "max_objects is True"),
        ({"textures": ["striped"]}, "add solid"),
        ({"fonts": []}, "check fonts"),
    ],
)
def test_a_wrong_dictionary_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Grammar.from_dict(FULL.to_dict() | change)


def test_a_dictionary_without_a_key_is_refused() -> None:
    data = FULL.to_dict()
    del data["styles"]
    with pytest.raises(ValueError, match="check styles"):
        Grammar.from_dict(data)


@pytest.mark.parametrize(
    "spec",
    [
        Spec((ObjectSpec("circle", "red", size="large"),)),
        Spec((ObjectSpec("circle"), ObjectSpec("square", "red"))),
        Spec((ObjectSpec("circle", "red"), ObjectSpec("square", "red"))),
        Spec((ObjectSpec("circle"), ObjectSpec("circle")), "above"),
        Spec((ObjectSpec("circle", size="large"),) * 2),
        Spec((ObjectSpec("circle"), ObjectSpec("ring"), ObjectSpec("star"))),
        Spec((ObjectSpec("circle"),) * 6),
    ],
)
def test_what_no_prompt_says_is_refused(spec: Spec) -> None:
    with pytest.raises(ValueError, match="no prompt of the skills"):
        prompt_of(spec)


@pytest.mark.parametrize(("skill", "split"), [("telling", "train"), ("colors", "test")])
def test_unknown_skills_and_splits_are_refused(skill: str, split: str) -> None:
    with pytest.raises(ValueError, match="is none of"):
        prompts(FULL, skill, split)


def test_the_rules_cover_every_colour_and_shape() -> None:
    """Each colour and each shape is also seen in training, in other pairs."""
    trained = {p.text.split()[-2:][0] for p in prompts(FULL, "colors")}
    shapes = {p.spec.objects[0].shape for p in prompts(FULL, "colors")}
    assert trained == set(COLOURS)
    assert shapes == set(SHAPES)
