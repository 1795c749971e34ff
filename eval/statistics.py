"""Small statistics with their uncertainty."""

from collections.abc import Sequence
from math import sqrt

import numpy as np


def wilson_interval(successes: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's 95% interval of a proportion; (0, 1) where nothing was counted."""
    if count == 0:
        return 0.0, 1.0
    share = successes / count
    centre = share + z * z / (2 * count)
    spread = z * sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return (centre - spread) / scale, (centre + spread) / scale


def area_under_roc(scores: Sequence[float], is_positive: Sequence[bool]) -> float:
    """Return how often a positive scores above a negative, ties counting half (Mann-Whitney U).

    NaN where either class is missing.
    """
    values, labels = np.asarray(scores, dtype=np.float64), np.asarray(is_positive, dtype=bool)
    positive, negative = int(labels.sum()), int((~labels).sum())
    if not positive or not negative:
        return float("nan")
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last_rank = counts.cumsum()
    mean_rank = last_rank - (counts - 1) / 2
    rank_sum = mean_rank[inverse][labels].sum()
    return float((rank_sum - positive * (positive + 1) / 2) / (positive * negative))
