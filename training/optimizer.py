"""Parameter groups, AdamW and the learning-rate schedule."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import cos, pi
from typing import Any

import torch
from torch import Tensor, nn

from .config import OptimizerConfig


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Trained parameters of one part of a model."""

    part: str
    parameters: tuple[nn.Parameter, ...]


def parameter_groups(
    parts: Iterable[tuple[str, Sequence[nn.Parameter]]],
) -> list[ParameterGroup]:
    """Return the parts that have something to train, in a fixed order."""
    trained = {part: tuple(p for p in parameters if p.requires_grad) for part, parameters in parts}
    return [ParameterGroup(part, parameters) for part, parameters in trained.items() if parameters]


def build_adamw(
    groups: Sequence[ParameterGroup], masters: Sequence[Sequence[Tensor]], config: OptimizerConfig
) -> torch.optim.AdamW:
    """Return AdamW over the float32 masters, with matrices and vectors of a part apart.

    Raises:
        ValueError: ``part_lr`` or ``part_betas`` names a part that is not trained.
    """
    members = adam_groups(groups, masters, config)
    return torch.optim.AdamW(members, betas=config.betas, eps=config.eps, fused=True)


def adam_groups(
    groups: Sequence[ParameterGroup], masters: Sequence[Sequence[Tensor]], config: OptimizerConfig
) -> list[dict[str, Any]]:
    """Return each part's matrices and vectors as AdamW's groups, with the part's number."""
    _check_parts("part_lr", config.part_lr, groups)
    _check_parts("part_betas", config.part_betas, groups)
    made: list[dict[str, Any]] = []
    for index, (group, tensors) in enumerate(zip(groups, masters, strict=True)):
        peak = config.part_lr.get(group.part, config.lr)
        matrices = [t for t in tensors if t.ndim >= 2]
        vectors = [t for t in tensors if t.ndim < 2]
        for members, decay in ((matrices, config.weight_decay), (vectors, 0.0)):
            if members:
                settings = {"lr": peak, "peak_lr": peak, "weight_decay": decay}
                betas = config.part_betas.get(group.part, config.betas)
                made.append({"params": members, **settings, "betas": betas, "part": index})
    return made


def _check_parts(
    name: str, settings: Mapping[str, object], groups: Sequence[ParameterGroup]
) -> None:
    unknown = set(settings) - {group.part for group in groups}
    if unknown:
        trained = ", ".join(group.part for group in groups)
        raise ValueError(f"{name} names {sorted(unknown)}, but what is trained is {trained}")


def lr_factor(step: int, num_steps: int, config: OptimizerConfig) -> float:
    """Return the share of the peak learning rate at ``step`` (from 0).

    Before the decay begins the factor does not depend on ``num_steps``, so a run may be made
    longer or shorter while it is still on the plateau.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    decay_steps = round(num_steps * config.decay_share)
    left = max(0, num_steps - step)
    if left >= decay_steps or not decay_steps:
        return 1.0
    progress = 1 - left / decay_steps  # 0 at the start of the decay, towards 1
    fall = progress if config.decay_shape == "linear" else (1 - cos(pi * progress)) / 2
    return 1 - (1 - config.final_lr_ratio) * fall
