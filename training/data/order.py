"""The order of a run's samples, as a pure function of the seed and a global sample number.

A position is then one integer, whatever the number of ranks and workers: each takes a strided
slice of the same sequence. Nothing is drawn one after another, so nothing has to be replayed.

The numbers come from Philox, whose stream numpy keeps from version to version; the permutations of
``numpy.random.Generator`` may change and would break a resumed run.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PERIOD = 4096
"""Samples after which a mixture's shares are met exactly."""

_BLOCKS, _WINDOW, _MIXTURE = 0, 1, 2

Indices = NDArray[np.int64]


def permutation(size: int, *key: int) -> Indices:
    """Return the permutation of ``range(size)`` that belongs to a key of integers."""
    # The length is part of the key because the hash does not see zeros at the end.
    seed = np.random.SeedSequence((len(key), *key))
    draws = np.random.Philox(seed).random_raw(size)
    order: Indices = np.argsort(draws, kind="stable")
    return order


class ShuffledOrder:
    """The order in which one source is read, over and over.

    In each pass, its blocks (files) change places, and then samples change places within windows
    of ``buffer`` samples: what a shuffle buffer does, but by position. A window's samples lie in
    few files, so reading stays local.

    Args:
        block_sizes: Samples of each block, in the order in which they are stored.
        seed: Of the run.
        source: Number of the source, so that sources of one size differ.
        buffer: Samples of a window; None keeps the stored order.
    """

    def __init__(
        self, block_sizes: Sequence[int], *, seed: int, source: int, buffer: int | None
    ) -> None:
        self._sizes = np.asarray(block_sizes, dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)])
        self.size = int(self._starts[-1])
        self._key = (seed, source)
        self._buffer = buffer
        self._pass: tuple[int, Indices, Indices] | None = None
        self._window: tuple[int, int, Indices] | None = None

    def index(self, position: int) -> int:
        """Return which sample of the source stands at a position, counted over all passes."""
        number, within = divmod(position, self.size)
        if self._buffer is None:
            return within
        window, offset = divmod(within, self._buffer)
        shuffled = window * self._buffer + int(self._shuffled(number, window)[offset])
        blocks, starts = self._blocks(number)
        place = int(np.searchsorted(starts, shuffled, side="right")) - 1
        return int(self._starts[blocks[place]]) + shuffled - int(starts[place])

    def _shuffled(self, number: int, window: int) -> Indices:
        if self._window is None or self._window[:2] != (number, window):
            assert self._buffer is not None
            width = min(self._buffer, self.size - window * self._buffer)
            drawn = permutation(width, *self._key, _WINDOW, number, window)
            self._window = (number, window, drawn)
        return self._window[2]

    def _blocks(self, number: int) -> tuple[Indices, Indices]:
        """Return the blocks in the order of a pass, and the position at which each starts."""
        if self._pass is None or self._pass[0] != number:
            blocks = permutation(len(self._sizes), *self._key, _BLOCKS, number)
            starts = np.concatenate([[0], np.cumsum(self._sizes[blocks])])
            self._pass = (number, blocks, starts)
        return self._pass[1], self._pass[2]


class Mixture:
    """Which source each sample of the run comes from.

    Shares are rounded to 1/4096 and then exact: of any 4096 samples from a multiple of 4096 on,
    each source gives its share. Inside, sources are mixed at random.

    Args:
        weights: Relative shares.
        seed: Of the run.

    Raises:
        ValueError: A weight is too small a part of all to appear.
    """

    def __init__(self, weights: Sequence[float], *, seed: int) -> None:
        self._seed = seed
        self.quotas = _quotas(weights)
        self._sources = np.repeat(np.arange(len(weights)), self.quotas)
        self._period: tuple[int, Indices, Indices] | None = None

    def pick(self, number: int) -> tuple[int, int]:
        """Return the source of a sample and its position in that source's order."""
        if len(self.quotas) == 1:
            return 0, number
        period, offset = divmod(number, PERIOD)
        sources, ranks = self._drawn(period)
        source = int(sources[offset])
        return source, period * self.quotas[source] + int(ranks[offset])

    def _drawn(self, period: int) -> tuple[Indices, Indices]:
        if self._period is None or self._period[0] != period:
            sources = self._sources[permutation(PERIOD, self._seed, _MIXTURE, period)]
            ranks = np.empty(PERIOD, dtype=np.int64)
            for source, quota in enumerate(self.quotas):
                ranks[sources == source] = np.arange(quota)
            self._period = (period, sources, ranks)
        return self._period[1], self._period[2]


def _quotas(weights: Sequence[float]) -> list[int]:
    """Return how many of ``PERIOD`` samples each source gives: largest remainders round up."""
    exact = np.asarray(weights, dtype=np.float64) / sum(weights) * PERIOD
    if (exact < 0.5).any():
        worst = int(exact.argmin())
        raise ValueError(
            f"weight {weights[worst]} is less than 1/{2 * PERIOD} of all weights; raise it or "
            f"delete the source"
        )
    quotas = np.maximum(np.floor(exact).astype(int), 1)
    # Rounding small shares up to 1 may leave one too many.
    while quotas.sum() > PERIOD:
        quotas[int(quotas.argmax())] -= 1
    remainders = exact - quotas
    for source in np.argsort(-remainders, kind="stable")[: PERIOD - int(quotas.sum())]:
        quotas[source] += 1
    return [int(quota) for quota in quotas]
