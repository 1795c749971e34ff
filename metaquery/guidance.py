"""Guidance: pure combinators of velocities.

Every combinator is on for times inside its closed interval and returns the
conditional model's own velocity outside.

Shape legend:
    B batch      N latent tokens      D latent channels      C condition width
"""

from collections.abc import Callable

import torch
from torch import Tensor

from metaquery.flow import VelocityFn

ConditionedFn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Predicts v from x_t (B, N, D), t (B,) and a condition (B, ...)."""

Interval = tuple[float, float]
ALWAYS: Interval = (0.0, 1.0)


def extrapolate(
    good: Tensor, bad: Tensor, scale: float, *, rescale: float = 0.0, max_norm: bool = False
) -> Tensor:
    """Return ``bad + scale * (good - bad)``, optionally with its size restored.

    Args:
        good: Velocity to move towards.
        bad: Velocity to move away from.
        scale: 1 returns ``good``.
        rescale: Share, in [0, 1], of the way back to the standard deviation of
            ``good`` per sample (Lin et al. 2023, arXiv:2305.08891).
        max_norm: Shrink a result that is longer than ``good``, per sample.
    """
    guided = bad + scale * (good - bad)
    dims = tuple(range(1, good.ndim))
    if rescale:
        ratio = good.std(dims, keepdim=True) / guided.std(dims, keepdim=True)
        guided = guided * (rescale * ratio + (1 - rescale))
    if max_norm:
        limit = torch.linalg.vector_norm(good, dim=dims, keepdim=True)
        length = torch.linalg.vector_norm(guided, dim=dims, keepdim=True)
        guided = guided * (limit / length).clamp(max=1)
    return guided


def _inside(t: Tensor, interval: Interval) -> Tensor:
    return (t >= interval[0]) & (t <= interval[1])


def _select(inside: Tensor, guided: Tensor, plain: Tensor) -> Tensor:
    return torch.where(inside.view(-1, *[1] * (plain.ndim - 1)), guided, plain)


def classifier_free(
    model: ConditionedFn,
    condition: Tensor,
    unconditional: Tensor,
    scale: float,
    *,
    interval: Interval = ALWAYS,
    rescale: float = 0.0,
    max_norm: bool = False,
) -> VelocityFn:
    """Guide away from the unconditional prediction (Ho and Salimans, arXiv:2207.12598).

    Both predictions come from one call on twice the batch. ``scale`` 1, or a
    batch wholly outside ``interval`` (Kynkaanniemi et al. 2024,
    arXiv:2404.07724), costs one plain call.
    """
    both = torch.cat([condition, unconditional])

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        inside = _inside(t, interval)
        if scale == 1.0 or not inside.any():
            return model(x_t, t, condition)
        good, bad = model(torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
        better = extrapolate(good, bad, scale, rescale=rescale, max_norm=max_norm)
        return _select(inside, better, good)

    return guided


def autoguidance(
    main: VelocityFn,
    guide: VelocityFn,
    scale: float,
    *,
    interval: Interval = ALWAYS,
    rescale: float = 0.0,
) -> VelocityFn:
    """Guide away from a worse model of the same condition (Karras et al., arXiv:2406.02507).

    ``guide`` is a smaller or less trained model, or an early exit of the same one.
    """

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        good = main(x_t, t)
        inside = _inside(t, interval)
        if scale == 1.0 or not inside.any():
            return good
        return _select(inside, extrapolate(good, guide(x_t, t), scale, rescale=rescale), good)

    return guided
