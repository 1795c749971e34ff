"""One optimiser step: forward, backward, clip, AdamW, moving average."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from unimm.errors import CheckpointError

from .config import OptimizerConfig
from .optimizer import Optimizer, ParameterGroup, build_optimizer, lr_factor
from .ranks import ALONE, Ranks
from .spikes import SpikeGuard


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one optimiser step did.

    Args:
        lr: Learning rate of the first parameter group.
        grad_norm: Global gradient norm before clipping.
        skipped: Whether the update was left out: loss or gradient not finite, or a spike.
        part_norms: Gradient norm of each part of the model, before clipping.
    """

    lr: float
    grad_norm: float
    skipped: bool
    part_norms: Mapping[str, float] = field(default_factory=dict)


class Engine(Protocol):
    """What turns losses into new weights, in one process or in many.

    A step is one or more calls of :meth:`backward`, each on the output of calling the engine, and
    one :meth:`update`. Gradients *add up* over the calls and over the processes: whoever wants a
    mean divides the loss by the count of the whole step, which makes the update independent of how
    the step was divided.
    """

    ranks: Ranks

    def __call__(self, *inputs: Any) -> Any:
        """Run the trained module."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a scalar loss to those of the step."""

    def update(self, step: int) -> StepReport:
        """Use and forget the gradients; ``step`` is the number of the step, from 0."""

    def averaged(self) -> AbstractContextManager[None]:
        """Let the parameters be their moving average for a while."""

    def save(self, directory: Path) -> dict[str, Any]:
        """Write this process's share of the state; return what is not shared.

        All processes call it. What is returned is wanted from the main process only.
        """

    def load(self, directory: Path, state: dict[str, Any]) -> None:
        """Take up where :meth:`save` was called, on any number of processes."""


class LocalEngine:
    """Train parameters of one process, with float32 masters under parameters of any precision.

    A bfloat16 weight is too coarse for small updates, so the optimiser, the moving average and
    the checkpoints work on float32 copies, as DeepSpeed's bf16 mode does. For float32 parameters
    the master is the parameter itself.

    On several processes each keeps the whole optimiser, and gradients are summed in float32.

    Args:
        groups: What is trained.
        config: The optimiser and its schedule.
        num_steps: Steps of the whole run.
        ema_decay: Of the moving average; 0 keeps none.
        module: What calling the engine runs.
        ranks: The processes of the run.
    """

    def __init__(
        self,
        groups: Sequence[ParameterGroup],
        config: OptimizerConfig,
        *,
        num_steps: int,
        ema_decay: float = 0.0,
        module: nn.Module | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.module = module
        self.ranks = ranks
        self.guard = SpikeGuard(config.spike_factor)
        self.config = config
        self.num_steps = num_steps
        self.ema_decay = ema_decay
        self.parts = [group.part for group in groups]
        self.parameters: list[Tensor] = [p for group in groups for p in group.parameters]
        masters = [[_master(p) for p in group.parameters] for group in groups]
        self.masters = [master for members in masters for master in members]
        self.optimizer = build_optimizer(groups, masters, config)
        self.averages = [m.detach().clone() for m in self.masters] if ema_decay else []

    def __call__(self, *inputs: Any) -> Any:
        if self.module is None:
            raise ValueError("this engine was built without a module to run")
        return self.module(*inputs)

    def backward(self, loss: Tensor) -> None:
        torch.autograd.backward(loss)

    def step(self, loss: Tensor, step: int) -> StepReport:
        """Back-propagate ``loss`` and update the parameters.

        Args:
            loss: Scalar.
            step: Number of the step, from 0.
        """
        self.backward(loss)
        return self.update(step, is_finite=bool(torch.isfinite(loss)))

    def update(self, step: int, *, is_finite: bool = True) -> StepReport:
        """Use and forget the gradients; without a finite loss, only forget them."""
        self._collect_gradients()
        part_norms = self._part_norms()
        norm = self._clip()
        set_learning_rate(self.optimizer, step, self.num_steps, self.config)
        taken = is_finite and self.guard.allows(norm.item())
        if taken:
            self.optimizer.step()
            self._publish()
        self.guard.note(norm.item(), taken=taken)
        for parameter in self.parameters:
            parameter.grad = None
        return StepReport(self.optimizer.param_groups[0]["lr"], norm.item(), not taken, part_norms)

    @torch.no_grad()
    def _collect_gradients(self) -> None:
        """Bring the gradients to the masters, into buffers that live as long as the engine."""
        if self.masters[0] is not self.parameters[0]:
            for parameter, master in zip(self.parameters, self.masters, strict=True):
                if master.grad is None:
                    master.grad = torch.zeros_like(master)
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            torch._foreach_copy_([m.grad for m in self.masters if m.grad is not None], gradients)
        if self.ranks.size > 1:
            for master in self.masters:
                if master.grad is None:
                    master.grad = torch.zeros_like(master)
            self.ranks.sum_in_place([m.grad for m in self.masters if m.grad is not None])

    def _part_norms(self) -> dict[str, float]:
        """Return the norm of each part's gradients."""
        squares = [0.0] * len(self.parts)
        for group in self.optimizer.param_groups:
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            squares[group["part"]] += torch.nn.utils.get_total_norm(gradients).item() ** 2
        return {part: square**0.5 for part, square in zip(self.parts, squares, strict=True)}

    def _clip(self) -> Tensor:
        """Scale the gradients down to the largest allowed norm; return the norm before."""
        gradients = [m.grad for m in self.masters if m.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if 0 < self.config.grad_clip < norm.item():
            torch.nn.utils.clip_grads_with_norm_(self.masters, self.config.grad_clip, norm)
        return norm

    @torch.no_grad()
    def _publish(self) -> None:
        """Copy the masters to the parameters and into the moving average."""
        if self.masters[0] is not self.parameters[0]:
            torch._foreach_copy_(self.parameters, self.masters)
        if self.ema_decay:
            torch._foreach_lerp_(self.averages, self.masters, 1 - self.ema_decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the parameters be their moving average, in the masters' precision where possible."""
        if not self.ema_decay:
            yield
            return
        kept = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.averages)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, kept)

    def final_weights(self) -> list[Tensor]:
        """Return what should be shipped, float32: the moving average if there is one."""
        return self.averages or [m.detach() for m in self.masters]

    def state_dict(self) -> dict[str, Any]:
        """Return all that resuming needs."""
        return {
            "masters": [m.detach() for m in self.masters],
            "averages": self.averages,
            "optimizer": self.optimizer.state_dict(),
            "guard": self.guard.state_dict(),
        }

    def save(self, directory: Path) -> dict[str, Any]:
        return self.state_dict() if self.ranks.is_main else {}

    def load(self, directory: Path, state: dict[str, Any]) -> None:
        self.load_state_dict(state)

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where :meth:`state_dict` was called.

        Raises:
            CheckpointError: The state is that of another model.
        """
        if [m.shape for m in self.masters] != [m.shape for m in state.get("masters", [])]:
            raise CheckpointError(
                "the last checkpoint is of a model with other shapes; give run.output_dir a new "
                "folder, or undo what changed in the recipe"
            )
        torch._foreach_copy_(self.masters, state["masters"])
        if self.masters[0] is not self.parameters[0]:
            torch._foreach_copy_(self.parameters, self.masters)
        if self.ema_decay:
            torch._foreach_copy_(self.averages, state["averages"] or state["masters"])
        if "guard" in state:
            self.guard.load_state_dict(state["guard"])
        ours = ("peak_lr", "weight_decay", "betas", "momentum", "part")
        settings = [
            {key: group[key] for key in ours if key in group}
            for group in self.optimizer.param_groups
        ]
        if set(state["optimizer"]) != set(self.optimizer.state_dict()):
            raise CheckpointError(
                f"the last checkpoint is not of optimizer.hidden={self.config.hidden}; undo the "
                f"change, or give run.output_dir a new folder and init this one's model"
            )
        self.optimizer.load_state_dict(state["optimizer"])
        # A resumed run may change these; the file must not bring the old ones back.
        for group, kept in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(kept)


def set_learning_rate(
    optimizer: Optimizer, step: int, num_steps: int, config: OptimizerConfig
) -> None:
    """Give every group of an optimiser its learning rate of a step."""
    factor = lr_factor(step, num_steps, config)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def _master(parameter: torch.nn.Parameter) -> Tensor:
    if parameter.dtype == torch.float32:
        return parameter
    return parameter.detach().float().clone().requires_grad_(True)
