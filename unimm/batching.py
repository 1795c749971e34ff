"""How many rows a model evaluates at once."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch

ItemT = TypeVar("ItemT")


def exact_batch_size(batch_size: int, device: torch.device, dtype: torch.dtype) -> int:
    """Return how many candidates to evaluate at once.

    One in float32 on a CPU. There the shape of a matrix product decides how its sums are split, so
    a row's last bits depend on how many rows there are; alone, a candidate is bit-identical
    whatever the search around it. Small models lose up to half of their speed by this.
    """
    if device.type == "cpu" and dtype == torch.float32:
        return 1
    return batch_size


def batched(items: Sequence[ItemT], size: int) -> Iterator[Sequence[ItemT]]:
    """Yield consecutive slices of at most ``size`` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
