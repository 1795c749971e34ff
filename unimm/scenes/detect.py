"""An exact detector: the renderer's masks, fitted to what stands out from the background.

It is proved on rendered pictures, also blurred and noisy ones. What stands out and fits no mask
(a warped shape, two objects that touch) is reported as `world.UNKNOWN`, so that no picture with
something odd in it is judged right.
"""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unimm.scenes.components import find_components
from unimm.scenes.fitting import Float, padded
from unimm.scenes.grouping import Detection, Surroundings, merge_fragments
from unimm.scenes.render import render_background
from unimm.scenes.world import BACKGROUNDS, COLOURS, EDGE_MARGIN, PICTURE_SIZE, STYLES

_CONTRAST = 48.0
"""Distance in RGB from the background that stands out: half of white on sky, the faintest."""

_NOISE_LEVELS = 3.2
"""The same in standard deviations of the noise, where that is more."""

_NOISE_PER_DEVIATION = 1.25
"""Standard deviation of Gaussian noise over its mean absolute value."""

_BACKGROUND_LIMIT = 80.0
"""Mean distance, summed over RGB, of the picture's edge from the nearest background; a picture
beyond it shows no background of the world (noise of 0.05 has 31, uniform noise 150 and more)."""

_MIN_FRAGMENT_AREA = 4
_MIN_AREA = 16
"""Pixels; the smallest object has about 50, and noise makes specks of up to a few."""


def detect(picture: NDArray[Any], colours: tuple[str, ...] = tuple(COLOURS)) -> list[Detection]:
    """Return the objects of a picture, uint8 of (64, 64, 3), RGB, in reading order of their tops.

    Args:
        picture: To look at.
        colours: What an object's may be called: names, or blends of two.

    Returns:
        The objects. None for a picture of nothing but background, and for one without any
        background of the world, such as noise.
    """
    pixels = _checked(picture)
    nearest = _nearest_background(pixels)
    if nearest is None:
        return []
    index, residual = nearest
    # A drawn picture's background may be a little off; its edge tells by how much.
    offset = np.partition(residual, len(residual) // 2, axis=0)[len(residual) // 2]  # median
    noise = _NOISE_PER_DEVIATION * float(np.minimum(np.abs(residual - offset), 80).mean())
    background = _backgrounds()[1][index] + offset
    contrast = pixels - background
    limit = max(_CONTRAST, _NOISE_LEVELS * noise)
    stands_out = np.einsum("yxc,yxc->yx", contrast, contrast) > limit**2
    fragments = [c for c in find_components(stands_out) if c.area >= _MIN_FRAGMENT_AREA]
    groups = merge_fragments(Surroundings(tuple(fragments), padded(contrast), background, colours))
    return [group.detection for group in groups if group.area >= _MIN_AREA]


def detect_background(picture: NDArray[Any]) -> tuple[str, str] | None:
    """Return the background's colour and style, or None where there is none of the world."""
    nearest = _nearest_background(_checked(picture))
    return None if nearest is None else _backgrounds()[0][nearest[0]]


def _checked(picture: NDArray[Any]) -> Float:
    if picture.shape != (PICTURE_SIZE, PICTURE_SIZE, 3) or picture.dtype != np.uint8:
        raise ValueError(
            f"a picture of the world is uint8 of (64, 64, 3), not {picture.dtype} of "
            f"{picture.shape}; convert or resize it"
        )
    return picture.astype(np.float32)


@cache
def _edge_indices() -> NDArray[np.intp]:
    edge = np.ones((PICTURE_SIZE, PICTURE_SIZE), dtype=bool)
    edge[EDGE_MARGIN:-EDGE_MARGIN, EDGE_MARGIN:-EDGE_MARGIN] = False
    return np.flatnonzero(edge)


@cache
def _backgrounds() -> tuple[tuple[tuple[str, str], ...], Float, Float]:
    """Return the names of all backgrounds, their pictures and the edges of these."""
    names = tuple((background, style) for background in BACKGROUNDS for style in STYLES)
    pictures = np.stack([render_background(*name) for name in names]).astype(np.float32)
    edges = pictures.reshape(len(names), -1, 3)[:, _edge_indices()]
    return names, pictures, np.ascontiguousarray(edges)


def _nearest_background(pixels: Float) -> tuple[int, Float] | None:
    """Return the index of the background that the edge shows, if any, and what the edge adds."""
    edge = pixels.reshape(-1, 3)[_edge_indices()]
    # Cut, so that an object at the edge counts little.
    distances = np.minimum(np.abs(_backgrounds()[2] - edge).sum(-1), 240).mean(-1)
    index = int(distances.argmin())
    if distances[index] > _BACKGROUND_LIMIT:
        return None
    return index, edge - _backgrounds()[2][index]
