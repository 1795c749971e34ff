"""Solvers on flows whose solution is known."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from metaquery.guidance import classifier_free
from metaquery.official import official_grid, official_schedule, sample_official
from metaquery.sampler import (
    STEPS,
    EvaluationCounter,
    Solver,
    euler_step,
    integrate,
    steps,
    time_grid,
)

SHAPE = (3, 4, 8)  # B, N, D
SOLVERS: tuple[Solver, ...] = ("euler", "heun", "midpoint")


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def growing(x_t: Tensor, t: Tensor) -> Tensor:
    """dx/dt = x, so the state at t = 0 is noise / e."""
    return x_t


def curved(x_t: Tensor, t: Tensor) -> Tensor:
    """A velocity that depends on state and time, row by row."""
    return torch.sin(x_t) + t.view(-1, 1, 1)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("num_steps", [1, 2, 50])
def test_every_solver_is_exact_for_a_straight_path(
    solver: Solver, num_steps: int, rng: torch.Generator
) -> None:
    """The path to one data point is straight, so any number of steps lands on it."""
    x_0, noise = torch.randn(2, *SHAPE, generator=rng)
    times = time_grid(num_steps, shift=8.5)
    result = integrate(lambda x_t, t: noise - x_0, noise, times, solver=solver)
    torch.testing.assert_close(result, x_0, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("midpoint", 2)])
def test_the_error_falls_with_the_order_of_the_solver(solver: Solver, order: int) -> None:
    noise = torch.ones(1, 1, 1, dtype=torch.float64)
    coarse, fine = (
        abs(integrate(growing, noise, time_grid(n, 1.0), solver=solver).item() - 1 / math.e)
        for n in (64, 128)
    )
    # Higher-order terms are of the size of a step, 1/64.
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("num_steps", [1, 7])
@pytest.mark.parametrize("shift", [0.3, 1.0, 8.485])
def test_the_grid_falls_from_exactly_one_to_exactly_zero(num_steps: int, shift: float) -> None:
    times = time_grid(num_steps, shift).tolist()
    assert (times[0], times[-1]) == (1.0, 0.0)
    assert all(early > late for early, late in pairwise(times))
    assert len(times) == num_steps + 1


@pytest.mark.parametrize("solver", SOLVERS)
def test_stopping_and_going_on_changes_nothing(solver: Solver, rng: torch.Generator) -> None:
    noise = torch.randn(SHAPE, generator=rng)
    times = time_grid(6, shift=3.0)
    half = integrate(curved, noise, times[:4], solver=solver)
    resumed = integrate(curved, half, times[3:], solver=solver)
    assert torch.equal(resumed, integrate(curved, noise, times, solver=solver))


@pytest.mark.parametrize("solver", SOLVERS)
def test_rows_may_be_at_different_times(solver: Solver, rng: torch.Generator) -> None:
    x_t = torch.randn(SHAPE, generator=rng)
    t, t_next = torch.tensor([1.0, 0.6, 0.2]), torch.tensor([0.7, 0.5, 0.0])
    together, _ = STEPS[solver](curved, x_t, t, t_next)
    for row in range(3):
        rows = slice(row, row + 1)
        alone, _ = STEPS[solver](curved, x_t[rows], t[rows], t_next[rows])
        torch.testing.assert_close(together[rows], alone)


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_step_shows_the_data_it_expects(solver: Solver, rng: torch.Generator) -> None:
    x_0, noise = torch.randn(2, *SHAPE, generator=rng)
    path = list(steps(lambda x_t, t: noise - x_0, noise, time_grid(5, 2.0), solver=solver))
    assert [step.index for step in path] == [0, 1, 2, 3, 4]
    for step in path:
        torch.testing.assert_close(step.x_0, x_0, rtol=0, atol=1e-5)


def test_heun_never_evaluates_at_data(rng: torch.Generator) -> None:
    seen: list[float] = []

    def recorded(x_t: Tensor, t: Tensor) -> Tensor:
        seen.extend(t.tolist())
        return x_t

    integrate(recorded, torch.randn(SHAPE, generator=rng), time_grid(4, 1.0), solver="heun")
    assert min(seen) > 0


def test_state_and_times_stay_float32_for_a_bfloat16_model(rng: torch.Generator) -> None:
    noise = torch.randn(SHAPE, generator=rng)

    def rounded(x_t: Tensor, t: Tensor) -> Tensor:
        assert x_t.dtype == t.dtype == torch.float32
        return x_t.bfloat16()

    result = integrate(rounded, noise.bfloat16(), time_grid(64, 1.0))
    # Kept in bfloat16, steps of 1/64 would be lost: its spacing just above 1 is 1/128.
    expected = noise.bfloat16().float() * (1 - 1 / 64) ** 64
    torch.testing.assert_close(result, expected, rtol=2**-8, atol=0)


@pytest.mark.parametrize(
    ("solver", "scale", "rows"),
    [
        ("euler", 1.0, 3 * 5),
        ("heun", 1.0, 3 * 9),
        ("midpoint", 1.0, 3 * 10),
        ("euler", 2.0, 3 * 10),
    ],
)
def test_evaluations_are_counted(
    solver: Solver, scale: float, rows: int, rng: torch.Generator
) -> None:
    counter = EvaluationCounter(lambda x_t, t, condition: x_t + condition)
    condition = torch.zeros(3, 1, 8)
    velocity_fn = classifier_free(counter, condition, condition + 1, scale)
    noise = torch.randn(SHAPE, generator=rng)
    integrate(velocity_fn, noise, time_grid(5, 1.0), solver=solver)
    assert counter.rows == rows


def test_no_gradients_are_kept() -> None:
    weight = torch.ones(1, requires_grad=True)
    result = integrate(lambda x_t, t: weight * x_t, torch.ones(1, 1, 1), time_grid(2, 1.0))
    assert not result.requires_grad


def test_too_few_steps_and_unknown_solvers_are_refused() -> None:
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        time_grid(0, 1.0)
    with pytest.raises(ValueError, match="solver must be one of euler, heun, midpoint, got 'rk9'"):
        next(steps(growing, torch.ones(1, 1, 1), time_grid(1, 1.0), solver="rk9"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_steps must be from 2 to 1000, got 1"):
        official_grid(1, 1.0)


def test_the_official_schedule_is_off_by_one_at_both_ends() -> None:
    grid = official_grid(10, shift=2.0).tolist()
    schedule = official_schedule(10, shift=2.0)
    assert len(schedule) == 9
    assert schedule[0] == (grid[8], grid[7])  # not from 1
    assert schedule[-2] == (grid[1], grid[0])  # not to 0
    assert schedule[-1] == (grid[8], 1.0)  # and upwards


def test_the_official_sampler_misses_where_euler_lands(rng: torch.Generator) -> None:
    x_0, noise = torch.randn(2, *SHAPE, generator=rng)

    straight: Tensor = noise - x_0
    schedule = official_schedule(10, shift=2.0)
    moved = sum(t_next - t for t, t_next in schedule)
    result = sample_official(lambda x_t, t: straight, noise, num_steps=10, shift=2.0)
    torch.testing.assert_close(result, noise + moved * straight)
    assert moved > -0.9  # the whole way is -1


def test_one_euler_step_by_hand() -> None:
    x_t = torch.full((1, 1, 1), 2.0)
    end, x_0 = euler_step(growing, x_t, torch.tensor([0.5]), torch.tensor([0.25]))
    assert end.item() == 2.0 - 0.25 * 2.0
    assert x_0.item() == 2.0 - 0.5 * 2.0
