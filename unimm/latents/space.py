"""Latent spaces: usually one, shared by understanding and generation.

Shape legend:
    B batch      N latent tokens      D latent channels
"""

from dataclasses import dataclass, field
from math import isqrt
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unimm.latents.decoder import RAEDecoderConfig
from unimm.latents.layers import LayerMixConfig

Pixels = Float[Tensor, "B 3 height width"]
Latents = Float[Tensor, "B N D"]

LatentKind = Literal[
    "siglip2", "dinov2", "dinov2_with_registers", "dinov3", "mae", "flux_vae", "patches"
]


@runtime_checkable
class LatentSpace(Protocol):
    """Images to standardised latent tokens and back.

    Pixels are RGB in [0, 1]. Latents are row-major tokens of about zero mean and
    unit variance: the only form of latents outside this package.
    """

    image_size: int
    num_tokens: int
    dim: int

    def encode(self, pixels: Pixels) -> Latents: ...

    def decode(self, latents: Latents) -> Pixels: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentSpaceConfig:
    """Which latent space to use and its size.

    Args:
        kind: Architecture of the tower; ``flux_vae`` is diffusers' AutoencoderKL (extra
            ``vae``), and ``patches`` an exact linear stand-in that needs no weights, for tests.
        image_size: Side of the square picture that the space encodes, in pixels.
        patch_size: Side of one token's patch, in pixels; divides what the tower reads.
        encoder_size: Side to which the tower's pictures are scaled first (bicubic, as RAE
            does); None for ``image_size``.
        tower: Hugging Face vision config (``hidden_size``, ``num_hidden_layers``, ...)
            of the tower; its ``hidden_size`` is the latent dim. Positions are interpolated
            where its own ``image_size`` differs from what it reads. Of ``flux_vae``, the config
            of the AutoencoderKL: its latents, shifted and scaled as that says, are cut into
            squares that cover ``patch_size`` pixels (16 for FLUX: 2 x 2 points of its grid).
        layers: Several layers of the tower in one latent; None for the last alone.
        affine_norm: Keep the weights of the tower's last LayerNorm, as WebSSL latents do.
        statistics: Whether raw features are standardised by a stored mean and scale.
        image_mean: Per-channel mean that the tower's pixels are centred by.
        image_std: Per-channel deviation that they are divided by.
        decoder: The pixel decoder; None for a space that only reads.
    """

    kind: LatentKind = "siglip2"
    image_size: int = 224
    patch_size: int = 14
    encoder_size: int | None = None
    tower: dict[str, Any] = field(default_factory=dict)
    layers: LayerMixConfig | None = None
    affine_norm: bool = False
    statistics: bool = False
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    decoder: RAEDecoderConfig | None = None

    def __post_init__(self) -> None:
        if self.patch_size < 1 or self.tower_size % self.patch_size:
            name = "image_size" if self.encoder_size is None else "encoder_size"
            raise ValueError(
                f"{name} ({self.tower_size}) must be divisible by patch_size ({self.patch_size})"
            )
        if self.kind == "siglip2" and self.affine_norm:
            raise ValueError("affine_norm must be false for siglip2: its last norm is left out")
        if self.kind == "flux_vae":
            self._check_autoencoder()
        if self.layers is not None:
            self._check_layers(self.layers)
        if self.decoder is not None and self.kind != "patches":
            self._check_decoder(self.decoder)

    def _check_autoencoder(self) -> None:
        for key in ("latent_channels", "block_out_channels"):
            if key not in self.tower:
                raise ValueError(f"tower must have {key!r}, as in an AutoencoderKL's config.json")
        if self.patch_size % self.stride:
            raise ValueError(
                f"patch_size ({self.patch_size}) must be a multiple of {self.stride}, the pixels "
                f"along a point of this autoencoder's grid"
            )
        for name in ("encoder_size", "layers", "affine_norm", "statistics", "decoder"):
            if getattr(self, name):
                raise ValueError(f"{name} must not be given for latents of kind 'flux_vae'")
        if set(self.image_mean + self.image_std) != {0.5}:
            raise ValueError("image_mean and image_std must be 0.5 for latents of kind 'flux_vae'")

    def _check_layers(self, mix: LayerMixConfig) -> None:
        if self.kind == "patches":
            raise ValueError("layers must be null for latents of kind 'patches': there is no tower")
        depth = self.tower.get("num_hidden_layers")
        if depth is not None and mix.layers[-1] >= depth:
            raise ValueError(
                f"layers must be below num_hidden_layers ({depth}), got {mix.layers[-1]}"
            )

    def _check_decoder(self, decoder: RAEDecoderConfig) -> None:
        if decoder.latent_dim != self.dim:
            raise ValueError(
                f"the decoder reads {decoder.latent_dim} channels but the tower gives {self.dim}; "
                f"this decoder belongs to another encoder"
            )

    @property
    def dim(self) -> int:
        """Channels of one latent token, D."""
        if self.kind == "patches":
            return 3 * self.patch_size**2
        if self.kind == "flux_vae":
            return int(self.tower["latent_channels"]) * (self.patch_size // self.stride) ** 2
        return int(self.tower.get("hidden_size", 1152))

    @property
    def stride(self) -> int:
        """Pixels along one point of an autoencoder's grid; every block but the last halves it."""
        return int(2 ** (len(self.tower["block_out_channels"]) - 1))

    @property
    def num_tokens(self) -> int:
        """Tokens per picture, N: a square grid."""
        return (self.tower_size // self.patch_size) ** 2

    @property
    def tower_size(self) -> int:
        """Side of the picture that the tower reads."""
        return self.encoder_size or self.image_size


class PatchLatents(nn.Module):
    """Latents that are the pixels themselves, rescaled to about unit variance."""

    def __init__(self, image_size: int, patch_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.patch_size = patch_size
        self.num_tokens = (image_size // patch_size) ** 2
        self.dim = 3 * patch_size**2

    def encode(self, pixels: Pixels) -> Latents:
        check_pixels(pixels, self.image_size)
        patch = self.patch_size
        tokens = torch.nn.functional.unfold(pixels, patch, stride=patch)  # (B, D, N)
        return (tokens.mT - 0.5) / 0.25

    def decode(self, latents: Latents) -> Pixels:
        patch, size = self.patch_size, self.image_size
        tokens = (latents * 0.25 + 0.5).mT  # (B, D, N)
        return torch.nn.functional.fold(tokens, (size, size), patch, stride=patch).clamp(0, 1)


def build_latent_space(config: LatentSpaceConfig) -> "nn.Module & LatentSpace":  # type: ignore[valid-type]
    """Return the latent space that ``config`` names, with freshly initialised weights."""
    match config.kind:
        case "patches":
            return PatchLatents(config.image_size, config.patch_size)
        case "siglip2":
            from unimm.latents.siglip2 import SiglipLatents  # imports transformers

            return SiglipLatents(config)
        case "flux_vae":
            from unimm.latents.vae import VAELatents  # imports diffusers

            return VAELatents(config)
        case _:
            from unimm.latents.vit import ViTLatents  # imports transformers

            return ViTLatents(config)


def check_pixels(pixels: Tensor, image_size: int) -> None:
    """Raise ValueError unless ``pixels`` is a batch this space can encode."""
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        raise ValueError(
            f"pixels must have shape (batch, 3, height, width), got {tuple(pixels.shape)}"
        )
    if pixels.shape[-2:] != (image_size, image_size):
        height, width = pixels.shape[-2:]
        raise ValueError(
            f"pixels must be {image_size} x {image_size}, got {height} x {width}; "
            f"resize with unimm.image first"
        )
    if not pixels.is_floating_point():
        raise ValueError(
            f"pixels must be floats in [0, 1], got {pixels.dtype}; divide by 255 first"
        )


def check_latents(latents: Tensor, num_tokens: int, dim: int) -> None:
    """Raise ValueError unless ``latents`` is a batch of this space."""
    if latents.ndim != 3 or latents.shape[1:] != (num_tokens, dim):
        side = isqrt(num_tokens)
        raise ValueError(
            f"latents must have shape (batch, {num_tokens}, {dim}), a {side} x {side} grid, "
            f"got {tuple(latents.shape)}; they belong to another latent space"
        )
