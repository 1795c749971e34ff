"""Parameter groups, AdamW and the learning-rate schedule."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import cos, pi

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
        ValueError: ``part_lr`` names a part that is not trained.
    """
    unknown = set(config.part_lr) - {group.part for group in groups}
    if unknown:
        trained = ", ".join(group.part for group in groups)
        raise ValueError(f"part_lr names {sorted(unknown)}, but what is trained is {trained}")
    adam_groups = []
    for group, tensors in zip(groups, masters, strict=True):
        peak = config.part_lr.get(group.part, config.lr)
        matrices = [t for t in tensors if t.ndim >= 2]
        vectors = [t for t in tensors if t.ndim < 2]
        for members, decay in ((matrices, config.weight_decay), (vectors, 0.0)):
            if members:
                adam_groups.append(
                    {"params": members, "lr": peak, "peak_lr": peak, "weight_decay": decay}
                )
    return torch.optim.AdamW(adam_groups, betas=config.betas, eps=config.eps, fused=True)


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
