"""The latents of a convolutional autoencoder: diffusers' AutoencoderKL, as FLUX has it.

What Scale-RAE (arXiv:2601.16208) compares representation latents with. They hold pixels, not
meaning, so a model that draws them sees by a vision tower: ``vision`` of
:class:`unimm.config.UniMMConfig`.

Shape legend:
    B batch      C channels, h x w grid of the autoencoder      p side of a token in that grid
    N = (h/p)(w/p) latent tokens      D = C*p*p latent channels
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn

from unimm.errors import MissingExtraError
from unimm.latents.space import Latents, LatentSpaceConfig, Pixels, check_latents, check_pixels


class VAELatents(nn.Module):
    """A frozen AutoencoderKL: its posterior, shifted and scaled, p x p grid points to a token.

    ``latents = (z - shift_factor) * scaling_factor``, and a token's channels are (C, p, p) in this
    order. :meth:`encode` takes the posterior's mean for z, so that equal pictures have equal
    latents; :meth:`sample` draws z, as Scale-RAE's training does for every target.
    """

    vae: Any  # of diffusers

    def __init__(self, config: LatentSpaceConfig) -> None:
        super().__init__()
        self.config = config
        self.image_size = config.image_size
        self.num_tokens = config.num_tokens
        self.dim = config.dim
        self.vae = build_autoencoder(config.tower)
        self.patch = config.patch_size // config.stride
        self.scale = float(self.vae.config.scaling_factor)
        self.shift = float(self.vae.config.shift_factor or 0.0)

    def encode(self, pixels: Pixels) -> Latents:
        """Return the means of the pictures' latents."""
        mean, _ = self._posterior(pixels)
        return self._to_tokens(mean).to(pixels.dtype)

    def sample(self, pixels: Pixels, generators: Sequence[Generator]) -> Latents:
        """Return latents drawn from each picture's posterior, by a generator of its own."""
        mean, deviation = self._posterior(pixels)
        noise = torch.stack(
            [
                torch.randn(mean.shape[1:], generator=generator, device=generator.device)
                for generator in generators
            ]
        )
        drawn = mean + deviation * noise.to(mean)
        return self._to_tokens(drawn).to(pixels.dtype)

    def decode(self, latents: Latents) -> Pixels:
        """Return pictures with values clamped to [0, 1]."""
        check_latents(latents, self.num_tokens, self.dim)
        side = self.image_size // self.config.stride
        planes = F.fold(latents.float().mT, (side, side), self.patch, stride=self.patch)
        planes = planes / self.scale + self.shift  # (B, C, h, w)
        pixels: Tensor = self.vae.decode(planes.to(self.vae.dtype), return_dict=False)[0]
        return ((pixels.float() + 1) / 2).clamp(0, 1)

    def _posterior(
        self, pixels: Pixels
    ) -> tuple[Float[Tensor, "B C h w"], Float[Tensor, "B C h w"]]:
        """Return mean and standard deviation of z, in float32."""
        check_pixels(pixels, self.image_size)
        centred = (pixels * 2 - 1).to(self.vae.dtype)
        posterior = self.vae.encode(centred, return_dict=False)[0]
        return posterior.mean.float(), posterior.std.float()

    def _to_tokens(self, planes: Float[Tensor, "B C h w"]) -> Latents:
        scaled = (planes - self.shift) * self.scale
        return F.unfold(scaled, self.patch, stride=self.patch).mT


def build_autoencoder(config: dict[str, Any]) -> nn.Module:
    """Return diffusers' AutoencoderKL of its own configuration, with random weights.

    Raises:
        MissingExtraError: diffusers is not installed.
        ValueError: The configuration is none of its, or of another normalisation.
    """
    try:
        from diffusers import AutoencoderKL
    except ImportError:
        raise MissingExtraError("diffusers", extra="vae") from None
    if config.get("latents_mean") or config.get("latents_std"):
        raise ValueError("latents_mean and latents_std of an AutoencoderKL are not supported")
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        model: nn.Module = AutoencoderKL(**settings)
    except TypeError as error:
        raise ValueError(f"tower is no configuration of an AutoencoderKL: {error}") from None
    return model
