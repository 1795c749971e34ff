"""Statistics against known values and brute force."""

from itertools import product
from math import isnan

import numpy as np
import pytest

from eval.statistics import wilson_interval
from unimm.roc import area_under_roc


@pytest.mark.parametrize(
    ("successes", "count", "interval"),
    [
        # By hand from Wilson's formula with z = 1.96, z^2 = 3.8416.
        (0, 10, (0.0, 3.8416 / 13.8416)),
        (10, 10, (10 / 13.8416, 1.0)),
        # Newcombe 1998, table I: 81 of 263, and 15 of 148.
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
    ],
)
def test_wilsons_interval_has_its_published_values(
    successes: int, count: int, interval: tuple[float, float]
) -> None:
    assert wilson_interval(successes, count) == pytest.approx(interval, abs=5e-5)


def test_nothing_counted_says_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_an_interval_covers_as_often_as_it_says() -> None:
    """Over all outcomes of 200 draws with a share of 0.3, weighted by their probability."""
    count, share = 200, 0.3
    rng = np.random.default_rng(0)
    draws = rng.binomial(count, share, size=4000)
    covered = [low <= share <= high for low, high in (wilson_interval(k, count) for k in draws)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)  # four standard errors


@pytest.mark.parametrize("seed", range(5))
def test_area_under_roc_is_the_share_of_rightly_ordered_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 6, size=30).tolist()  # many ties
    labels = (rng.random(30) < 0.4).tolist()
    positive = [s for s, label in zip(scores, labels, strict=True) if label]
    negative = [s for s, label in zip(scores, labels, strict=True) if not label]
    wins = [(p > n) + 0.5 * (p == n) for p, n in product(positive, negative)]
    assert area_under_roc(scores, labels) == pytest.approx(np.mean(wins))


def test_area_under_roc_at_its_ends() -> None:
    assert area_under_roc([1, 2, 3], [False, False, True]) == 1.0
    assert area_under_roc([1, 2, 3], [True, False, False]) == 0.0
    assert area_under_roc([2, 2, 2], [True, False, True]) == 0.5
    assert isnan(area_under_roc([1, 2], [True, True]))
