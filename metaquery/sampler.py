"""Integrate the learned flow from noise (t = 1) to data (t = 0).

A step is a pure function of latents and times. Times are per sample, so rows
of one batch may be at different places on their way.

Shape legend:
    B batch      N latent tokens      D latent channels      T grid points
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from metaquery.flow import Latents, Times, VelocityFn, shift_time, velocity_to_x_0

Solver = Literal["euler", "heun", "midpoint"]


@dataclass(frozen=True, slots=True)
class Step:
    """The state after a solver step.

    Args:
        index: Steps done before this one, from 0.
        x_t: Latents at the step's end, float32.
        x_0: What the model took the data to be at the step's start.
    """

    index: int
    x_t: Tensor
    x_0: Tensor


StepFn = Callable[[VelocityFn, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def time_grid(num_steps: int, shift: float, *, end: float = 0.0) -> Float[Tensor, "T"]:
    """Return ``num_steps`` + 1 decreasing times, from exactly 1 down to the shifted ``end``."""
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    even = torch.linspace(1.0, end, num_steps + 1, dtype=torch.float64)
    return shift_time(even, shift).float()  # in float32, the shift of 1 may fall short of 1


def _expand(dt: Tensor) -> Tensor:
    return dt.view(-1, 1, 1)


def euler_step(
    velocity_fn: VelocityFn, x_t: Latents, t: Times, t_next: Times
) -> tuple[Latents, Latents]:
    """Return the state at ``t_next`` and the data predicted at ``t``; one evaluation."""
    velocity = velocity_fn(x_t, t).to(x_t.dtype)
    return x_t + _expand(t_next - t) * velocity, velocity_to_x_0(x_t, velocity, t)


def heun_step(
    velocity_fn: VelocityFn, x_t: Latents, t: Times, t_next: Times
) -> tuple[Latents, Latents]:
    """Average the velocities at both ends of the step; two evaluations.

    A step to t = 0 is an Euler step: models are not trained at t = 0.
    """
    velocity = velocity_fn(x_t, t).to(x_t.dtype)
    x_0 = velocity_to_x_0(x_t, velocity, t)
    guess = x_t + _expand(t_next - t) * velocity
    last = t_next == 0
    if bool(last.all()):
        return guess, x_0
    mean = (velocity + velocity_fn(guess, t_next).to(x_t.dtype)) / 2
    return torch.where(_expand(last), guess, x_t + _expand(t_next - t) * mean), x_0


def midpoint_step(
    velocity_fn: VelocityFn, x_t: Latents, t: Times, t_next: Times
) -> tuple[Latents, Latents]:
    """Follow the velocity at the middle of the step; two evaluations."""
    velocity = velocity_fn(x_t, t).to(x_t.dtype)
    half = (t_next - t) / 2
    middle = velocity_fn(x_t + _expand(half) * velocity, t + half).to(x_t.dtype)
    return x_t + _expand(t_next - t) * middle, velocity_to_x_0(x_t, velocity, t)


STEPS: dict[Solver, StepFn] = {
    "euler": euler_step,
    "heun": heun_step,
    "midpoint": midpoint_step,
}


def steps(
    velocity_fn: VelocityFn,
    noise: Latents,
    times: Float[Tensor, "T"],
    *,
    solver: Solver = "euler",
) -> Iterator[Step]:
    """Yield the state after every step from ``times[0]`` to ``times[-1]``.

    The state is float32 (or the noise's float64): a step of a bfloat16 state
    is often smaller than its rounding error. A search that drops candidates
    stops here and starts again from ``x_t`` and the rest of the times.
    """
    if solver not in STEPS:
        raise ValueError(f"solver must be one of {', '.join(STEPS)}, got {solver!r}")
    step_fn = STEPS[solver]
    x_t = noise if noise.dtype == torch.float64 else noise.float()
    grid = times.to(device=x_t.device, dtype=x_t.dtype)
    for index in range(len(grid) - 1):
        t, t_next = grid[index].expand(len(x_t)), grid[index + 1].expand(len(x_t))
        with torch.no_grad():
            x_t, x_0 = step_fn(velocity_fn, x_t, t, t_next)
        yield Step(index=index, x_t=x_t, x_0=x_0)


@torch.no_grad()
def integrate(
    velocity_fn: VelocityFn,
    noise: Latents,
    times: Float[Tensor, "T"],
    *,
    solver: Solver = "euler",
) -> Latents:
    """Return the end of the path, float32: x_0 if the times end at 0."""
    x_t = noise if noise.dtype == torch.float64 else noise.float()
    for step in steps(velocity_fn, noise, times, solver=solver):
        x_t = step.x_t
    return x_t


class EvaluationCounter:
    """Count the rows that a model evaluates: calls times batch.

    Wrap the denoiser before guidance, so that guided rows count double.
    """

    def __init__(self, model: Callable[..., Tensor]) -> None:
        self.model = model
        self.rows = 0

    def __call__(self, x_t: Tensor, *args: Tensor) -> Tensor:
        self.rows += len(x_t)
        return self.model(x_t, *args)
