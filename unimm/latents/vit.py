"""Patch features of DINOv2, DINOv3 and MAE as latent spaces, as in RAE (arXiv:2510.11690).

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
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ViTMAEConfig,
    ViTMAEModel,
)

from unimm.latents.space import Latents, LatentSpaceConfig, Pixels
from unimm.latents.tower import TowerLatents

_CLASSES: dict[str, tuple[Any, Any]] = {
    "dinov2": (Dinov2Config, Dinov2Model),
    "dinov2_with_registers": (Dinov2WithRegistersConfig, Dinov2WithRegistersModel),
    "dinov3": (DINOv3ViTConfig, DINOv3ViTModel),
    "mae": (ViTMAEConfig, ViTMAEModel),
}


class ViTLatents(TowerLatents):
    """A frozen ViT that ends in a LayerNorm; a latent token is its patch token, normed.

    Unless ``affine_norm`` is set, that LayerNorm has no weights. Class and register tokens are
    left out.
    """

    def __init__(self, config: LatentSpaceConfig) -> None:
        super().__init__(config, build_tower(config))

    def last_features(self, normalised: Pixels) -> Latents:
        """Return the patch tokens after the last norm."""
        return self.run_tower(normalised)[:, -self.num_tokens :]

    def blocks(self) -> nn.ModuleList:
        kind = self.config.kind
        if kind == "mae":
            found = self.tower.layers
        else:
            found = (self.tower.model if kind == "dinov3" else self.tower.encoder).layer
        blocks: nn.ModuleList = found
        return blocks

    def last_norm(self) -> nn.Module:
        norm: nn.Module = self.tower.get_submodule(norm_name(self.config))
        return norm

    def run_tower(self, normalised: Pixels) -> Tensor:
        """Return all tokens after the last norm."""
        embed = self.tower.embeddings.patch_embeddings
        pixels = normalised.to(next(embed.parameters()).dtype)
        if self.config.kind == "mae":
            # MAE shuffles patches by the order of this noise, even when it masks none.
            order = torch.arange(self.num_tokens, device=pixels.device, dtype=pixels.dtype)
            noise = order.expand(len(pixels), -1)
            output = self.tower(pixels, noise, interpolate_pos_encoding=True)
        else:
            output = self.tower(pixels)
        tokens: Tensor = output.last_hidden_state
        return tokens


def norm_name(config: LatentSpaceConfig) -> str:
    """Return what the tower calls its last norm."""
    return "norm" if config.kind == "dinov3" else "layernorm"


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
        norm = tower.get_submodule(norm_name(config))
        assert isinstance(norm, nn.LayerNorm)
        plain = nn.LayerNorm(config.dim, eps=norm.eps, elementwise_affine=False)
        tower.register_module(norm_name(config), plain)
    return tower
