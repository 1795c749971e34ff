"""Patch features of DINOv2 and MAE as latent spaces, as RAE uses them (arXiv:2510.11690).

Shape legend:
    B batch      N latent tokens      D latent channels
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTMAEConfig,
    ViTMAEModel,
)

from unimm.latents.space import Latents, LatentSpaceConfig, Pixels
from unimm.latents.tower import TowerLatents

_CLASSES: dict[str, tuple[Any, Any]] = {
    "dinov2": (Dinov2Config, Dinov2Model),
    "dinov2_with_registers": (Dinov2WithRegistersConfig, Dinov2WithRegistersModel),
    "mae": (ViTMAEConfig, ViTMAEModel),
}


class ViTLatents(TowerLatents):
    """A frozen ViT that ends in a LayerNorm; a latent token is its patch token, normed.

    Unless ``affine_norm`` is set, that LayerNorm has no weights. Class and register tokens are
    left out.
    """

    def __init__(self, config: LatentSpaceConfig) -> None:
        super().__init__(config, build_tower(config))

    def features(self, normalised: Pixels) -> Latents:
        """Return the patch tokens after the last norm."""
        pixels = normalised.to(self.tower.embeddings.patch_embeddings.projection.weight.dtype)
        if self.config.kind == "mae":
            # MAE shuffles patches by the order of this noise, even when it masks none.
            order = torch.arange(self.num_tokens, device=pixels.device, dtype=pixels.dtype)
            noise = order.expand(len(pixels), -1)
            output = self.tower(pixels, noise, interpolate_pos_encoding=True)
        else:
            output = self.tower(pixels)
        tokens: Tensor = output.last_hidden_state[:, -self.num_tokens :]
        return tokens


def build_tower(config: LatentSpaceConfig) -> nn.Module:
    """Return the tower that ``config`` describes, with random weights."""
    config_class, model_class = _CLASSES[config.kind]
    settings = {
        "image_size": config.tower_size,
        **config.tower,
        "patch_size": config.patch_size,
    }
    if config.kind == "mae":
        settings["mask_ratio"] = 0.0
    tower: nn.Module = model_class(config_class(**settings))
    if not config.affine_norm:
        norm = tower.get_submodule("layernorm")
        assert isinstance(norm, nn.LayerNorm)
        plain = nn.LayerNorm(config.dim, eps=norm.eps, elementwise_affine=False)
        tower.register_module("layernorm", plain)
    return tower
