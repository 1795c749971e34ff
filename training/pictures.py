"""A batch's pictures as latents: those to read as the model sees, those to draw as it draws.

Shape legend:
    I pictures read      A pictures drawn      N latent tokens      D latent channels
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from unimm.config import UniMMConfig
from unimm.latents import LatentSpaceConfig
from unimm.latents.vae import VAELatents
from unimm.model import UniMM

from .batch import Blanks, TrainingBatch, mixed_seed
from .data.scenes import pixels_of

_POSTERIOR = 2  # purpose of a seed derived from a picture's own


@dataclass(frozen=True, slots=True)
class PictureEncoder:
    """Encodes pictures that do not come from a cache.

    A VAE's latents are drawn from its posterior, as Scale-RAE trains on them, by a generator of the
    picture's own; a cache holds the posterior's mean.
    """

    model: UniMM

    @torch.no_grad()
    def read(self, batch: TrainingBatch) -> Float[Tensor, "I N D"]:
        """Return the pictures to read, in float32."""
        if batch.read.dtype != torch.uint8:
            return batch.read.float()
        latents: Tensor = self.model.seen.encode(pixels_of(batch.read, self.model.dtype))
        return latents.float()

    @torch.no_grad()
    def drawn(self, batch: TrainingBatch) -> Float[Tensor, "A N D"]:
        """Return the pictures to draw, in float32."""
        if batch.drawn.dtype != torch.uint8:
            return batch.drawn.float()
        space, pixels = self.model.latents, pixels_of(batch.drawn, self.model.dtype)
        if not isinstance(space, VAELatents):
            latents: Tensor = space.encode(pixels)
            return latents.float()
        seeds = [mixed_seed(seed, _POSTERIOR) for seed in batch.drawn_seeds.tolist()]
        generators = [Generator().manual_seed(seed) for seed in seeds]
        return space.sample(pixels, generators).float()


def blanks(config: UniMMConfig, *, cached: bool) -> Blanks:
    """Return pictures of a run's form that stand in where there is none to read, or to draw."""

    def blank(space: LatentSpaceConfig) -> Tensor:
        if cached:
            return torch.zeros((space.num_tokens, space.dim))
        return torch.zeros((3, space.image_size, space.image_size), dtype=torch.uint8)

    return Blanks(blank(config.seen), blank(config.latents))
