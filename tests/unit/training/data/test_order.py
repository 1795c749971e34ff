"""The order of samples is a function of the seed and the number alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.order import PERIOD, Mixture, ShuffledOrder, permutation

few = settings(max_examples=25, deadline=None)
blocks = st.lists(st.integers(1, 20), min_size=1, max_size=8)


@few
@given(blocks, st.integers(1, 64), st.integers(0, 3), st.integers(0, 1000))
def test_every_pass_holds_each_sample_once(
    sizes: list[int], buffer: int, number: int, seed: int
) -> None:
    order = ShuffledOrder(sizes, seed=seed, source=0, buffer=buffer)
    first = number * order.size
    seen = [order.index(position) for position in range(first, first + order.size)]
    assert sorted(seen) == list(range(order.size))


@few
@given(blocks, st.integers(1, 64), st.lists(st.integers(0, 500), min_size=1, max_size=30))
def test_positions_can_be_asked_for_in_any_order(
    sizes: list[int], buffer: int, positions: list[int]
) -> None:
    jumping = ShuffledOrder(sizes, seed=3, source=1, buffer=buffer)
    for position in positions:
        fresh = ShuffledOrder(sizes, seed=3, source=1, buffer=buffer)
        assert jumping.index(position) == fresh.index(position)


def test_passes_sources_and_seeds_differ() -> None:
    def first_pass(seed: int, source: int, number: int) -> list[int]:
        order = ShuffledOrder([100] * 4, seed=seed, source=source, buffer=64)
        return [order.index(number * 400 + i) for i in range(400)]

    orders = [first_pass(0, 0, 0), first_pass(0, 0, 1), first_pass(0, 1, 0), first_pass(1, 0, 0)]
    assert len({tuple(order) for order in orders}) == 4


def test_a_window_touches_few_blocks() -> None:
    order = ShuffledOrder([100] * 50, seed=0, source=0, buffer=200)
    window = {order.index(position) // 100 for position in range(200)}
    assert len(window) == 2


def test_without_a_buffer_samples_come_as_they_are_stored() -> None:
    order = ShuffledOrder([3, 4], seed=0, source=0, buffer=None)
    assert [order.index(i) for i in range(9)] == [0, 1, 2, 3, 4, 5, 6, 0, 1]


def test_the_permutation_never_changes() -> None:
    # A checkpoint of today must find the same order with every later numpy.
    assert permutation(8, 0, 1, 2).tolist() == [5, 3, 0, 7, 2, 6, 4, 1]


@few
@given(
    st.lists(st.floats(0.01, 10), min_size=1, max_size=6),
    st.integers(0, 5),
    st.lists(st.integers(0, 3 * PERIOD), min_size=1, max_size=20),
)
def test_a_mixture_numbers_each_sources_samples_without_gaps(
    weights: list[float], seed: int, numbers: list[int]
) -> None:
    mixture = Mixture(weights, seed=seed)
    counts = [0] * len(weights)
    for number in range(PERIOD + 50):
        source, position = mixture.pick(number)
        assert position == counts[source]
        counts[source] += 1
    for number in numbers:  # in any order, too
        assert mixture.pick(number) == Mixture(weights, seed=seed).pick(number)


def test_shares_are_exact_over_a_period() -> None:
    mixture = Mixture([0.6, 0.3, 0.1], seed=0)
    sources = [mixture.pick(number)[0] for number in range(PERIOD, 2 * PERIOD)]
    shares = np.bincount(sources) / PERIOD
    assert np.allclose(shares, [0.6, 0.3, 0.1], atol=1 / PERIOD)


def test_a_weight_that_would_never_appear_is_refused() -> None:
    with pytest.raises(ValueError, match="weight 1 is less than 1/8192"):
        Mixture([10_000, 1], seed=0)
