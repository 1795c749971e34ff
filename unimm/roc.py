"""How well scores order right above wrong."""

from collections.abc import Sequence

import numpy as np


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
