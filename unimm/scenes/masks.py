"""Anti-aliased masks of the shapes and the white marks of their textures.

A mask covers an object's box, two radii wide, with the share of each pixel that is inside.
"""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from unimm.scenes.world import SIZES

Mask = NDArray[np.float32]
_Inside = NDArray[np.bool_]
_Grid = NDArray[np.float64]

_SUPERSAMPLING = 16

_ARM = 0.34
"""Half the width of a cross's arms, in radii."""

_HOLE = 0.52
"""Radius of a ring's hole, in radii."""


def _polygon(u: _Grid, v: _Grid, corners: list[tuple[float, float]]) -> _Inside:
    """Tell by the even-odd rule which points lie in a polygon."""
    inside = np.zeros(u.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        if ay == by:
            continue
        crosses = (ay > v) != (by > v)
        inside ^= crosses & (u < (bx - ax) * (v - ay) / (by - ay) + ax)
    return inside


def _star(u: _Grid, v: _Grid) -> _Inside:
    # Radius 1.05, a little below the middle: the box is then filled in both directions.
    radii = [1.05, 0.45] * 5
    angles = [math.pi * k / 5 for k in range(10)]
    corners = [(r * math.sin(a), 0.1 - r * math.cos(a)) for r, a in zip(radii, angles, strict=True)]
    return _polygon(u, v, corners)


def _heart(u: _Grid, v: _Grid) -> _Inside:
    x, y = 1.14 * u, 0.12 - 1.12 * v
    return np.asarray((x**2 + y**2 - 1) ** 3 <= x**2 * y**3)


def _cross(u: _Grid, v: _Grid) -> _Inside:
    return np.minimum(np.abs(u), np.abs(v)) <= _ARM


def _ring(u: _Grid, v: _Grid) -> _Inside:
    squared = u**2 + v**2
    return (squared <= 1) & (squared >= _HOLE**2)


_INSIDE: dict[str, Callable[[_Grid, _Grid], _Inside]] = {
    "circle": lambda u, v: u**2 + v**2 <= 1,
    "square": lambda u, v: np.ones(u.shape, dtype=bool),
    "triangle": lambda u, v: 2 * np.abs(u) <= v + 1,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "heart": _heart,
    "diamond": lambda u, v: np.abs(u) + np.abs(v) <= 1,
}
"""By shape: which points lie inside, u to the right and v down, in radii from the centre."""


@cache
def shape_mask(shape: str, size: str) -> Mask:
    """Return the share of every pixel of the box that the shape covers, in [0, 1]."""
    width = 2 * SIZES[size]
    samples = width * _SUPERSAMPLING
    axis = (np.arange(samples) + 0.5) / (samples / 2) - 1
    inside = _INSIDE[shape](*np.meshgrid(axis, axis))
    blocks = inside.reshape(width, _SUPERSAMPLING, width, _SUPERSAMPLING)
    mask: Mask = blocks.mean(axis=(1, 3), dtype=np.float64).astype(np.float32)
    mask.setflags(write=False)
    return mask


@cache
def texture_mask(texture: str, size: str) -> Mask:
    """Return 1 where a pixel of the box is a white mark, 0 where it has the object's colour."""
    width = 2 * SIZES[size]
    rows = np.arange(width) % 4 >= 2
    marks = {
        "solid": np.zeros((width, width), dtype=bool),
        "striped": np.broadcast_to(rows[:, None], (width, width)),
        "dotted": rows[:, None] & rows[None, :],
    }[texture]
    mask = marks.astype(np.float32)
    mask.setflags(write=False)
    return mask
