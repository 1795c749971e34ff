"""Scenes to pictures: cached anti-aliased stamps laid over cached backgrounds."""

from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from unimm.scenes.masks import shape_mask, texture_mask
from unimm.scenes.world import BACKGROUNDS, COLOURS, PICTURE_SIZE, SIZES, Scene, rgb_of

Picture = NDArray[np.uint8]

_GRADIENT = 14
"""Levels that a gradient adds at one end and takes away at the other."""

_CHECK = 7
"""Levels that a chessboard's fields differ from the background's colour."""

_FIELD_PX = 8


@cache
def render_background(background: str, style: str) -> Picture:
    """Return an empty picture, read-only."""
    ramp = np.linspace(_GRADIENT, -_GRADIENT, PICTURE_SIZE)
    field = np.arange(PICTURE_SIZE) // _FIELD_PX
    levels = {
        "plain": np.zeros((1, 1)),
        "vertical": ramp[:, None],
        "horizontal": ramp[None, :],
        "checks": np.where((field[:, None] + field[None, :]) % 2, -_CHECK, _CHECK),
    }[style]
    colour = np.asarray(BACKGROUNDS[background], dtype=np.float64)
    shifted = np.broadcast_to(levels[..., None], (PICTURE_SIZE, PICTURE_SIZE, 1)) + colour
    picture = np.rint(shifted).astype(np.uint8)
    picture.setflags(write=False)
    return picture


@lru_cache(maxsize=8192)  # all of the named colours, and the commonest blends
def _stamp(
    shape: str, colour: str, size: str, texture: str
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return what an object adds to the picture and the share of background that it leaves."""
    cover = shape_mask(shape, size)[..., None]
    marks = texture_mask(texture, size)[..., None]
    ink = np.asarray(rgb_of(colour), dtype=np.float32)
    white = np.asarray(COLOURS["white"], dtype=np.float32)
    # Half a level, since the sum is cut to whole levels.
    return cover * (ink * (1 - marks) + white * marks) + np.float32(0.5), 1 - cover


def _draw(picture: Picture, scene: Scene) -> None:
    picture[:] = render_background(scene.background, scene.style)
    for o in scene.objects:
        ink, left = _stamp(o.shape, o.colour, o.size, o.texture)
        r = SIZES[o.size]
        box = picture[o.y - r : o.y + r, o.x - r : o.x + r]
        box[...] = box * left + ink


def render(scene: Scene) -> Picture:
    """Return the scene's picture, (64, 64, 3), RGB."""
    picture: Picture = render_batch((scene,))[0]
    return picture


def render_batch(scenes: Sequence[Scene]) -> Picture:
    """Return the scenes' pictures, (B, 64, 64, 3), RGB."""
    pictures = np.empty((len(scenes), PICTURE_SIZE, PICTURE_SIZE, 3), dtype=np.uint8)
    for picture, scene in zip(pictures, scenes, strict=True):
        _draw(picture, scene)
    return pictures
