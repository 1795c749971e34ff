"""Positions of tokens: rotary tables for grids and sequences, fixed sin-cos embeddings.

Shape legend:
    N tokens      d channels of one attention head      W model width
"""

from math import isqrt

import torch
from jaxtyping import Float
from torch import Tensor

BASE = 10_000.0


def _angles(positions: Tensor, dim: int) -> Tensor:
    """Return the angle of each position at ``dim // 2`` geometric frequencies."""
    exponents = torch.arange(0, dim, 2, device="cpu", dtype=torch.float32)[: dim // 2] / dim
    return torch.outer(positions.float(), BASE**-exponents)


def _grid(num_tokens: int) -> tuple[Tensor, Tensor]:
    """Return row and column of every token of a square grid in row-major order."""
    side = isqrt(num_tokens)
    index = torch.arange(num_tokens, device="cpu")
    return index // side, index % side


def grid_rope(num_tokens: int, head_dim: int) -> Float[Tensor, "2 {num_tokens} {head_dim}"]:
    """Return the cosine and signed sine tables of two-dimensional rotary positions.

    The first half of a head's channels turns with the row, the second half
    with the column; neighbouring channels (2i, 2i + 1) form a pair.
    """
    rows, columns = _grid(num_tokens)
    half = head_dim // 2
    return _tables(torch.cat([_angles(rows, half), _angles(columns, half)], dim=1))


def sequence_rope(num_tokens: int, head_dim: int) -> Float[Tensor, "2 {num_tokens} {head_dim}"]:
    """Return the same tables for tokens in a row."""
    return _tables(_angles(torch.arange(num_tokens, device="cpu"), head_dim))


def _tables(angles: Tensor) -> Tensor:
    """Repeat every angle for its pair; the sine carries the sign of the rotation."""
    sine = torch.stack([-angles.sin(), angles.sin()], dim=-1).flatten(1)
    return torch.stack([angles.cos().repeat_interleave(2, dim=1), sine])


def rotate(x: Float[Tensor, "*batch N heads d"], tables: Float[Tensor, "2 N d"]) -> Tensor:
    """Turn queries or keys by their positions, in the dtype of ``x``."""
    cosine, sine = tables.to(x.dtype).unsqueeze(2)  # (N, 1, d) each
    swapped = x.view(*x.shape[:-1], -1, 2).flip(-1).flatten(-2)
    return torch.addcmul(x * cosine, swapped, sine)


def sincos_embedding(num_tokens: int, dim: int) -> Float[Tensor, "{num_tokens} {dim}"]:
    """Return fixed two-dimensional sin-cos positions (He et al. 2021, arXiv:2111.06377).

    The first half of the channels encodes the column, the second the row, as
    in every model that descends from MAE. Computed in float64.
    """
    rows, columns = _grid(num_tokens)
    return torch.cat([_sincos(columns, dim // 2), _sincos(rows, dim // 2)], dim=1).float()


def _sincos(positions: Tensor, dim: int) -> Tensor:
    exponents = torch.arange(dim // 2, device="cpu", dtype=torch.float64) / (dim / 2)
    angles = torch.outer(positions.double(), BASE**-exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
