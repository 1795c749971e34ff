"""The adaptive and the stochastic sampler, on Gaussian data whose flow is known."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from metaquery.adaptive import integrate_adaptive
from metaquery.sampler import euler_step, integrate, time_grid
from metaquery.stochastic import (
    decreasing_diffusion,
    linear_diffusion,
    score,
    sde_euler_step,
    sde_heun_step,
    sde_mean_step,
)

DATA_STD = 2.0


def variance(t: Tensor) -> Tensor:
    return (1 - t) ** 2 * DATA_STD**2 + t**2


def gaussian(x_t: Tensor, t: Tensor) -> Tensor:
    """The mean velocity at x_t if the data are normal with deviation ``DATA_STD``."""
    return ((t - (1 - t) * DATA_STD**2) / variance(t)).view(-1, 1, 1) * x_t


def test_the_adaptive_sampler_scales_noise_to_data() -> None:
    noise = torch.linspace(-3, 3, 12, dtype=torch.float64).view(1, 3, 4)
    states = integrate_adaptive(gaussian, noise, time_grid(4, 2.0), atol=1e-9, rtol=1e-9)
    for state, t in zip(states, time_grid(4, 2.0).double(), strict=True):
        torch.testing.assert_close(state, noise * variance(t).sqrt(), rtol=1e-6, atol=1e-6)


def test_the_adaptive_sampler_works_as_hard_as_it_is_told() -> None:
    noise = torch.ones(1, 1, 1, dtype=torch.float64)
    errors, evaluations = [], []
    for rtol in (1e-3, 1e-9):
        calls: list[float] = []

        def counted(x_t: Tensor, t: Tensor, calls: list[float] = calls) -> Tensor:
            calls.append(t.item())
            return gaussian(x_t, t)

        end = integrate_adaptive(counted, noise, time_grid(1, 1.0), atol=rtol, rtol=rtol)[-1]
        errors.append(abs(end.item() - DATA_STD))
        evaluations.append(len(calls))
    assert errors[1] < 1e-7 < errors[0] < 1e-2
    assert evaluations[0] < evaluations[1]


def test_the_score_is_the_gradient_of_the_density() -> None:
    x_t = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.tensor([0.3, 0.9], dtype=torch.float64)
    expected = -x_t / variance(t).view(-1, 1, 1)
    torch.testing.assert_close(score(x_t, gaussian(x_t, t), t), expected)


@pytest.mark.parametrize("diffusion", [linear_diffusion, decreasing_diffusion])
@pytest.mark.parametrize("step", [sde_euler_step, sde_heun_step])
def test_fresh_noise_keeps_the_distribution(step, diffusion) -> None:  # type: ignore[no-untyped-def]
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(1, 100, 100, generator=rng)
    times = time_grid(100, 1.0)
    for t, t_next in pairwise(times[:-1]):
        draw = torch.randn(x.shape, generator=rng)
        x = step(gaussian, x, t.view(1), t_next.view(1), draw=draw, diffusion=diffusion)
    x = sde_mean_step(gaussian, x, times[-2].view(1), times[-1].view(1), diffusion=diffusion)
    # 4 standard errors of a deviation of 10,000 draws, and a step's error of 1/100.
    assert x.std().item() == pytest.approx(DATA_STD, rel=4 / math.sqrt(20_000) + 0.02)


def test_without_diffusion_it_is_the_flow() -> None:
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    t, t_next = torch.tensor([0.9, 0.5]), torch.tensor([0.8, 0.2])
    moved = sde_euler_step(gaussian, x, t, t_next, draw=x, diffusion=torch.zeros_like)
    expected, _ = euler_step(gaussian, x, t, t_next)
    torch.testing.assert_close(moved, expected)


def test_both_samplers_agree() -> None:
    noise = torch.linspace(-3, 3, 12, dtype=torch.float64).view(1, 3, 4)
    times = time_grid(200, 1.0)
    fixed = integrate(gaussian, noise, times, solver="heun")
    torch.testing.assert_close(
        fixed, integrate_adaptive(gaussian, noise, times[[0, -1]])[-1], rtol=1e-3, atol=1e-3
    )
