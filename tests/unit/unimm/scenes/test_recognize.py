"""What a picture shows, as a scene, and what may be said of it."""

from dataclasses import replace

import numpy as np
import pytest

from unimm.scenes import (
    SKILLS,
    UNKNOWN,
    Grammar,
    Scene,
    SceneObject,
    detect,
    judge,
    prompt_for,
    recognize,
    render,
    sample_prompt,
    sample_scene,
    shows_held_out,
    split_of,
)

GRAMMARS = {"small": Grammar.small(), "full": Grammar.full()}


@pytest.mark.parametrize("name", GRAMMARS)
def test_a_rendered_scene_is_recognized(name: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        prompt = sample_prompt(rng, GRAMMARS[name])
        scene = sample_scene(rng, GRAMMARS[name], prompt)
        picture = render(scene)
        found = recognize(picture, detect(picture))
        assert found is not None
        assert set(found.objects) == set(scene.objects)
        assert (found.background, found.style) == (scene.background, scene.style)


def test_a_picture_with_something_nameless_in_it_is_not() -> None:
    rng = np.random.default_rng(0)
    prompt = sample_prompt(rng, Grammar.small(), skill="colors")
    picture = render(sample_scene(rng, Grammar.small(), prompt))
    (seen,) = detect(picture)
    assert recognize(picture, [seen]) is not None
    assert recognize(picture, [replace(seen, shape=UNKNOWN)]) is None
    assert recognize(picture, []) is None
    assert recognize(np.zeros_like(picture), [seen]) is None


@pytest.mark.parametrize("name", GRAMMARS)
def test_a_found_prompt_is_a_true_one_of_training_in_the_order_of_the_scene(name: str) -> None:
    rng = np.random.default_rng(1)
    grammar = GRAMMARS[name]
    skills = set()
    for _ in range(400):
        asked = sample_prompt(rng, grammar)
        sample = prompt_for(sample_scene(rng, grammar, asked), rng, grammar)
        if sample is None:
            continue
        prompt, scene = sample
        skills.add(prompt.skill)
        assert judge(prompt, scene.objects).correct
        assert split_of(prompt) == "train"
        assert not shows_held_out(prompt, scene.objects)
        for spec, one in zip(prompt.spec.objects, scene.objects, strict=True):
            assert (spec.shape, spec.colour or one.colour) == (one.shape, one.colour)
    assert skills == set(SKILLS)


def one_object(shape: str, colour: str, *, size: str = "large", x: int = 32) -> Scene:
    return Scene((SceneObject(shape, colour, size, "solid", x, 32),), "gray", "plain")


@pytest.mark.parametrize(
    ("scene", "why"),
    [
        (one_object("circle", "red"), "a held-out pair"),
        (one_object("heart", "red"), "a shape without a word"),
        (one_object("circle", "green", size="small"), "a size without a word"),
        (replace(one_object("circle", "green"), background="night"), "another background"),
    ],
)
def test_what_training_must_not_show_has_no_prompt(scene: Scene, why: str) -> None:
    assert prompt_for(scene, np.random.default_rng(0), Grammar.small()) is None, why


def test_things_that_no_prompt_names_together_have_none() -> None:
    scenes = one_object("circle", "green", x=12), one_object("circle", "blue", x=50)
    (first,), (second,) = (scene.objects for scene in scenes)
    both = replace(scenes[0], objects=(first, second))
    assert prompt_for(both, np.random.default_rng(0), Grammar.small()) is not None
    three = replace(scenes[0], objects=(first, second, *one_object("square", "blue").objects))
    assert prompt_for(three, np.random.default_rng(0), Grammar.small()) is None
