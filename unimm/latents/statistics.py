"""Exact mean and variance of latents, accumulated batch by batch.

Shape legend:
    B batch      N latent tokens      D latent channels
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LatentStatistics:
    """Per-channel statistics that standardise raw features.

    Args:
        mean: (D,) or (N, D); None means zero, as some released files have it.
        variance: Population variance of the same shape; None means one.
        eps: Added to the variance before the root.
    """

    mean: Tensor | None
    variance: Tensor | None
    eps: float = 1e-5

    def standardise(self, raw: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Return ``(raw - mean) / sqrt(variance + eps)``."""
        centred = raw if self.mean is None else raw - self.mean.to(raw)
        return centred if self.variance is None else centred / self._scale(raw)

    def restore(self, latents: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Invert :meth:`standardise`."""
        scaled = latents if self.variance is None else latents * self._scale(latents)
        return scaled if self.mean is None else scaled + self.mean.to(latents)

    def _scale(self, like: Tensor) -> Tensor:
        assert self.variance is not None
        return (self.variance.to(like) + self.eps).sqrt()


class WelfordAccumulator:
    """Mean and population variance in one pass (Welford 1962; merging by Chan et al. 1979).

    Exact whatever the batch sizes: unlike a running average with momentum, the result
    does not depend on the order of the batches beyond float64 rounding.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self.sum_of_squares = torch.zeros(())

    def update(self, values: Float[Tensor, "samples ..."]) -> None:
        """Take in samples along the first dimension."""
        if not len(values):
            return
        batch = values.detach().double()
        other = WelfordAccumulator()
        other.count = len(batch)
        other.mean = batch.mean(dim=0)
        other.sum_of_squares = (batch - other.mean).square().sum(dim=0)
        self.merge(other)

    def merge(self, other: "WelfordAccumulator") -> None:
        """Take in another accumulator's samples, for example another process's."""
        if other.count == 0:
            return
        total = self.count + other.count
        delta = other.mean - self.mean
        self.mean = self.mean + delta * (other.count / total)
        self.sum_of_squares = (
            self.sum_of_squares
            + other.sum_of_squares
            + delta.square() * (self.count * other.count / total)
        )
        self.count = total

    def result(self, eps: float = 1e-5) -> LatentStatistics:
        """Return the statistics so far.

        Raises:
            ValueError: No sample was taken in.
        """
        if self.count == 0:
            raise ValueError("no sample was accumulated; encode at least one picture first")
        variance = self.sum_of_squares / self.count
        return LatentStatistics(self.mean.float(), variance.float(), eps)
