"""What latent spaces made of a vision tower and a pixel decoder have in common.

Shape legend:
    B batch      N latent tokens      D latent channels
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unimm.latents.decoder import RAEDecoder
from unimm.latents.layers import captured_outputs, mix_layers, norm_layer
from unimm.latents.space import Latents, LatentSpaceConfig, Pixels, check_latents, check_pixels

LAYER_NORM_EPS = 1e-6


class TowerLatents(nn.Module):
    """A frozen vision tower and the pixel decoder that inverts it.

    A subclass makes ``tower`` and says what of it the latents are: :meth:`last_features` for
    the last layer, :meth:`run_tower`, :meth:`blocks` and :meth:`last_norm` for several.

    Args:
        config: Of the latent space.
        tower: The frozen tower.
    """

    tower: Any  # one of several classes of transformers
    image_mean: Tensor
    image_std: Tensor
    latent_mean: Tensor
    latent_scale: Tensor

    def __init__(self, config: LatentSpaceConfig, tower: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.image_size = config.image_size
        self.num_tokens = config.num_tokens
        self.dim = config.dim
        self.tower = tower
        self.decoder = RAEDecoder(config.decoder) if config.decoder else None
        # Stored in the config, not in the weights.
        mean, std = torch.tensor(config.image_mean), torch.tensor(config.image_std)
        self.register_buffer("image_mean", mean.view(3, 1, 1), persistent=False)
        self.register_buffer("image_std", std.view(3, 1, 1), persistent=False)
        if config.statistics:
            self.register_buffer("latent_mean", torch.zeros(self.num_tokens, self.dim))
            self.register_buffer("latent_scale", torch.ones(self.num_tokens, self.dim))

    def train(self, mode: bool = True) -> "TowerLatents":
        """Set the mode of what is trained; a frozen tower stays in evaluation mode.

        Towers may move positions or drop paths in training, and latents must not change.
        """
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.tower.parameters()):
            self.tower.eval()
        return self

    def features(self, normalised: Pixels) -> Latents:
        """Return the raw features of pixels as the tower wants them, before any statistics."""
        if self.config.layers is None:
            return self.last_features(normalised)
        return mix_layers(self.layer_features(normalised), self.config.layers)

    def layer_features(self, normalised: Pixels) -> list[Latents]:
        """Return the normed patch tokens of every layer that makes up a latent, float32."""
        mix = self.config.layers
        if mix is None:
            raise ValueError("this latent space has one layer; name several as layers")
        with captured_outputs(self.blocks(), mix.layers) as outputs:
            self.run_tower(normalised)
        return [
            norm_layer(outputs[index][:, -self.num_tokens :], mix, self.last_norm())
            for index in mix.layers
        ]

    def last_features(self, normalised: Pixels) -> Latents:
        """Return the raw features of the tower's last layer."""
        raise NotImplementedError

    def run_tower(self, normalised: Pixels) -> Tensor:
        """Run all blocks of the tower and return what its last one gives."""
        raise NotImplementedError

    def blocks(self) -> nn.ModuleList:
        """Return the tower's blocks."""
        raise NotImplementedError

    def last_norm(self) -> nn.Module:
        """Return the tower's own last norm."""
        raise NotImplementedError

    def encode(self, pixels: Pixels) -> Latents:
        """Return the latents of pictures of exactly ``image_size`` pixels a side."""
        check_pixels(pixels, self.image_size)
        raw = self.features(self.normalise(pixels)).float()
        return self.standardise(raw).to(pixels.dtype)

    def normalise(self, pixels: Pixels) -> Float[Tensor, "B 3 side side"]:
        """Return pixels scaled to the tower's size, centred and divided as it was trained."""
        side = self.config.tower_size
        if side != self.image_size:
            pixels = F.interpolate(pixels, size=(side, side), mode="bicubic", align_corners=False)
        return (pixels - self.image_mean.to(pixels.dtype)) / self.image_std.to(pixels.dtype)

    def standardise(self, raw: Latents) -> Latents:
        """Return raw features as latents, in float32."""
        if not self.config.statistics:
            return raw
        return (raw.float() - self.latent_mean) / self.latent_scale

    def restore(self, latents: Latents) -> Latents:
        """Invert :meth:`standardise`."""
        if not self.config.statistics:
            return latents
        return latents.float() * self.latent_scale + self.latent_mean

    def decode(self, latents: Latents) -> Pixels:
        """Return pictures with values clamped to [0, 1]."""
        return self.decode_unclamped(latents).float().clamp(0, 1)

    def decode_unclamped(self, latents: Latents) -> Pixels:
        """Return the decoder's own values, which a training loss needs."""
        if self.decoder is None:
            raise ValueError("this latent space has no pixel decoder; load one to see pictures")
        check_latents(latents, self.num_tokens, self.dim)
        weight = self.decoder.embed.weight
        pixels: Tensor = self.decoder(self.restore(latents).to(weight.dtype))
        return pixels * self.image_std.to(pixels.dtype) + self.image_mean.to(pixels.dtype)
