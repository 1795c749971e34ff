"""One optimiser step on one device: forward elsewhere, backward, clip, AdamW, moving average."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unimm.errors import CheckpointError

from .config import OptimizerConfig
from .optimizer import ParameterGroup, build_adamw, lr_factor


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one optimiser step did.

    Args:
        lr: Learning rate of the first parameter group.
        grad_norm: Global gradient norm before clipping.
        skipped: Whether the update was left out because loss or gradient was not finite.
    """

    lr: float
    grad_norm: float
    skipped: bool


class LocalEngine:
    """Train parameters of one process, with float32 masters under parameters of any precision.

    A bfloat16 weight is too coarse for small updates, so the optimiser, the moving average and
    the checkpoints work on float32 copies, as DeepSpeed's bf16 mode does. For float32 parameters
    the master is the parameter itself.
    """

    def __init__(
        self,
        groups: Sequence[ParameterGroup],
        config: OptimizerConfig,
        *,
        num_steps: int,
        ema_decay: float = 0.0,
    ) -> None:
        self.config = config
        self.num_steps = num_steps
        self.ema_decay = ema_decay
        self.parameters: list[Tensor] = [p for group in groups for p in group.parameters]
        masters = [[_master(p) for p in group.parameters] for group in groups]
        self.masters = [master for members in masters for master in members]
        self.optimizer = build_adamw(groups, masters, config)
        self.averages = [m.detach().clone() for m in self.masters] if ema_decay else []

    def step(self, loss: Tensor, step: int) -> StepReport:
        """Back-propagate ``loss`` and update the parameters.

        Args:
            loss: Scalar.
            step: Number of the step, from 0.
        """
        torch.autograd.backward(loss)
        self._collect_gradients()
        norm = self._clip()
        factor = lr_factor(step, self.num_steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        is_finite = bool(torch.isfinite(norm)) and bool(torch.isfinite(loss))
        if is_finite:
            self.optimizer.step()
            self._publish()
        for parameter in self.parameters:
            parameter.grad = None
        return StepReport(self.optimizer.param_groups[0]["lr"], norm.item(), not is_finite)

    @torch.no_grad()
    def _collect_gradients(self) -> None:
        """Bring the gradients to the masters, into buffers that live as long as the engine."""
        if self.masters[0] is self.parameters[0]:
            return
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            if master.grad is None:
                master.grad = torch.zeros_like(master)
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        torch._foreach_copy_([m.grad for m in self.masters if m.grad is not None], gradients)

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
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where :meth:`state_dict` was called.

        Raises:
            CheckpointError: The state is that of another model.
        """
        if [m.shape for m in self.masters] != [m.shape for m in state["masters"]]:
            raise CheckpointError(
                "the last checkpoint is of a model with other shapes; give run.output_dir a new "
                "folder, or undo what changed in the recipe"
            )
        torch._foreach_copy_(self.masters, state["masters"])
        if self.masters[0] is not self.parameters[0]:
            torch._foreach_copy_(self.parameters, self.masters)
        if self.ema_decay:
            torch._foreach_copy_(self.averages, state["averages"] or state["masters"])
        groups = [(g["peak_lr"], g["weight_decay"]) for g in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        # A resumed run may change these two; the file must not bring the old ones back.
        for group, (peak, decay) in zip(self.optimizer.param_groups, groups, strict=True):
            group["peak_lr"], group["weight_decay"] = peak, decay


def _master(parameter: torch.nn.Parameter) -> Tensor:
    if parameter.dtype == torch.float32:
        return parameter
    return parameter.detach().float().clone().requires_grad_(True)
