"""Connected components against a flood fill."""

import numpy as np
import pytest
from numpy.typing import NDArray

from unimm.scenes.components import find_components


def flood(mask: NDArray[np.bool_]) -> set[frozenset[tuple[int, int]]]:
    """Return the 8-connected components as sets of pixels."""
    left = {(int(r), int(c)) for r, c in zip(*np.nonzero(mask), strict=True)}
    found = set()
    while left:
        front = [left.pop()]
        reached = set(front)
        while front:
            row, column = front.pop()
            near = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            reached |= near
            front.extend(near)
        found.add(frozenset(reached))
    return found


@pytest.mark.parametrize("density", [0.0, 0.1, 0.3, 0.45, 0.6, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 20), (20, 1), (17, 23)])
def test_components_are_those_of_a_flood_fill(density: float, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = rng.random(shape) < density
        components = find_components(mask)
        pixels = [
            frozenset((row, c) for row, start, end in one.runs for c in range(start, end))
            for one in components
        ]
        assert set(pixels) == flood(mask)
        for one, own in zip(components, pixels, strict=True):
            rows, columns = zip(*own, strict=True)
            assert one.area == len(own)
            assert (one.left, one.right) == (min(columns), max(columns) + 1)
            assert (one.top, one.bottom) == (min(rows), max(rows) + 1)


def test_a_spiral_is_one_component() -> None:
    rows = ["#######", "......#", "#####.#", "#...#.#", "#.###.#", "#.....#", "#######"]
    mask = np.array([[c == "#" for c in row] for row in rows])
    (spiral,) = find_components(mask)
    assert spiral.area == mask.sum()
