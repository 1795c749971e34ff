"""Pictures: colours, masks and textures where a scene says."""

import numpy as np
import pytest

from unimm.scenes import (
    BACKGROUNDS,
    COLOURS,
    PICTURE_SIZE,
    SHAPES,
    SIZES,
    STYLES,
    TEXTURES,
    Grammar,
    Scene,
    SceneObject,
    render,
    render_background,
    render_batch,
    sample_prompt,
    sample_scene,
)
from unimm.scenes.masks import shape_mask, texture_mask

ALL_SHAPES = pytest.mark.parametrize("shape", SHAPES)


def one_object(
    shape: str, colour: str = "red", size: str = "large", texture: str = "solid"
) -> Scene:
    return Scene((SceneObject(shape, colour, size, texture, 30, 25),), "gray", "plain")


@pytest.mark.parametrize("colour", COLOURS)
def test_an_object_has_its_colour_and_the_rest_the_background(colour: str) -> None:
    picture = render(one_object("square", colour))
    assert picture.dtype == np.uint8
    assert picture.shape == (PICTURE_SIZE, PICTURE_SIZE, 3)
    inside = np.zeros((PICTURE_SIZE, PICTURE_SIZE), dtype=bool)
    inside[15:35, 20:40] = True
    assert (picture[inside] == COLOURS[colour]).all()
    assert (picture[~inside] == BACKGROUNDS["gray"]).all()


@ALL_SHAPES
@pytest.mark.parametrize("size", SIZES)
def test_a_mask_fills_its_box_and_is_symmetric(shape: str, size: str) -> None:
    mask = shape_mask(shape, size)
    assert mask.shape == (2 * SIZES[size], 2 * SIZES[size])
    assert mask.min() >= 0
    assert mask.max() == 1
    np.testing.assert_allclose(mask, mask[:, ::-1], atol=0.01)
    # Something within a pixel of every side, so that the box says where the centre is.
    assert all(side.max() > 0 for side in (mask[:2], mask[-2:], mask[:, :2], mask[:, -2:]))


@pytest.mark.parametrize("size", SIZES)
def test_masks_have_the_areas_of_their_shapes(size: str) -> None:
    """Areas in squared radii, by geometry; supersampled edges are right to a hundredth."""
    expected = {
        "circle": np.pi,
        "square": 4.0,
        "triangle": 2.0,
        "diamond": 2.0,
        "ring": np.pi * (1 - 0.52**2),
        "cross": 4 * (2 * 0.34) - (2 * 0.34) ** 2,
        "star": 5 * 1.05 * 0.45 * np.sin(np.pi / 5),
    }
    for shape, area in expected.items():
        found = shape_mask(shape, size).sum() / SIZES[size] ** 2
        assert found == pytest.approx(area, abs=0.05), shape


def test_no_two_objects_look_alike() -> None:
    """Any two shapes, sizes and textures differ in at least 8 pixels by half or more."""
    stamps = {
        (shape, size, texture): np.pad(
            shape_mask(shape, size) * (1 + texture_mask(texture, size)), 10 - SIZES[size]
        )
        for shape in SHAPES
        for size in SIZES
        for texture in TEXTURES
    }
    names = list(stamps)
    for k, first in enumerate(names):
        for second in names[k + 1 :]:
            differing = np.abs(stamps[first] - stamps[second]) >= 0.5
            assert differing.sum() >= 8, (first, second)


@pytest.mark.parametrize(("texture", "share"), [("striped", 1 / 2), ("dotted", 1 / 4)])
def test_marks_are_white_on_the_colour(texture: str, share: float) -> None:
    box = render(one_object("square", "blue", texture=texture))[15:35, 20:40].reshape(-1, 3)
    white = (box == COLOURS["white"]).all(-1)
    assert white.mean() == share
    assert (box[~white] == COLOURS["blue"]).all()


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_styles_vary_around_the_background_colour(background: str) -> None:
    for style in STYLES:
        picture = render_background(background, style).astype(float)
        np.testing.assert_allclose(picture.mean((0, 1)), BACKGROUNDS[background], atol=0.5)
    down = render_background(background, "vertical").astype(int)
    across = render_background(background, "horizontal").astype(int)
    checks = render_background(background, "checks")
    assert (down[0] - down[-1] == 28).all()
    assert (across[:, 0] - across[:, -1] == 28).all()
    assert len(np.unique(checks.reshape(-1, 3), axis=0)) == 2


def test_cached_arrays_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="read-only"):
        render_background("gray", "plain")[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        shape_mask("circle", "small")[0] = 0


def test_a_batch_is_its_pictures() -> None:
    rng, grammar = np.random.default_rng(0), Grammar.full()
    scenes = [sample_scene(rng, grammar, sample_prompt(rng, grammar)) for _ in range(20)]
    pictures = render_batch(scenes)
    assert pictures.shape == (20, PICTURE_SIZE, PICTURE_SIZE, 3)
    for picture, scene in zip(pictures, scenes, strict=True):
        np.testing.assert_array_equal(picture, render(scene))
    assert render_batch([]).shape == (0, PICTURE_SIZE, PICTURE_SIZE, 3)


@ALL_SHAPES
def test_objects_are_drawn_where_they_are(shape: str) -> None:
    picture = render(one_object(shape, "black")).astype(int)
    rows, columns = np.nonzero(np.abs(picture - 150).sum(-1) > 60)
    assert abs((columns.min() + columns.max() + 1) / 2 - 30) <= 0.5
    assert abs((rows.min() + rows.max() + 1) / 2 - 25) <= 1  # an apex may be thinner than a pixel
