"""Adaptive integration of the flow: Dormand and Prince's pair of orders 5 and 4.

Step control, first step and dense output follow Hairer, Norsett and Wanner,
*Solving Ordinary Differential Equations I*, sections II.4 to II.6, with the
constants of common solvers, so that samples of RAE's default sampler come out
the same. The error is one norm over the whole batch: all rows share their
steps, and a row's last bits depend on its batch.

Shape legend:
    B batch      N latent tokens      D latent channels      T output times
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from metaquery.flow import Latents, VelocityFn

_NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_FOURTH = (1951 / 21600, 0.0, 22642 / 50085, 451 / 720, -12231 / 42400, 649 / 6300, 1 / 60)
_ERROR = tuple(high - low for high, low in zip((*_STAGES[-1], 0.0), _FOURTH, strict=True))
# The fourth-order weights of the solver that RAE samples with; the pair in textbooks has others.
# Weights of the stages for the state half-way through a step (Shampine 1986).
_MIDDLE = (
    6025192743 / 30085553152 / 2,
    0.0,
    51252292925 / 65400821598 / 2,
    -2691868925 / 45128329728 / 2,
    187940372067 / 1594534317056 / 2,
    -1776094331 / 19743644256 / 2,
    11237099 / 235043384 / 2,
)

SAFETY, LARGEST_GROWTH, LARGEST_SHRINKAGE, ORDER = 0.9, 10.0, 0.2, 5

_Slope = Callable[[float, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class _Trial:
    """One attempted step of length ``h`` from progress ``s``."""

    s: float
    h: float
    start: Tensor
    end: Tensor
    slopes: list[Tensor]

    def error_ratio(self, atol: float, rtol: float) -> float:
        """Return the estimated error over what is allowed; at most 1 is accepted."""
        error = _combine(torch.zeros_like(self.start), self.h, _ERROR, self.slopes)
        allowed = atol + rtol * torch.maximum(self.start.abs(), self.end.abs())
        return _rms(error / allowed)

    def at(self, s: float) -> Tensor:
        """Return the state inside the step by a polynomial of degree 4."""
        y0, y1, h = self.start, self.end, self.h
        middle = _combine(y0, h, _MIDDLE, self.slopes)
        f0, f1 = h * self.slopes[0], h * self.slopes[-1]
        x = (s - self.s) / h
        a = 2 * (f1 - f0) - 8 * (y1 + y0) + 16 * middle
        b = 5 * f0 - 3 * f1 + 18 * y0 + 14 * y1 - 32 * middle
        c = f1 - 4 * f0 - 11 * y0 - 5 * y1 + 16 * middle
        return y0 + x * (f0 + x * (c + x * (b + x * a)))


def _combine(start: Tensor, h: float, weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            start = start + (h * weight) * slope
    return start


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt().item())


def _first_step(slope: _Slope, y: Tensor, f: Tensor, atol: float, rtol: float) -> float:
    scale = atol + y.abs() * rtol
    d0, d1 = _rms(y / scale), _rms(f / scale)
    guess = 1e-6 if min(d0, d1) < 1e-5 else 0.01 * d0 / d1
    d2 = _rms((slope(guess, y + guess * f) - f) / scale) / guess
    if max(d1, d2) <= 1e-15:
        return min(100 * guess, max(1e-6, guess * 1e-3))
    return min(100 * guess, float((0.01 / max(d1, d2)) ** (1 / ORDER)))


def _attempt(slope: _Slope, s: float, h: float, y: Tensor, first: Tensor) -> _Trial:
    slopes, end = [first], y
    for node, weights in zip(_NODES, _STAGES, strict=True):
        end = _combine(y, h, weights, slopes)
        slopes.append(slope(s + node * h, end))
    return _Trial(s=s, h=h, start=y, end=end, slopes=slopes)  # the last stage is the end


def _next_length(h: float, ratio: float) -> float:
    if ratio == 0:
        return h * LARGEST_GROWTH
    shrinkage = 1.0 if ratio < 1 else LARGEST_SHRINKAGE
    growth: float = SAFETY / ratio ** (1 / ORDER)
    return h * min(LARGEST_GROWTH, max(growth, shrinkage))


@torch.no_grad()
def integrate_adaptive(
    velocity_fn: VelocityFn,
    noise: Latents,
    times: Float[Tensor, "T"],
    *,
    atol: float = 1e-6,
    rtol: float = 1e-3,
) -> Float[Tensor, "T B N D"]:
    """Return the states at decreasing ``times``, the first of which is the noise itself."""
    start = times[0].item()
    y = noise if noise.dtype == torch.float64 else noise.float()

    def slope(progress: float, x_t: Tensor) -> Tensor:
        t = x_t.new_full((len(x_t),), start - progress)
        return -velocity_fn(x_t, t).to(x_t.dtype)

    f = slope(0.0, y)
    h = _first_step(slope, y, f, atol, rtol)
    accepted = _Trial(s=0.0, h=0.0, start=y, end=y, slopes=[f])
    states = [y]
    for t in times[1:].tolist():
        while accepted.s + accepted.h < start - t:
            trial = _attempt(slope, accepted.s + accepted.h, h, accepted.end, accepted.slopes[-1])
            ratio = trial.error_ratio(atol, rtol)
            accepted = trial if ratio <= 1 else accepted
            h = _next_length(h, ratio)
        states.append(accepted.at(start - t))
    return torch.stack(states)
