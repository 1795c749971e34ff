"""Parameter groups, AdamW, Muon and the learning-rate schedule."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import cos, pi
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .config import OptimizerConfig


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Trained parameters of one part of a model.

    Args:
        part: Its name.
        parameters: What is trained.
        is_hidden: Of each parameter, whether it is the weight of a hidden linear layer, which
            Muon may train; empty where nobody knows.
    """

    part: str
    parameters: tuple[nn.Parameter, ...]
    is_hidden: tuple[bool, ...] = ()


class Optimizer(Protocol):
    """What an engine needs of an optimiser; torch's have it."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...

    def step(self) -> Any: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


def parameter_groups(
    parts: Iterable[tuple[str, Sequence[nn.Parameter]]], *models: nn.Module
) -> list[ParameterGroup]:
    """Return the parts that have something to train, in a fixed order.

    Args:
        parts: Names and parameters.
        models: Where the parameters come from, to tell hidden layers from embeddings.
    """
    hidden = {id(weight) for model in models for weight in hidden_weights(model)}
    trained = {part: tuple(p for p in parameters if p.requires_grad) for part, parameters in parts}
    return [
        ParameterGroup(part, parameters, tuple(id(p) in hidden for p in parameters))
        for part, parameters in trained.items()
        if parameters
    ]


def hidden_weights(model: nn.Module) -> list[Tensor]:
    """Return the weights of linear layers, but for a language model's head over its vocabulary."""
    modules = [*model.modules()]
    speakers: list[Any] = [module for module in modules if isinstance(module, PreTrainedModel)]
    heads = {id(speaker.get_output_embeddings()) for speaker in speakers}
    tables = {id(module.weight) for module in modules if isinstance(module, nn.Embedding)}
    linear = [m.weight for m in modules if isinstance(m, nn.Linear) and id(m) not in heads]
    return [weight for weight in linear if id(weight) not in tables]  # a head may share its table


def build_optimizer(
    groups: Sequence[ParameterGroup], masters: Sequence[Sequence[Tensor]], config: OptimizerConfig
) -> Optimizer:
    """Return the optimiser that a configuration names, over the float32 masters.

    Raises:
        ValueError: ``part_lr`` or ``part_betas`` names a part that is not trained, or Muon has
            no hidden layer to train.
    """
    if config.hidden == "muon":
        return MuonAdamW(groups, masters, config)
    return build_adamw(groups, masters, config)


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


class MuonAdamW:
    """Muon for the weights of hidden layers, AdamW for embeddings, vectors and all else.

    Muon turns a matrix's momentum into the nearest orthogonal one, so that no direction of it
    is left behind. Its updates are scaled to the size of AdamW's (Moonlight, arXiv:2502.16982):
    learning rates and weight decay carry over.

    Args:
        groups: What is trained.
        masters: Its float32 weights, by group.
        config: Learning rates, decay, momentum.

    Raises:
        ValueError: No group has a hidden layer.
    """

    def __init__(
        self,
        groups: Sequence[ParameterGroup],
        masters: Sequence[Sequence[Tensor]],
        config: OptimizerConfig,
    ) -> None:
        hidden = {
            id(master)
            for group, members in zip(groups, masters, strict=True)
            for master, is_hidden in zip(members, group.is_hidden, strict=False)
            if is_hidden
        }
        if not hidden:
            parts = ", ".join(group.part for group in groups)
            raise ValueError(f"optimizer.hidden=muon finds no hidden layer in {parts}; use adamw")
        orthogonal: list[dict[str, Any]] = []
        rest: list[dict[str, Any]] = []
        for group in adam_groups(groups, masters, config):
            for into, is_one in ((orthogonal, True), (rest, False)):
                members = [p for p in group["params"] if (id(p) in hidden) is is_one]
                if members:
                    into.append({**group, "params": members})
        self._parts: dict[str, torch.optim.Optimizer] = {
            "muon": torch.optim.Muon(
                orthogonal, momentum=config.muon_momentum, adjust_lr_fn="match_rms_adamw"
            )
        }
        if rest:
            self._parts["adamw"] = torch.optim.AdamW(
                rest, betas=config.betas, eps=config.eps, fused=True
            )

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self._parts.values() for group in part.param_groups]

    def step(self) -> None:
        for part in self._parts.values():
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, part in self._parts.items():
            part.load_state_dict(state_dict[name])


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
