"""From words to prompts, and what is said of words that do not fit."""

import pytest

from unimm.scenes import SKILLS, SPLITS, Grammar, ObjectSpec, parse_prompt, prompts

FULL, SMALL = Grammar.full(), Grammar.small()


@pytest.mark.parametrize("skill", SKILLS)
def test_every_prompt_of_the_small_grammar_is_read_back(skill: str) -> None:
    for split in SPLITS:
        for prompt in prompts(SMALL, skill, split):
            assert parse_prompt(prompt.text, SMALL) == prompt


@pytest.mark.parametrize("skill", SKILLS)
def test_prompts_of_the_full_grammar_are_read_back(skill: str) -> None:
    for split in SPLITS:
        for prompt in prompts(FULL, skill, split)[::23]:
            assert parse_prompt(prompt.text, FULL) == prompt


def test_upper_case_and_spaces_do_not_matter() -> None:
    prompt = parse_prompt("  A picture of  an Orange circle above a RED cross\n", FULL)
    assert prompt.text == "a picture of an orange circle above a red cross"
    assert prompt.skill == "position"
    assert prompt.spec.objects == (ObjectSpec("circle", "orange"), ObjectSpec("cross", "red"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "word it as in"),
        ("a dog", "word it as in"),
        ("a picture of circles", "word it as in"),
        ("a picture of a dog", "'dog' is no shape of it; choose one of circle, square"),
        ("a picture of a teal circle", "'teal' is no word of it; before a shape comes one of red"),
        ("a picture of a orange circle", "word it 'a picture of an orange circle'"),
        ("a picture of six circles", "'six' is no number of it"),
        ("a picture of one circle", "'one' is no number of it"),
        ("a picture of two circle", "say 'circles' after 'two'"),
        ("a picture of two large circles", "'large' is said of a single object only"),
        ("a picture of a red", "'red' is no shape of it"),
        ("a picture of a large red circle", "more than one word before its shape"),
        ("a picture of a circle and a circle", "the two objects have one shape, 'circle'"),
        ("a picture of a circle and a red square", "only one of the objects has a colour"),
        ("a picture of a red circle and a red square", "both objects are red"),
        ("a picture of a large circle and a square", "'large' is said of a single object only"),
        ("a picture of a circle near a square", "more than one word before its shape"),
        ("a picture of a circle above square", "'square' stands where 'a' or 'an' is expected"),
        ("a picture of a circle above a", "a shape is missing"),
        ("a picture of a circle above a square and a ring", "more than one word"),
    ],
)
def test_what_does_not_fit_is_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match="outside the grammar") as caught:
        parse_prompt(text, FULL)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a picture of a heart", "the shape 'heart' is outside it, which has circle, square"),
        ("a picture of a purple circle", "the colour 'purple' is outside it"),
        ("a picture of a striped circle", "the texture 'striped' is outside it"),
        (
            "a picture of four circles",
            "'four' is outside it, the grammar's pictures have at most 3",
        ),
    ],
)
def test_words_that_a_smaller_grammar_lacks_are_named(text: str, message: str) -> None:
    assert parse_prompt(text, FULL).text == text
    with pytest.raises(ValueError, match="outside the grammar") as caught:
        parse_prompt(text, SMALL)
    assert message in str(caught.value)
