"""The pixel decoder of a representation autoencoder: a ViT from latent tokens to patches.

Architecture of ViT-MAE's decoder (He et al. 2021, arXiv:2111.06377) as used by RAE
(Zheng et al. 2025, arXiv:2510.11690): embed, prepend a learned class token, add fixed
sin-cos positions, pre-norm blocks, one linear layer to the pixels of each patch.

Shape legend:
    B batch      N latent tokens      P decoder patches      D latent channels      W width
"""

from dataclasses import dataclass
from math import isqrt

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from metaquery.attention import attend


@dataclass(frozen=True, kw_only=True, slots=True)
class RAEDecoderConfig:
    """Size of the pixel decoder.

    Args:
        latent_dim: Channels of a latent token, D.
        image_size: Side of the decoded picture, in pixels; it may exceed the
            encoder's (the upsampling decoder of RAE).
        patch_size: Side of the square that one decoder token paints, in pixels.
        hidden_dim: Width of the blocks.
        depth: Number of blocks.
        num_heads: Attention heads; divides ``hidden_dim``.
        mlp_dim: Width inside each block's MLP.
        layer_norm_eps: ViT-MAE's is 1e-12.
    """

    latent_dim: int
    image_size: int
    patch_size: int
    hidden_dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    layer_norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"decoder image_size ({self.image_size}) must be divisible by "
                f"its patch_size ({self.patch_size})"
            )
        if self.hidden_dim % self.num_heads:
            raise ValueError(
                f"decoder hidden_dim ({self.hidden_dim}) must be divisible by "
                f"num_heads ({self.num_heads})"
            )
        if self.hidden_dim % 4:
            raise ValueError(
                f"decoder hidden_dim must be a multiple of 4 for its 2-D positions, "
                f"got {self.hidden_dim}"
            )

    @property
    def grid_size(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size


class RAEDecoder(nn.Module):
    """Turn latent tokens into pixels, normalised as the encoder's input was."""

    positions: Tensor

    def __init__(self, config: RAEDecoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_dim
        self.embed = nn.Linear(config.latent_dim, width)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("positions", sincos_positions(width, config.grid_size))
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.to_pixels = nn.Linear(width, 3 * config.patch_size**2)

    def forward(self, latents: Float[Tensor, "B N D"]) -> Float[Tensor, "B 3 size size"]:
        hidden = self._to_grid(self.embed(latents))  # (B, P, W)
        token = self.class_token.expand(len(hidden), -1, -1)
        hidden = torch.cat([token, hidden], dim=1) + self.positions.to(hidden.dtype)
        for block in self.blocks:
            hidden = block(hidden)
        return unpatchify(self.to_pixels(self.norm(hidden[:, 1:])), self.config.grid_size)

    def _to_grid(self, tokens: Float[Tensor, "B N W"]) -> Float[Tensor, "B P W"]:
        """Resample the token grid when the decoder paints another number of patches."""
        grid, side = self.config.grid_size, isqrt(tokens.shape[1])
        if side == grid:
            return tokens
        planes = tokens.mT.unflatten(2, (side, side))  # (B, W, side, side)
        planes = F.interpolate(planes, size=(grid, grid), mode="bilinear", align_corners=False)
        return planes.flatten(2).mT


class DecoderBlock(nn.Module):
    """A pre-norm transformer block with LayerNorm and an exact-GELU MLP."""

    def __init__(self, config: RAEDecoderConfig) -> None:
        super().__init__()
        width, eps = config.hidden_dim, config.layer_norm_eps
        self.num_heads = config.num_heads
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.fc1 = nn.Linear(width, config.mlp_dim)
        self.fc2 = nn.Linear(config.mlp_dim, width)

    def forward(self, hidden: Float[Tensor, "B P W"]) -> Float[Tensor, "B P W"]:
        hidden = hidden + self._attention(self.norm1(hidden))
        update: Tensor = self.fc2(F.gelu(self.fc1(self.norm2(hidden))))
        return hidden + update

    def _attention(self, hidden: Float[Tensor, "B P W"]) -> Float[Tensor, "B P W"]:
        qkv = self.qkv(hidden).unflatten(-1, (3, self.num_heads, -1))  # (B, P, 3, heads, d)
        query, key, value = qkv.transpose(1, 3).unbind(2)  # each (B, heads, P, d)
        mixed = attend(query, key, value)
        projected: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return projected


def unpatchify(
    patches: Float[Tensor, "B P values"], grid_size: int
) -> Float[Tensor, "B 3 size size"]:
    """Lay out patches, each (row, column, channel), as pictures."""
    batch = patches.shape[0]
    side = isqrt(patches.shape[2] // 3)
    cells = patches.view(batch, grid_size, grid_size, side, side, 3)
    size = grid_size * side
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(batch, 3, size, size)


def sincos_positions(width: int, grid_size: int) -> Float[Tensor, "1 P width"]:
    """Return ViT-MAE's fixed 2-D positions, a zero row for the class token first.

    The first half of the channels encodes the column, the second half the row.
    """
    frequencies = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    steps = torch.arange(grid_size, dtype=torch.float64)
    angles = steps[:, None] * frequencies  # (grid, width / 4)
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # (grid, width / 2)
    columns = axis[None].expand(grid_size, -1, -1)
    rows = axis[:, None].expand(-1, grid_size, -1)
    table = torch.cat([columns, rows], dim=2).flatten(0, 1)
    return torch.cat([torch.zeros(1, width), table.float()])[None]


def truncate_to_bytes(
    pixels: Float[Tensor, "B 3 height width"],
) -> UInt8[Tensor, "B 3 height width"]:
    """Return 8-bit pixels as RAE and Scale-RAE store them: clipped and cut off, not rounded."""
    return (pixels.detach().float().clamp(0, 1) * 255).byte()
