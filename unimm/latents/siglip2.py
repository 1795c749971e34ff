"""SigLIP-2's patch features as a latent space (Tschannen et al. 2025, arXiv:2502.14786).

A fixed-resolution SigLIP-2 checkpoint has the classes of SigLIP in transformers
(``SiglipVisionModel``); the Siglip2 classes are for the variable-resolution variant.

Shape legend:
    B batch      N latent tokens      D latent channels
"""

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from unimm.latents.space import Latents, LatentSpaceConfig, Pixels
from unimm.latents.tower import LAYER_NORM_EPS, TowerLatents


class SiglipLatents(TowerLatents):
    """A frozen SigLIP-2 tower and the pixel decoder that inverts it.

    A latent token is the last hidden state *before* the tower's post-norm, then a
    LayerNorm without affine part, so every token has zero mean and unit variance
    over its channels, as Scale-RAE does (arXiv:2601.16208).
    """

    def __init__(self, config: LatentSpaceConfig) -> None:
        super().__init__(config, build_tower(config))

    def last_features(self, normalised: Pixels) -> Latents:
        """Return the last hidden state under a LayerNorm without weights, in float32."""
        hidden = self.run_tower(normalised)
        return F.layer_norm(hidden.float(), (self.dim,), eps=LAYER_NORM_EPS)

    def hidden_states(self, pixels: Pixels) -> Latents:
        """Return the tower's last hidden state before its post-norm."""
        return self.run_tower(self.normalise(pixels))

    def encode_rounded(self, pixels: Pixels) -> Latents:
        """Return latents rounded where Scale-RAE's released inference on a GPU rounds them.

        Pixels, features and the LayerNorm are bfloat16, the tower itself keeps its dtype.
        """
        hidden = self.run_tower(self.normalise(pixels.float()).bfloat16()).bfloat16()
        return F.layer_norm(hidden, (self.dim,), eps=LAYER_NORM_EPS)

    def blocks(self) -> nn.ModuleList:
        layers: nn.ModuleList = self.tower.encoder.layers
        return layers

    def last_norm(self) -> nn.Module:
        norm: nn.Module = self.tower.post_layernorm
        return norm

    def run_tower(self, normalised: Pixels) -> Tensor:
        """Return the last hidden state before the post-norm."""
        embeddings = self.tower.embeddings
        pixels = normalised.to(embeddings.patch_embedding.weight.dtype)
        interpolates = len(embeddings.position_embedding.weight) != self.num_tokens
        embedded = embeddings(pixels, interpolate_pos_encoding=interpolates)
        hidden: Tensor = self.tower.encoder(inputs_embeds=embedded).last_hidden_state
        return hidden


def build_tower(config: LatentSpaceConfig) -> nn.Module:
    """Return the tower that ``config`` describes, with random weights and no pooling head."""
    tower = SiglipVisionConfig(
        **{
            "image_size": config.tower_size,
            **config.tower,
            "patch_size": config.patch_size,
            "vision_use_head": False,
        }
    )
    model = SiglipVisionModel(tower)
    # Older releases of transformers wrap the transformer once more; keys on disk must not differ.
    return getattr(model, "vision_model", model)
