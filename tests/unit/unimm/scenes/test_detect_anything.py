"""The detector judges what a model draws, so no picture may stop it."""

import numpy as np
import pytest

from unimm.scenes import BACKGROUNDS, COLOURS, PICTURE_SIZE, detect


@pytest.mark.parametrize("seed", range(4))
def test_any_picture_can_be_judged(seed: int) -> None:
    """Blocks of the world's colours, cut off by the edges: fits drift out of the picture there."""
    rng = np.random.default_rng(seed)
    colours = list(COLOURS.values())
    backgrounds = list(BACKGROUNDS.values())
    for _ in range(60):
        picture = np.empty((PICTURE_SIZE, PICTURE_SIZE, 3))
        picture[:] = backgrounds[rng.integers(len(backgrounds))]
        for _ in range(rng.integers(1, 7)):
            width, height = rng.integers(3, 26, 2)
            left, top = rng.integers(-4, PICTURE_SIZE - 2, 2)
            block = picture[max(top, 0) : top + height, max(left, 0) : left + width]
            block[:] = colours[rng.integers(len(colours))]
        picture += rng.normal(0, rng.uniform(0, 20), picture.shape)
        for found in detect(picture.clip(0, 255).astype(np.uint8)):
            assert 0 <= found.x < PICTURE_SIZE
            assert 0 <= found.y < PICTURE_SIZE
