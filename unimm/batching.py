"""How many rows a model evaluates at once."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import nn

from metaquery.generator import LatentGenerator
from metaquery.layers import Linear

ItemT = TypeVar("ItemT")

_VECTOR = 32
"""Float32 values that an elementwise loop handles at a time, at most."""


def exact_batch_size(batch_size: int, device: torch.device, dtype: torch.dtype) -> int:
    """Return how many candidates to evaluate at once.

    One in float32 on a CPU. There the shape of a matrix product decides how its sums are split, so
    a row's last bits depend on how many rows there are; alone, a candidate is bit-identical
    whatever the search around it. Small models lose up to half of their speed by this.
    """
    if device.type == "cpu" and dtype == torch.float32:
        return 1
    return batch_size


def denoising_batch_size(batch_size: int, generator: LatentGenerator) -> int:
    """Return how many candidates to denoise at once.

    The generator multiplies sample by sample (:class:`metaquery.layers.Linear`), so what is left
    in float32 on a CPU are elementwise loops: a thread's share must end where a vector does, else
    the last few values go through other instructions. With widths in multiples of 32 that holds
    for one and two threads; for other models and machines a candidate is drawn alone.
    """
    parameter = next(generator.parameters())
    linears = [m for m in generator.modules() if isinstance(m, nn.Linear)]
    is_exact = (
        torch.get_num_threads() <= 2
        and generator.config.dit.num_latent_tokens % 2 == 0
        and all(isinstance(m, Linear) and m.out_features % _VECTOR == 0 for m in linears)
    )
    if is_exact:
        return batch_size
    return exact_batch_size(batch_size, parameter.device, parameter.dtype)


def batched(items: Sequence[ItemT], size: int) -> Iterator[Sequence[ItemT]]:
    """Yield consecutive slices of at most ``size`` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
