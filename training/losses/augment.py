"""Differentiable augmentation of what a critic sees (Zhao et al. 2020, arXiv:2006.10738)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

NUM_DRAWS = 5
LARGEST_SHIFT = 0.125
"""Share of a side by which a picture moves at most."""


def augment(
    pixels: Float[Tensor, "B 3 height width"], *, generator: Generator | None = None
) -> Float[Tensor, "B 3 height width"]:
    """Return pictures moved and recoloured at random, each its own way."""
    shape = (NUM_DRAWS, len(pixels))
    return augment_by(pixels, torch.rand(shape, generator=generator, device=pixels.device))


def augment_by(
    pixels: Float[Tensor, "B 3 height width"], draws: Float[Tensor, "5 B"]
) -> Float[Tensor, "B 3 height width"]:
    """Return pictures augmented by given draws in [0, 1).

    In this order: moved down and right (zeros come in), brightness +-0.5, saturation times
    0 to 2, contrast times 0.5 to 1.5.
    """
    down, right, brightness, saturation, contrast = draws
    x = translate(pixels.float(), _offsets(down, pixels.shape[2]), _offsets(right, pixels.shape[3]))
    x = x + (brightness - 0.5).view(-1, 1, 1, 1)
    grey = x.mean(dim=1, keepdim=True)
    x = grey + (x - grey) * (2 * saturation).view(-1, 1, 1, 1)
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    augmented: Tensor = mean + (x - mean) * (0.5 + contrast).view(-1, 1, 1, 1)
    return augmented


def _offsets(draws: Float[Tensor, "B"], side: int) -> Tensor:
    largest = round(side * LARGEST_SHIFT)
    return (draws * (2 * largest + 1)).floor().long() - largest


def translate(
    pixels: Float[Tensor, "B 3 height width"], rows: Tensor, columns: Tensor
) -> Float[Tensor, "B 3 height width"]:
    """Return pictures in which position (i, j) shows what was at (i + rows, j + columns)."""
    batch, _, height, width = pixels.shape
    device = pixels.device
    # Beyond the border lies one row and one column of zeros.
    row = (torch.arange(height, device=device) + rows[:, None] + 1).clamp(0, height + 1)
    column = (torch.arange(width, device=device) + columns[:, None] + 1).clamp(0, width + 1)
    padded = F.pad(pixels, (1, 1, 1, 1)).permute(0, 2, 3, 1)
    sample = torch.arange(batch, device=device).view(-1, 1, 1)
    return padded[sample, row[:, :, None], column[:, None, :]].permute(0, 3, 1, 2)
