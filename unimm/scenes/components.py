"""Connected components of a small mask, by runs: numpy finds the runs, union-find joins them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Component:
    """One component: its area, its box (right and bottom exclusive) and its pixels."""

    area: int
    left: int
    top: int
    right: int
    bottom: int
    runs: tuple[tuple[int, int, int], ...]
    """(row, first column, column after the last)."""


def find_components(mask: NDArray[np.bool_]) -> list[Component]:
    """Return the 8-connected components of True pixels, in reading order of their first pixels."""
    height, width = mask.shape
    padded = np.zeros((height, width + 1), dtype=np.int8)
    padded[:, :width] = mask
    edges = np.flatnonzero(np.diff(padded.ravel(), prepend=np.int8(0)))
    starts, ends = edges[::2].tolist(), edges[1::2].tolist()
    runs = [
        (start // (width + 1), start % (width + 1), start % (width + 1) + end - start)
        for start, end in zip(starts, ends, strict=True)
    ]
    groups: dict[int, list[tuple[int, int, int]]] = {}
    for run, root in zip(runs, _roots(runs), strict=True):
        groups.setdefault(root, []).append(run)
    return [_component(group) for group in groups.values()]


def _roots(runs: list[tuple[int, int, int]]) -> list[int]:
    """Return for every run the first run of its component."""
    parent = list(range(len(runs)))

    def root(k: int) -> int:
        while parent[k] != k:
            parent[k] = k = parent[parent[k]]
        return k

    first = 0  # first run that may still touch the current one
    for k, (row, start, end) in enumerate(runs):
        while runs[first][0] < row - 1 or (runs[first][0] < row and runs[first][2] < start):
            first += 1
        j = first
        while j < k and runs[j][0] < row and runs[j][1] <= end:
            a, b = root(j), root(k)
            parent[max(a, b)] = min(a, b)
            j += 1
    return [root(k) for k in range(len(runs))]


def _component(runs: list[tuple[int, int, int]]) -> Component:
    return Component(
        area=sum(end - start for _, start, end in runs),
        left=min(start for _, start, _ in runs),
        top=runs[0][0],
        right=max(end for *_, end in runs),
        bottom=runs[-1][0] + 1,
        runs=tuple(runs),
    )
