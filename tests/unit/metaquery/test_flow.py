"""Properties of the flow that hold whatever the model."""

import pytest
import torch
from torch import Tensor

from metaquery.flow import (
    MIN_TIME,
    TimeDistribution,
    dimension_shift,
    flow_matching_loss,
    flow_matching_losses,
    interpolate,
    sample_times,
    shift_time,
    truncated_logit_normal,
    velocity_to_noise,
    velocity_to_x_0,
    x_0_to_velocity,
)

SHAPE = (2, 16, 8)  # B, N, D


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_path_runs_from_data_to_noise(rng: torch.Generator) -> None:
    x_0, noise = torch.randn(2, *SHAPE, generator=rng)
    assert torch.equal(interpolate(x_0, noise, torch.zeros(2)).x_t, x_0)
    assert torch.equal(interpolate(x_0, noise, torch.ones(2)).x_t, noise)


def test_velocity_is_the_derivative_of_the_path(rng: torch.Generator) -> None:
    x_0, noise = torch.randn(2, *SHAPE, generator=rng, dtype=torch.float64)
    t = torch.tensor([0.3, 0.7], dtype=torch.float64)
    step = 1e-3
    before, after = interpolate(x_0, noise, t - step), interpolate(x_0, noise, t + step)
    torch.testing.assert_close((after.x_t - before.x_t) / (2 * step), before.velocity)


def test_a_point_and_its_velocity_hold_both_ends(rng: torch.Generator) -> None:
    x_0, noise = torch.randn(2, *SHAPE, generator=rng, dtype=torch.float64)
    t = torch.tensor([0.1, 0.9], dtype=torch.float64)
    sample = interpolate(x_0, noise, t)
    torch.testing.assert_close(velocity_to_x_0(sample.x_t, sample.velocity, t), x_0)
    torch.testing.assert_close(velocity_to_noise(sample.x_t, sample.velocity, t), noise)
    torch.testing.assert_close(x_0_to_velocity(sample.x_t, x_0, t), sample.velocity)


def test_a_wrong_x_0_gives_a_bounded_velocity_at_data(rng: torch.Generator) -> None:
    x_t, x_0 = torch.randn(2, *SHAPE, generator=rng)
    velocity = x_0_to_velocity(x_t, x_0, torch.zeros(2))
    torch.testing.assert_close(velocity, (x_t - x_0) / MIN_TIME)


def test_shift_keeps_the_ends_and_matches_rae() -> None:
    t = torch.tensor([0.0, 0.5, 1.0])
    shift = dimension_shift(num_tokens=256, channels=768)
    assert shift == pytest.approx(48**0.5)
    assert shift_time(t, shift).tolist() == pytest.approx([0.0, shift / (1 + shift), 1.0])


def test_shifts_compose_and_invert() -> None:
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(shift_time(shift_time(t, 3.0), 2.0), shift_time(t, 6.0))
    torch.testing.assert_close(shift_time(shift_time(t, 5.0), 1 / 5), t)


def test_shift_multiplies_the_odds_of_noise() -> None:
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    torch.testing.assert_close(shift_time(t, 8.5).logit().exp(), 8.5 * t.logit().exp())


def test_uniform_times_are_uniform(rng: torch.Generator) -> None:
    t = sample_times(10_000, distribution="uniform", shift=1.0, generator=rng)
    counts = torch.histc(t, bins=10, min=0.0, max=1.0)
    # 5 standard errors of a binomial count.
    assert (counts - 1000).abs().max() < 5 * 900**0.5


def test_logit_normal_times_have_a_normal_logit(rng: torch.Generator) -> None:
    shift = 8.0
    t = sample_times(10_000, distribution="logit_normal", shift=shift, generator=rng)
    normal = shift_time(t.double(), 1 / shift).logit()
    # 5 standard errors of a mean and of a variance.
    assert normal.mean().item() == pytest.approx(0, abs=5 / 100)
    assert normal.var().item() == pytest.approx(1, abs=5 * 2**0.5 / 100)


@pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
def test_times_are_float32_and_repeat_with_the_seed(distribution: TimeDistribution) -> None:
    first, second = (
        sample_times(
            8,
            distribution=distribution,
            shift=2.0,
            generator=torch.Generator().manual_seed(3),
        )
        for _ in range(2)
    )
    assert first.dtype == torch.float32
    assert torch.equal(first, second)


def test_truncated_logit_normal_is_the_inverse_of_its_cdf() -> None:
    uniform = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    mean, std, end = 0.3, 1.5, 0.9
    t = truncated_logit_normal(uniform, mean=mean, std=std, end=end)
    cdf = torch.special.ndtr((t.logit() - mean) / std)
    mass = torch.special.ndtr((torch.tensor(end, dtype=torch.float64).logit() - mean) / std)
    torch.testing.assert_close(cdf / mass, uniform)
    assert t.max() < end


def test_loss_of_a_zero_model_is_the_variance_of_its_target(rng: torch.Generator) -> None:
    """Var(noise - x_0) = 1 + 1 for unit-variance latents; 4 standard errors of slack."""
    x_0 = torch.randn(64, 64, 64, generator=rng)
    loss = flow_matching_loss(lambda x_t, t: torch.zeros_like(x_t), x_0, shift=1.0, generator=rng)
    standard_error = (8 / x_0.numel()) ** 0.5  # Var of a chi-squared scaled by 2
    assert loss.item() == pytest.approx(2.0, abs=4 * standard_error)


def test_the_true_velocity_has_no_loss(rng: torch.Generator) -> None:
    x_0, noise = torch.randn(2, *SHAPE, generator=rng, dtype=torch.float64)

    def true_velocity(x_t: Tensor, t: Tensor) -> Tensor:
        velocity: Tensor = (x_t - x_0) / t.view(-1, 1, 1)
        return velocity

    t = torch.tensor([0.2, 0.8], dtype=torch.float64)
    losses = flow_matching_losses(true_velocity, x_0, noise=noise, t=t)
    torch.testing.assert_close(losses, torch.zeros(2), rtol=0, atol=1e-10)


def test_each_sample_has_its_own_loss(rng: torch.Generator) -> None:
    x_0, noise = torch.randn(2, *SHAPE, generator=rng)
    wrong_second = torch.tensor([0.0, 3.0]).view(2, 1, 1)
    losses = flow_matching_losses(
        lambda x_t, t: noise - x_0 + wrong_second, x_0, noise=noise, t=torch.rand(2)
    )
    torch.testing.assert_close(losses, torch.tensor([0.0, 9.0]))


def test_loss_is_float32_for_a_bfloat16_model(rng: torch.Generator) -> None:
    x_0, noise = torch.randn(2, *SHAPE, generator=rng)
    losses = flow_matching_losses(
        lambda x_t, t: x_t.bfloat16(), x_0, noise=noise, t=torch.full((2,), 0.5)
    )
    assert losses.dtype == torch.float32
    x_t = (x_0 + noise) / 2
    expected = (x_t.bfloat16().float() - (noise - x_0)).square().mean((1, 2))
    torch.testing.assert_close(losses, expected)
