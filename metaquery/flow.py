"""Rectified flow between data (t = 0) and noise (t = 1).

This module fixes the project's only time convention; nothing else defines one:

    x_t = (1 - t) * x_0 + t * noise            the path
    v   = dx_t/dt = noise - x_0                the regression target

Shape legend:
    B batch      N latent tokens      D latent channels
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import log, sqrt
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Generator, Tensor

Latents: TypeAlias = Float[Tensor, "B N D"]
Times: TypeAlias = Float[Tensor, "B"]
VelocityFn = Callable[[Tensor, Tensor], Tensor]
"""Predicts v (B, N, D) from x_t (B, N, D) and t (B,); the condition is already bound."""

TimeDistribution = Literal["logit_normal", "uniform"]

BASE_DIM = 4096
"""Latent size (tokens x channels) at which the timestep shift is 1."""

MIN_TIME = 0.05
"""Smallest divisor when a prediction of x_0 becomes a velocity (Li and He 2025, 2511.13720)."""


@dataclass(frozen=True, slots=True)
class FlowSample:
    """A point on the path and the velocity a model should predict there."""

    x_t: Tensor
    t: Tensor
    velocity: Tensor


def _per_sample(t: Tensor, like: Tensor) -> Tensor:
    """View (B,) times so that they broadcast over tokens and channels."""
    return t.view(-1, *[1] * (like.ndim - 1))


def interpolate(x_0: Latents, noise: Latents, t: Times) -> FlowSample:
    """Return the point at time ``t`` on the straight path from data to noise."""
    time = _per_sample(t, x_0)
    return FlowSample(x_t=(1 - time) * x_0 + time * noise, t=t, velocity=noise - x_0)


def velocity_to_x_0(x_t: Latents, velocity: Latents, t: Times) -> Latents:
    """Return the data that the velocity points back to."""
    return x_t - _per_sample(t, x_t) * velocity


def velocity_to_noise(x_t: Latents, velocity: Latents, t: Times) -> Latents:
    """Return the noise that the velocity points to."""
    return x_t + (1 - _per_sample(t, x_t)) * velocity


def x_0_to_velocity(x_t: Latents, x_0: Latents, t: Times, *, min_time: float = MIN_TIME) -> Latents:
    """Return the velocity of the path from ``x_0`` through ``x_t``.

    Times below ``min_time`` divide by ``min_time``: the quotient has no limit
    at t = 0 unless the prediction is perfect.
    """
    return (x_t - x_0) / _per_sample(t, x_t).clamp(min=min_time)


def dimension_shift(num_tokens: int, channels: int, base_dim: int = BASE_DIM) -> float:
    """Return the shift that keeps the signal-to-noise ratio of a larger latent.

    sqrt(N * D / 4096): the resolution shift of Esser et al. 2024
    (arXiv:2403.03206), counting channels too as RAE does (arXiv:2510.11690).
    Latents that say little with many channels want a smaller ``base_dim``: noise
    hides their content only near t = 1, and there the time must be spent.
    """
    return sqrt(num_tokens * channels / base_dim)


def shift_time(t: Tensor, shift: float) -> Tensor:
    """Move times in [0, 1] towards noise for ``shift`` > 1; the ends stay put."""
    return shift * t / (1 + (shift - 1) * t)


def sample_times(
    batch: int,
    *,
    distribution: TimeDistribution,
    shift: float,
    generator: Generator | None = None,
    device: torch.device | str = "cpu",
) -> Times:
    """Draw float32 training times, already shifted."""
    if distribution == "uniform":
        t = torch.rand(batch, generator=generator, device=device)
    else:
        t = torch.randn(batch, generator=generator, device=device).sigmoid()
    return shift_time(t, shift)


def truncated_logit_normal(
    uniform: Tensor, *, mean: float = 0.0, std: float = 1.0, end: float = 1.0
) -> Tensor:
    """Map uniform draws to logit-normal times below ``end`` by the inverse CDF."""
    mass = 1.0 if end >= 1.0 else _normal_cdf((log(end / (1 - end)) - mean) / std)
    return torch.sigmoid(mean + std * torch.special.ndtri(uniform * mass))


def _normal_cdf(x: float) -> float:
    return float(torch.special.ndtr(torch.tensor(x, dtype=torch.float64)))


def velocity_error(prediction: Latents, target: Latents) -> Times:
    """Return each sample's mean squared error in float32."""
    return (prediction.float() - target.float()).square().flatten(1).mean(1)


def flow_matching_losses(
    velocity_fn: VelocityFn,
    x_0: Latents,
    *,
    noise: Latents,
    t: Times,
    min_time: float = 0.0,
) -> Times:
    """Return each sample's squared velocity error at given noise and times.

    Args:
        velocity_fn: Predicts v from (x_t, t).
        x_0: Data.
        noise: Noise.
        t: Times.
        min_time: See :func:`velocity_target`.
    """
    sample = interpolate(x_0, noise, t)
    target = velocity_target(sample, min_time=min_time)
    return velocity_error(velocity_fn(sample.x_t, sample.t), target)


def velocity_target(sample: FlowSample, *, min_time: float = 0.0) -> Latents:
    """Return what a model should predict: v, for times below ``min_time`` shortened.

    A model that predicts x_0 divides by at least :data:`MIN_TIME` (:func:`x_0_to_velocity`);
    so must its target, or the perfect x_0 would have an error there.
    """
    if not min_time:
        return sample.velocity
    share = sample.t / sample.t.clamp(min=min_time)  # exactly 1 from min_time on
    return sample.velocity * _per_sample(share, sample.velocity)


def flow_matching_loss(
    velocity_fn: VelocityFn,
    x_0: Latents,
    *,
    shift: float,
    distribution: TimeDistribution = "logit_normal",
    generator: Generator | None = None,
) -> Float[Tensor, ""]:
    """Return the mean squared error of the predicted velocity, in float32.

    Draws one time and one noise per example. For several times per example,
    tile the batch first.

    Args:
        velocity_fn: Predicts v from (x_t, t); the condition is already bound.
        x_0: Normalized latents, zero mean and unit variance per channel.
        shift: Timestep shift, see :func:`dimension_shift`.
        distribution: Of the time before the shift.
        generator: Source of randomness; the default one when None.
    """
    noise = torch.randn(x_0.shape, generator=generator, device=x_0.device, dtype=x_0.dtype)
    t = sample_times(
        len(x_0), distribution=distribution, shift=shift, generator=generator, device=x_0.device
    )
    return flow_matching_losses(velocity_fn, x_0, noise=noise, t=t).mean()


def reinforced_target(
    old: Latents, target: Latents, advantages: Times, *, strength: float = 1.0
) -> Latents:
    """Return the velocity that DiffusionNFT moves a model to, of samples of the model itself.

    Zheng et al. 2025 (arXiv:2509.16117) minimise, for a reward r in [0, 1] and
    v+- = v_old +- beta (v - v_old),

        r |v+ - target|^2 + (1 - r) |v- - target|^2.

    Completed to a square, that is beta^2 |v - (v_old + (2 r - 1) / beta (target - v_old))|^2 and
    what does not depend on v: towards a good sample, away from a bad one, and where v_old was
    for one as good as the others.

    Args:
        old: Velocity of the model that drew the samples, at their noised latents.
        target: True velocity there, of the path from the sample to its noise.
        advantages: 2 r - 1 of each sample, in [-1, 1].
        strength: 1 / beta.
    """
    return old + strength * _per_sample(advantages, old) * (target - old)
