"""AdamW over the float32 shards that ZeRO keeps, with the moving average as one of its states.

As a state the average is sharded, offloaded and checkpointed as the moments are.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .config import OptimizerConfig
from .optimizer import ParameterGroup, adam_groups

MASTER = "master"
AVERAGE = "average"
MOMENTS = ("exp_avg", "exp_avg_sq")


class ShardedAdamW(torch.optim.AdamW):
    """AdamW whose step a gate may refuse.

    ZeRO calls :meth:`step` when it knows the global gradient norm, once or once a group of
    shards, after putting the shards into ``param_groups``. Steps that it takes while it sets
    itself up, with the gate still shut, only create the states.

    Args:
        groups: What is trained.
        config: AdamW and its schedule.
        ema_decay: Of the moving average; 0 keeps none.
    """

    def __init__(
        self, groups: Sequence[ParameterGroup], config: OptimizerConfig, *, ema_decay: float
    ) -> None:
        parameters = [group.parameters for group in groups]
        members = adam_groups(groups, parameters, config)
        super().__init__(members, betas=config.betas, eps=config.eps, fused=True)
        self.ema_decay = ema_decay
        self.gate: Callable[[], bool] = lambda: False
        self.was_taken = False
        self.squares = [0.0] * len(groups)

    @property
    def state_names(self) -> tuple[str, ...]:
        """What is kept of every weight beside its master."""
        return (*MOMENTS, AVERAGE) if self.ema_decay else MOMENTS

    def begin(self) -> None:
        """Forget what the last step reported."""
        self.was_taken, self.squares = False, [0.0] * len(self.squares)

    @torch.no_grad()
    def create_states(self, shards: Iterable[Tensor]) -> None:
        """Create the states of those shards that have none."""
        for shard in shards:
            if not self.state[shard]:
                self.state[shard] = self._fresh_state(shard)

    def _fresh_state(self, shard: Tensor) -> dict[str, Tensor]:
        state = {name: torch.zeros_like(shard) for name in MOMENTS}
        state["step"] = torch.zeros((), dtype=torch.float32, device=shard.device)
        if self.ema_decay:
            state[AVERAGE] = shard.detach().clone()
        return state

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the shards in the groups, if the gate lets it."""
        self.create_states(self._current_shards())
        self._measure()
        if not self.gate():
            return
        super().step()
        self.was_taken = True
        if self.ema_decay:
            for shard in self._current_shards():
                self.state[shard][AVERAGE].lerp_(shard, 1 - self.ema_decay)

    def _current_shards(self) -> list[Tensor]:
        return [shard for group in self.param_groups for shard in group["params"]]

    def _measure(self) -> None:
        for group in self.param_groups:
            gradients = [shard.grad for shard in group["params"] if shard.grad is not None]
            if gradients:
                norm = torch.nn.utils.get_total_norm(gradients).item()
                self.squares[group["part"]] += norm**2
