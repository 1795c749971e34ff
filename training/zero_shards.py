"""Where ZeRO keeps which elements of which parameter: the only place that knows its insides.

Written against DeepSpeed 0.19; the extra of the project pins it.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .fragments import Fragment
from .zero_optimizer import MASTER, ShardedAdamW

ReadFn = Callable[[str, int, int], Tensor]
"""Returns elements of a parameter, from its name, the first element and their number."""


class Shards(Protocol):
    """The masters and optimiser states that this process holds."""

    def fragments(self, kind: str) -> Iterator[Fragment]:
        """Yield this process's elements of ``master`` or of a state."""

    def replace(self, kind: str, read: ReadFn) -> None:
        """Take this process's elements from elsewhere."""

    def publish(self, kind: str) -> None:
        """Let the parameters that the model computes with be the masters or the averages."""


def build_shards(
    stage: int, zero: Any, optimizer: ShardedAdamW, names: Mapping[nn.Parameter, str]
) -> Shards:
    """Return the shards of a ZeRO optimiser."""
    if stage == 3:
        if not zero.swap_optimizer:  # what lives on a disk is created by what keeps it there
            optimizer.create_states(zero.fp32_partitioned_groups_flat)
        return _ParameterShards(zero, names)
    optimizer.create_states(zero.single_partition_of_fp32_groups)
    zero._lazy_init_hp_params_optimizer_state()  # noqa: SLF001
    return _StateShards(zero, names)


class _StateShards:
    """ZeRO-1 and 2: parameters whole in every process, masters and states in shards."""

    def __init__(self, zero: Any, names: Mapping[nn.Parameter, str]) -> None:
        self.zero = zero
        self.parameters: dict[Any, str] = dict(names)

    def fragments(self, kind: str) -> Iterator[Fragment]:
        for parameter, name in self.parameters.items():
            mapping = parameter._hp_mapping  # noqa: SLF001
            if mapping is None:  # another process holds all of it
                continue
            values = mapping.get_hp_fragment(_key(kind))
            yield Fragment(name, kind, mapping.lp_fragment_address.start, values.detach())

    @torch.no_grad()
    def replace(self, kind: str, read: ReadFn) -> None:
        for fragment in self.fragments(kind):  # these are views
            fragment.values.copy_(read(fragment.name, fragment.start, len(fragment.values)))

    @torch.no_grad()
    def publish(self, kind: str) -> None:
        if kind == MASTER:
            self.zero.update_lp_params()
            return
        for parameter in self.parameters:
            parameter.data.copy_(parameter.get_full_hp_param(kind))


class _ParameterShards:
    """ZeRO-3: parameters in shards too."""

    def __init__(self, zero: Any, names: Mapping[nn.Parameter, str]) -> None:
        self.zero = zero
        self.parameters: dict[Any, str] = dict(names)

    def fragments(self, kind: str) -> Iterator[Fragment]:
        for parameter, name, start, used in self._places():
            values = self.zero.get_local_fp32_param(parameter, _key(kind))
            yield Fragment(name, kind, start, values.detach()[:used])

    @torch.no_grad()
    def replace(self, kind: str, read: ReadFn) -> None:
        for parameter, name, start, used in self._places():
            values = torch.zeros(parameter.ds_tensor.ds_numel)
            values[:used] = read(name, start, used)
            self.zero.set_local_hp_param(values, parameter, _key(kind))

    def _places(self) -> Iterator[tuple[Any, str, int, int]]:
        """Yield parameters, their names, and which elements of them are here."""
        for parameter, name in self.parameters.items():
            length = parameter.ds_tensor.ds_numel
            start = length * self.zero._get_param_partition_rank(parameter)  # noqa: SLF001
            used = min(length, parameter.ds_numel - start)
            if used > 0:  # the last shards of a small parameter are padding alone
                yield parameter, name, start, used

    @torch.no_grad()
    def publish(self, kind: str) -> None:
        import deepspeed

        for parameter in self.parameters:
            whole = self.zero.get_full_hp_param(parameter, _key(kind))
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.data.copy_(whole.view_as(parameter.data))


def _key(kind: str) -> str | None:
    return None if kind == MASTER else kind
