"""Losses of a decoder and its critic, and how the two are weighed."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Logits = Float[Tensor, "B M"]
Scalar = Float[Tensor, ""]


def hinge_loss(real: Logits, fake: Logits) -> Scalar:
    """Return the critic's hinge loss: nothing to gain beyond a margin of 1."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def vanilla_loss(real: Logits, fake: Logits) -> Scalar:
    """Return the critic's cross-entropy (Goodfellow et al. 2014, arXiv:1406.2661)."""
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def generator_loss(fake: Logits) -> Scalar:
    """Return what the decoder minimises to be taken for real."""
    return -fake.mean()


def adaptive_weight(
    reconstruction: Scalar,
    adversarial: Scalar,
    last_weight: Tensor,
    *,
    largest: float = 1e4,
    synchronise: bool = True,
) -> Scalar:
    """Return the weight at which both losses pull equally at the last layer.

    The ratio of gradient norms of VQGAN (Esser et al. 2020, arXiv:2012.09841), clamped. Ranks
    see the ratio of their mean gradients, so that it does not depend on their number; with
    ``synchronise`` off, each its own, as in RAE's code.
    """
    pull, push = (
        torch.autograd.grad(loss, last_weight, retain_graph=True)[0].float().contiguous()
        for loss in (reconstruction, adversarial)
    )
    if synchronise:
        average_over_ranks([pull, push])
    ratio: Tensor = torch.linalg.vector_norm(pull) / (torch.linalg.vector_norm(push) + 1e-6)
    return ratio.clamp(0.0, largest).detach()


def quantise(pixels: Tensor) -> Tensor:
    """Return pixels in [-1, 1] as a file of 8 bits would hold them."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def average_over_ranks(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their mean over all processes, in place; nothing to do in one process."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    members = list(tensors)
    flat = torch.cat([tensor.flatten() for tensor in members])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    pieces = flat.split([tensor.numel() for tensor in members])
    for tensor, piece in zip(members, pieces, strict=True):
        tensor.copy_(piece.view_as(tensor))
