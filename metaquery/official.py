"""Scale-RAE's own sampler, with its index error, for the parity of samples.

The released code (arXiv:2601.16208) keeps n of 1000 grid times and means to
take n Euler steps. Its loop is off by one at both ends:

- it starts at the second largest time although the state is pure noise;
- its n-2 descending steps end at the smallest grid time instead of 0;
- one more step evaluates the model on the almost clean latents at the second
  largest time, and moves *up* from there to 1.

So n "steps" are n - 1 evaluations. Its guidance is on only outside an interval
that holds every time, that is never: pass the conditional model. Use
:func:`metaquery.sampler.integrate` for anything but parity.

Shape legend:
    B batch      N latent tokens      D latent channels      T grid points
"""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from metaquery.flow import Latents, VelocityFn, shift_time
from metaquery.sampler import euler_step

TRAINING_STEPS = 1000
"""Points of the grid from which the sampler keeps some."""


def official_grid(num_steps: int, shift: float) -> Float[Tensor, "T"]:
    """Return the kept times in float64, ascending from shift(1/1000) to 1."""
    if not 2 <= num_steps <= TRAINING_STEPS:
        raise ValueError(f"num_steps must be from 2 to {TRAINING_STEPS}, got {num_steps}")
    stride = (TRAINING_STEPS - 1) / (num_steps - 1)
    kept = [round(index * stride) for index in range(num_steps)]
    all_times = torch.linspace(1 / TRAINING_STEPS, 1.0, TRAINING_STEPS, dtype=torch.float64)
    return shift_time(all_times[kept], shift)


def official_schedule(num_steps: int, shift: float) -> list[tuple[float, float]]:
    """Return (time, next time) of every evaluation, the last of which goes upwards."""
    grid: list[float] = official_grid(num_steps, shift).tolist()
    down = list(reversed(grid[:-1]))
    return [*pairwise(down), (grid[-2], grid[-1])]


@torch.no_grad()
def sample_official(
    velocity_fn: VelocityFn, noise: Latents, *, num_steps: int, shift: float
) -> Latents:
    """Return what the released sampler returns, in float32."""
    x_t = noise.float()
    for t, t_next in official_schedule(num_steps, shift):
        times = x_t.new_full((2, len(x_t)), t)
        times[1] = t_next
        x_t, _ = euler_step(velocity_fn, x_t, times[0], times[1])
    return x_t
