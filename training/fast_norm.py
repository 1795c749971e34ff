"""RMSNorm in half the passes over memory: on a CPU, norms cost a third of a small model's step."""

from typing import Any

import torch
from torch import Tensor, nn


class _RMSNormFunction(torch.autograd.Function):
    """Forward and backward of RMSNorm with one saved activation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        scale = (length.square() / x.shape[-1] + eps).rsqrt().to(x.dtype)
        normed = x * scale
        ctx.save_for_backward(normed, weight, scale)
        return normed * weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,) = gradients
        normed, weight, scale = ctx.saved_tensors
        weight_gradient = (gradient * normed).flatten(0, -2).sum(dim=0)
        inner = gradient * weight
        along = (inner * normed).mean(dim=-1, keepdim=True)
        return (inner - normed * along) * scale, weight_gradient, None


class FastRMSNorm(nn.Module):
    """RMSNorm that shares the weight of the module it stands in for."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight = weight
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = _RMSNormFunction.apply(x, self.weight, self.eps)  # type: ignore[no-untyped-call]
        return normed


def use_fast_norms(model: nn.Module) -> None:
    """Replace a Hugging Face model's RMSNorms; parameters and their names stay."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm") and hasattr(child, "variance_epsilon"):
                eps: Any = child.variance_epsilon
                setattr(parent, name, FastRMSNorm(child.get_parameter("weight"), eps))
