"""SigLIP-2's patch features as a latent space (Tschannen et al. 2025, arXiv:2502.14786).

A fixed-resolution SigLIP-2 checkpoint has the classes of SigLIP in transformers
(``SiglipVisionModel``); the Siglip2 classes are for the variable-resolution variant.

Shape legend:
    B batch      N latent tokens      D latent channels
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from unimm.latents.decoder import RAEDecoder
from unimm.latents.space import Latents, LatentSpaceConfig, Pixels, check_latents, check_pixels

LAYER_NORM_EPS = 1e-6


class SiglipLatents(nn.Module):
    """A frozen SigLIP-2 tower and the pixel decoder that inverts it.

    A latent token is the last hidden state *before* the tower's post-norm, then a
    LayerNorm without affine part, so every token has zero mean and unit variance
    over its channels, as Scale-RAE does (arXiv:2601.16208).
    """

    def __init__(self, config: LatentSpaceConfig) -> None:
        super().__init__()
        self.config = config
        self.image_size = config.image_size
        self.num_tokens = config.num_tokens
        self.dim = config.dim
        self.tower = build_tower(config)
        self.decoder = RAEDecoder(config.decoder) if config.decoder else None
        # Stored in the config, not in the weights.
        mean, std = torch.tensor(config.image_mean), torch.tensor(config.image_std)
        self.register_buffer("image_mean", mean.view(3, 1, 1), persistent=False)
        self.register_buffer("image_std", std.view(3, 1, 1), persistent=False)

    def encode(self, pixels: Pixels) -> Latents:
        """Return the latents of pictures of exactly ``image_size`` pixels a side."""
        check_pixels(pixels, self.image_size)
        hidden = self.hidden_states(pixels)
        return F.layer_norm(hidden.float(), (self.dim,), eps=LAYER_NORM_EPS).to(pixels.dtype)

    def hidden_states(self, pixels: Pixels) -> Latents:
        """Return the tower's last hidden state before its post-norm."""
        weight = self.tower.embeddings.patch_embedding.weight
        normalised = (pixels - self.image_mean.to(pixels.dtype)) / self.image_std.to(pixels.dtype)
        embedded = self.tower.embeddings(normalised.to(weight.dtype))
        hidden: Tensor = self.tower.encoder(inputs_embeds=embedded).last_hidden_state
        return hidden

    def decode(self, latents: Latents) -> Pixels:
        """Return pictures with values clamped to [0, 1]."""
        return self.decode_unclamped(latents).float().clamp(0, 1)

    def decode_unclamped(self, latents: Latents) -> Pixels:
        """Return the decoder's own values, which a training loss needs."""
        if self.decoder is None:
            raise ValueError("this latent space has no pixel decoder; load one to see pictures")
        check_latents(latents, self.num_tokens, self.dim)
        weight = self.decoder.embed.weight
        pixels: Tensor = self.decoder(latents.to(weight.dtype))
        return pixels * self.image_std.to(pixels.dtype) + self.image_mean.to(pixels.dtype)


def build_tower(config: LatentSpaceConfig) -> nn.Module:
    """Return the tower that ``config`` describes, with random weights and no pooling head."""
    tower = SiglipVisionConfig(
        **{
            **config.tower,
            "image_size": config.image_size,
            "patch_size": config.patch_size,
            "vision_use_head": False,
        }
    )
    model = SiglipVisionModel(tower)
    # Older releases of transformers wrap the transformer once more; keys on disk must not differ.
    return getattr(model, "vision_model", model)
