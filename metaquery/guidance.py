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

HeadsFn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Predicts v of the last layer and of the early exit, (2, B, N, D), from the same three."""

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

    ``guide`` is a smaller or less trained model. For an early exit see :func:`internal`.
    """

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        good = main(x_t, t)
        inside = _inside(t, interval)
        if scale == 1.0 or not inside.any():
            return good
        return _select(inside, extrapolate(good, guide(x_t, t), scale, rescale=rescale), good)

    return guided


def internal(
    model: HeadsFn,
    condition: Tensor,
    scale: float,
    *,
    interval: Interval = ALWAYS,
    unconditional: Tensor | None = None,
    unconditional_scale: float | None = None,
    guidance_scale: float = 1.0,
    guidance_interval: Interval = ALWAYS,
    rescale: float = 0.0,
) -> VelocityFn:
    """Guide away from the model's own early exit (RAEv2, arXiv:2605.18324).

    One call gives both predictions, so it costs nothing. With ``guidance_scale`` other than 1,
    classifier-free guidance is applied to what this gives, in one call on twice the batch.

    Args:
        model: Predicts both velocities.
        condition: Of the samples.
        scale: 1 returns the last layer's velocity.
        interval: Times at which it is on.
        unconditional: Condition that stands for none; for ``guidance_scale``.
        unconditional_scale: ``scale`` of the unconditional prediction; None for the same.
        guidance_scale: Of classifier-free guidance.
        guidance_interval: Times at which that is on.
        rescale: See :func:`extrapolate`.
    """

    def of_exit(heads: Tensor, t: Tensor, scale: float) -> Tensor:
        full, early = heads.unbind()
        if scale == 1.0:
            return full
        return _select(_inside(t, interval), extrapolate(full, early, scale), full)

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        inside = _inside(t, guidance_interval)
        if unconditional is None or guidance_scale == 1.0 or not inside.any():
            return of_exit(model(x_t, t, condition), t, scale)
        both = torch.cat([condition, unconditional])
        heads = model(torch.cat([x_t, x_t]), torch.cat([t, t]), both)
        own, none = heads.chunk(2, dim=1)
        good = of_exit(own, t, scale)
        bad = of_exit(none, t, scale if unconditional_scale is None else unconditional_scale)
        return _select(inside, extrapolate(good, bad, guidance_scale, rescale=rescale), good)

    return guided
