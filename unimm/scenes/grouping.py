"""From what stands out of a picture's background to objects."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from unimm.scenes.components import Component
from unimm.scenes.fitting import BLURS_PX, HALF_WINDOW, Float, fit_object
from unimm.scenes.world import UNKNOWN

_MIN_FIT = 0.6
"""Share of what stands out that the best object must explain."""

_GOOD_FIT = 0.8
"""Share beyond which no other fit is tried."""

_LENGTHS = {"small": (7, 16), "large": (14, 26)}
"""Shortest and longest side that the box of what stands out may have, by size."""

_NEAR_PX = 5
"""Fragments this near may be one object: a blurred row of marks and what hides beside it."""


@dataclass(frozen=True, slots=True)
class Detection:
    """One object that was found; the centre is in pixels as in a scene."""

    shape: str
    colour: str
    size: str
    texture: str
    x: int
    y: int


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What stands out in a picture, and from what."""

    fragments: tuple[Component, ...]
    contrast: Float
    """Picture less background, padded."""
    background: Float
    colours: tuple[str, ...]
    """What an object's colour may be called."""

    def mask(self, members: Sequence[Component]) -> NDArray[np.bool_]:
        """Return a padded array that is True at the fragments' pixels."""
        mask = np.zeros(self.contrast.shape[:2], dtype=bool)
        inner = mask[HALF_WINDOW:-HALF_WINDOW, HALF_WINDOW:-HALF_WINDOW]
        for component in members:
            for row, start, end in component.runs:
                inner[row, start:end] = True
        return mask


@dataclass(frozen=True, slots=True)
class Group:
    """Fragments taken for one object, with what is left of their contrast unexplained."""

    members: tuple[Component, ...]
    area: int
    error: float
    detection: Detection
    is_good: bool = False
    """Whether nothing better is worth looking for."""


def merge_fragments(around: Surroundings) -> list[Group]:
    """Return one group an object; near fragments are merged where that explains them better.

    Blurred marks can take on the background's colour and so split an object.
    """
    groups = [_group((fragment,), around) for fragment in around.fragments]
    is_merging = True
    while is_merging:
        is_merging = False
        for some in _candidates(groups):
            merged = _group(tuple(c for g in some for c in g.members), around)
            if merged.detection.shape != UNKNOWN and merged.error < sum(
                group.error for group in some
            ):
                groups = [g for g in groups if g not in some] + [merged]
                is_merging = True
                break
    return groups


def _candidates(groups: Sequence[Group]) -> list[tuple[Group, ...]]:
    """Return sets of groups that may be one object: all that are near each other, then pairs."""
    pairs = [
        (first, second)
        for first, second in combinations(groups, 2)
        if not (first.is_good and second.is_good) and _are_near(first, second)
    ]
    if len(pairs) < 2:
        return list(pairs)
    clusters: list[list[Group]] = []
    for pair in pairs:
        touched = [c for c in clusters if any(g in c for g in pair)]
        joined = [g for c in touched for g in c]
        joined += [g for g in pair if g not in joined]
        clusters = [c for c in clusters if c not in touched] + [joined]
    return [tuple(c) for c in clusters if len(c) > 2] + list(pairs)


def _are_near(first: Group, second: Group) -> bool:
    a, b = _box(first.members), _box(second.members)
    gap = max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3])
    return gap <= _NEAR_PX


def _box(members: Sequence[Component]) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom."""
    return (
        min(c.left for c in members),
        min(c.top for c in members),
        max(c.right for c in members),
        max(c.bottom for c in members),
    )


def _group(members: tuple[Component, ...], around: Surroundings) -> Group:
    """Fit an object to the fragments."""
    left, top, right, bottom = _box(members)
    centre = (left + right + 1) // 2, (top + bottom + 1) // 2
    length = max(right - left, bottom - top)
    area = sum(c.area for c in members)
    seen = around.mask(members)
    contrast = around.contrast
    if len(members) < len(around.fragments):
        others = around.mask([c for c in around.fragments if c not in members])
        contrast = np.where(others[..., None], np.float32(0), contrast)
    background = around.background[top:bottom, left:right].mean(axis=(0, 1))
    best = Group(members, area, float(np.square(contrast[seen]).sum()), _unknown(centre))
    sizes = [size for size, (low, high) in _LENGTHS.items() if low <= length <= high]
    for blur_px in BLURS_PX:
        for size in sizes:
            fit = fit_object(
                contrast, background, size, centre, blur_px=blur_px, colours=around.colours
            )
            error, energy = fit.error(seen)
            if error < min(best.error, (1 - _MIN_FIT) * energy):
                found = Detection(fit.shape, fit.colour, fit.size, fit.texture, fit.x, fit.y)
                is_good = error < (1 - _GOOD_FIT) * energy
                best = Group(members, area, error, found, is_good)
        if best.is_good:
            break
    return best


def _unknown(centre: tuple[int, int]) -> Detection:
    return Detection(UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, *centre)
