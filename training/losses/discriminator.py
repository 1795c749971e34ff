"""Critics that tell decoded pictures from real ones, patch by patch.

Shape legend:
    B batch      W feature width      N tokens      M logits
"""

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from .dino import DinoFeatures

SPECTRAL_EPS = 1e-12


class DinoDiscriminator(nn.Module):
    """Light heads on the features of a frozen DINO (StyleGAN-T, arXiv:2301.09515), as in RAE.

    Args:
        features: The frozen ViT; it is not part of the state dict.
        kernel_size: Of the convolution along the tokens.
    """

    def __init__(self, features: DinoFeatures, *, kernel_size: int = 9) -> None:
        super().__init__()
        self.frozen = (features,)  # a tuple, so that its weights are in no checkpoint
        width, count = features.config.hidden_dim, len(features.config.taps) + 1
        self.heads = nn.ModuleList(TokenHead(width, kernel_size) for _ in range(count))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "DinoDiscriminator":
        self.frozen[0]._apply(fn, recurse)  # type: ignore[no-untyped-call]  # noqa: SLF001
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, pixels: Float[Tensor, "B 3 height width"]) -> Float[Tensor, "B M"]:
        taps = self.frozen[0](pixels)
        logits = [head(tap) for head, tap in zip(self.heads, taps, strict=True)]
        return torch.cat(logits, dim=1)


class TokenHead(nn.Module):
    """One logit a token: two normed convolutions, the second around a residual, and a linear."""

    def __init__(self, width: int, kernel_size: int) -> None:
        super().__init__()
        self.first = spectral_conv(width, width, 1)
        self.first_norm = nn.InstanceNorm1d(width, eps=1e-6, affine=True)
        self.second = spectral_conv(width, width, kernel_size)
        self.second_norm = nn.InstanceNorm1d(width, eps=1e-6, affine=True)
        self.logit = spectral_conv(width, 1, 1)

    def forward(self, x: Float[Tensor, "B W N"]) -> Float[Tensor, "B N"]:
        x = F.leaky_relu(self.first_norm(self.first(x)), 0.2)
        update = F.leaky_relu(self.second_norm(self.second(x)), 0.2)
        logits: Tensor = self.logit((x + update) / 2**0.5)
        return logits.squeeze(1)


def spectral_conv(inputs: int, outputs: int, kernel_size: int) -> nn.Module:
    """Return a circular convolution along tokens of spectral norm 1."""
    conv = nn.Conv1d(
        inputs, outputs, kernel_size, padding=kernel_size // 2, padding_mode="circular"
    )
    return spectral_norm(conv, eps=SPECTRAL_EPS)


class PatchDiscriminator(nn.Module):
    """A small convolutional critic from scratch (PatchGAN, Isola et al. 2017, arXiv:1611.07004).

    It needs no foreign weights; one logit sees a patch of 22 pixels a side.

    Args:
        width: Channels of the first layer; the next ones have twice and four times as many.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width)
        self.layers = nn.ModuleList(
            spectral_norm(nn.Conv2d(before, after, 4, stride=2, padding=1), eps=SPECTRAL_EPS)
            for before, after in pairwise(widths)
        )
        self.logit = spectral_norm(nn.Conv2d(widths[-1], 1, 1), eps=SPECTRAL_EPS)

    def forward(self, pixels: Float[Tensor, "B 3 height width"]) -> Float[Tensor, "B M"]:
        x = pixels.float()
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
        logits: Tensor = self.logit(x)
        return logits.flatten(1)
