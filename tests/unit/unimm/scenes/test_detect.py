"""The detector on clean, blurred and noisy pictures, and on what shows no object."""

import numpy as np
import pytest
from numpy.typing import NDArray

from unimm.scenes import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIZES,
    STYLES,
    TEXTURES,
    UNKNOWN,
    Detection,
    Grammar,
    Prompt,
    Scene,
    SceneObject,
    detect,
    detect_background,
    judge,
    near_misses,
    render,
    render_background,
    render_batch,
    sample_prompt,
    sample_scene,
)
from unimm.scenes.world import SOLID_COLOURS

FULL = Grammar.full()
HELD_OUT = ("pair", "count", "count_five", "relation")


def sample(count: int, seed: int) -> list[tuple[Prompt, Scene]]:
    """Draw scenes, a third of them from held-out splits."""
    rng = np.random.default_rng(seed)
    splits = ["train" if k % 3 else HELD_OUT[k // 3 % 4] for k in range(count)]
    drawn = [sample_prompt(rng, FULL, split) for split in splits]
    return [(prompt, sample_scene(rng, FULL, prompt)) for prompt in drawn]


def blurred(pictures: NDArray[np.uint8], sigma: float) -> NDArray[np.uint8]:
    kernel = np.exp(-np.square(np.arange(-3, 4)) / (2 * sigma**2))
    kernel /= kernel.sum()
    result = pictures.astype(np.float64)
    for axis in (1, 2):
        pad = [(3, 3) if k == axis else (0, 0) for k in range(4)]
        wide = np.pad(result, pad, mode="edge")
        parts = [np.take(wide, range(k, k + 64), axis) * w for k, w in enumerate(kernel)]
        result = np.sum(parts, axis=0)
    return np.asarray(np.rint(result), dtype=np.uint8)


def noisy(pictures: NDArray[np.uint8], sigma: float, seed: int = 0) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).normal(0, 255 * sigma, pictures.shape)
    return np.asarray(np.rint((pictures + noise).clip(0, 255)), dtype=np.uint8)


def attributes(seen: list[Detection] | tuple[SceneObject, ...]) -> list[tuple[str, ...]]:
    return sorted((one.shape, one.colour, one.size, one.texture) for one in seen)


def test_everything_is_found_in_clean_pictures() -> None:
    drawn = sample(600, seed=1)
    for (prompt, scene), picture in zip(drawn, render_batch([s for _, s in drawn]), strict=True):
        found = detect(picture)
        places = sorted((one.x, one.y) for one in found)
        assert attributes(found) == attributes(scene.objects), (prompt.text, scene)
        assert places == sorted((one.x, one.y) for one in scene.objects)
        assert judge(prompt, found).correct
        assert detect_background(picture) == (scene.background, scene.style)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_object_is_found_on_every_background(shape: str) -> None:
    styles = [(background, style) for background in BACKGROUNDS for style in STYLES]
    objects = [
        SceneObject(shape, colour, size, texture, 31, 33)
        for colour in COLOURS
        for size in SIZES
        for texture in (["solid"] if colour in SOLID_COLOURS else TEXTURES)
    ]
    for k, one in enumerate(objects):
        for background, style in styles[k % 4 :: 4]:
            (found,) = detect(render(Scene((one,), background, style)))
            assert attributes([found]) == attributes((one,))
            assert (found.x, found.y) == (31, 33)


def test_blurred_and_noisy_pictures_are_read_too() -> None:
    drawn = sample(300, seed=2)
    pictures = noisy(blurred(render_batch([s for _, s in drawn]), 0.7), 0.05)
    found = [detect(picture) for picture in pictures]
    right = [judge(prompt, seen).correct for (prompt, _), seen in zip(drawn, found, strict=True)]
    # Measured: 9,994 of 10,000. More than 3 wrong in 300 would be something new.
    assert sum(right) >= 297


def test_near_misses_are_rejected() -> None:
    rng = np.random.default_rng(0)
    drawn = sample(150, seed=3)
    pictures = render_batch([s for _, s in drawn])
    rejected = 0
    for (prompt, scene), picture in zip(drawn, pictures, strict=True):
        found = detect(picture)
        for other in near_misses(prompt, scene, rng, FULL):
            assert not judge(other, found).correct, (other.text, scene)
            rejected += 1
    assert rejected > 300


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("style", STYLES)
def test_an_empty_picture_has_no_objects(background: str, style: str) -> None:
    picture = render_background(background, style)
    assert detect(picture) == []
    assert detect(noisy(picture[None], 0.05)[0]) == []
    assert detect_background(picture) == (background, style)


@pytest.mark.parametrize("level", range(0, 256, 15))
def test_a_picture_of_one_colour_has_no_objects(level: int) -> None:
    assert detect(np.full((64, 64, 3), level, dtype=np.uint8)) == []


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.2, 0.3, 1.0])
def test_noise_has_no_objects(sigma: float) -> None:
    blank = np.full((8, 64, 64, 3), 150, dtype=np.uint8)
    assert [detect(picture) for picture in noisy(blank, sigma)] == [[]] * 8


def test_uniform_noise_has_no_background() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert detect(picture) == []
    assert detect_background(picture) is None


def test_a_background_a_little_off_changes_nothing() -> None:
    """A drawn picture's colours are never exact."""
    drawn = sample(40, seed=4)
    pictures = render_batch([s for _, s in drawn]).astype(int)
    tinted = (pictures + np.array([9, -6, 4])).clip(0, 255).astype(np.uint8)
    for (_, scene), picture in zip(drawn, tinted, strict=True):
        assert attributes(detect(picture)) == attributes(scene.objects)


def test_what_is_no_shape_is_unknown_and_judged_wrong() -> None:
    picture = render_background("gray", "plain").copy()
    picture[30:34, 8:50] = COLOURS["red"]
    (found,) = detect(picture)
    assert found.shape == UNKNOWN
    prompt = sample(1, seed=0)[0][0]
    verdict = judge(prompt, [found])
    assert not verdict.correct
    assert verdict.reason.endswith("found something of no known shape")


def test_objects_that_touch_are_not_two_objects() -> None:
    objects = (
        SceneObject("square", "red", "large", "solid", 20, 30),
        SceneObject("square", "blue", "large", "solid", 40, 30),
    )
    found = detect(render(Scene(objects, "gray", "plain")))
    assert [one.shape for one in found] == [UNKNOWN]


def test_near_objects_stay_two() -> None:
    """Four pixels apart, blurred: the nearest that the world allows."""
    for shape in SHAPES:
        for dx, dy in ((16, 0), (0, 16)):
            objects = (
                SceneObject(shape, "black", "small", "solid", 20, 20),
                SceneObject(shape, "red", "small", "striped", 20 + dx, 20 + dy),
            )
            picture = blurred(render(Scene(objects, "sand", "plain"))[None], 0.7)[0]
            assert attributes(detect(picture)) == attributes(objects)


@pytest.mark.parametrize("wrong", [np.zeros((32, 32, 3), np.uint8), np.zeros((64, 64, 3))])
def test_a_picture_of_another_kind_is_refused(wrong: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="uint8 of \\(64, 64, 3\\)"):
        detect(wrong)
