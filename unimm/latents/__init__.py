"""Latent spaces: images to the tokens that the language model reads and the DiT draws, and back."""

from unimm.latents.decoder import RAEDecoder, RAEDecoderConfig
from unimm.latents.layers import LayerMixConfig, strided_layers
from unimm.latents.space import (
    LatentKind,
    Latents,
    LatentSpace,
    LatentSpaceConfig,
    PatchLatents,
    Pixels,
    build_latent_space,
    check_pixels,
)
from unimm.latents.statistics import LatentStatistics, WelfordAccumulator

__all__ = [
    "LatentKind",
    "LatentSpace",
    "LatentSpaceConfig",
    "LatentStatistics",
    "Latents",
    "LayerMixConfig",
    "PatchLatents",
    "Pixels",
    "RAEDecoder",
    "RAEDecoderConfig",
    "WelfordAccumulator",
    "build_latent_space",
    "check_pixels",
    "strided_layers",
]
