"""Sample by the stochastic differential equation that shares the flow's marginals.

Going from noise to data by dt, with w(t) >= 0 the strength of fresh noise:

    x <- x - dt * (v - w * score) + sqrt(2 w dt) * draw

(Ma et al. 2024, arXiv:2401.08740). The score follows from the velocity.

Shape legend:
    B batch      N latent tokens      D latent channels
"""

from collections.abc import Callable
from math import pi

import torch
from torch import Tensor

from metaquery.flow import Latents, Times, VelocityFn, velocity_to_noise

Diffusion = Callable[[Tensor], Tensor]
"""Strength w of the fresh noise at times (B,)."""


def linear_diffusion(t: Times) -> Times:
    """Return t: as much fresh noise as there is noise."""
    return t


def decreasing_diffusion(t: Times) -> Times:
    """Return a raised cosine from 1 at noise to 0 at data."""
    return 0.25 * (1 - torch.cos(pi * t)) ** 2


def score(x_t: Latents, velocity: Latents, t: Times) -> Latents:
    """Return the gradient of the log-density, minus the noise over its share t."""
    return -velocity_to_noise(x_t, velocity, t) / _expand(t)


def _expand(t: Tensor) -> Tensor:
    return t.view(-1, 1, 1)


def sde_drift(velocity_fn: VelocityFn, x_t: Latents, t: Times, diffusion: Diffusion) -> Latents:
    """Return v - w * score; one evaluation."""
    velocity = velocity_fn(x_t, t).to(x_t.dtype)
    return velocity - _expand(diffusion(t)) * score(x_t, velocity, t)


def sde_mean_step(
    velocity_fn: VelocityFn,
    x_t: Latents,
    t: Times,
    t_next: Times,
    *,
    diffusion: Diffusion = linear_diffusion,
) -> Latents:
    """Return the mean of the state at ``t_next``: the last step, which adds no noise."""
    return x_t - _expand(t - t_next) * sde_drift(velocity_fn, x_t, t, diffusion)


def sde_euler_step(
    velocity_fn: VelocityFn,
    x_t: Latents,
    t: Times,
    t_next: Times,
    *,
    draw: Latents,
    diffusion: Diffusion = linear_diffusion,
) -> Latents:
    """Return the state at ``t_next`` (Euler-Maruyama); ``draw`` is standard normal."""
    mean = sde_mean_step(velocity_fn, x_t, t, t_next, diffusion=diffusion)
    return mean + _expand((2 * diffusion(t) * (t - t_next)).sqrt()) * draw


def sde_heun_step(
    velocity_fn: VelocityFn,
    x_t: Latents,
    t: Times,
    t_next: Times,
    *,
    draw: Latents,
    diffusion: Diffusion = linear_diffusion,
) -> Latents:
    """Return the state at ``t_next``: fresh noise first, then a Heun step of the drift."""
    dt = t - t_next
    noisy = x_t + _expand((2 * diffusion(t) * dt).sqrt()) * draw
    here = sde_drift(velocity_fn, noisy, t, diffusion)
    there = sde_drift(velocity_fn, noisy - _expand(dt) * here, t_next, diffusion)
    return noisy - _expand(dt) * (here + there) / 2
