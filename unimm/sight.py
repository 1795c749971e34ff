"""How a model looks at pictures, its own among them.

A model of one latent space reads what it drew as it is. One that draws in another space than it
sees in, a VAE's for instance, goes by pixels: it decodes what it drew and encodes the picture anew.

Shape legend:
    B batch      K pictures      N latent tokens      D latent channels
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from unimm.batching import exact_batch_size
from unimm.image import images_to_pixels, pixels_to_images
from unimm.model import Part, UniMM
from unimm.placement import in_use
from unimm.verify import Verifier


@torch.no_grad()
def decode_latents(
    model: UniMM, latents: Float[Tensor, "B N D"], *, batch_size: int = 32
) -> Float[Tensor, "B 3 height width"]:
    """Return the pixels of latents, float32 on the CPU."""
    return _in_batches(model, "latents", model.latents.decode, latents, batch_size)


@torch.no_grad()
def encode_pixels(
    model: UniMM, pixels: Float[Tensor, "B 3 height width"], *, batch_size: int = 32
) -> Float[Tensor, "B N D"]:
    """Return the latents of pixels in the space that the model draws in, float32 on the CPU."""
    return _in_batches(model, "latents", model.latents.encode, pixels, batch_size)


@torch.no_grad()
def see_images(
    model: UniMM, images: Sequence[Image.Image], *, batch_size: int = 32
) -> Float[Tensor, "K N D"]:
    """Return pictures as the language model reads them, float32 on the CPU."""
    pixels = images_to_pixels(images, size=model.config.seen.image_size)
    part: Part = "latents" if model.vision is None else "vision"
    return _in_batches(model, part, model.seen.encode, pixels, batch_size)


def see_latents(
    model: UniMM, latents: Float[Tensor, "K N D"], *, batch_size: int = 32
) -> Float[Tensor, "K N D"]:
    """Return drawn latents as the language model reads them: themselves, or by way of pixels."""
    if model.vision is None:
        return latents
    images = pixels_to_images(decode_latents(model, latents, batch_size=batch_size))
    return see_images(model, images, batch_size=batch_size)


class PixelVerifier:
    """Scores drawn latents that the model cannot read, by the pictures that they decode to.

    Args:
        verifier: Scores latents of the space that the model sees in.
        model: The model.
        batch_size: Most pictures to decode or encode at once.
    """

    def __init__(self, verifier: Verifier, model: UniMM, *, batch_size: int) -> None:
        self.verifier, self.model, self.batch_size = verifier, model, batch_size

    def score(self, prompt: str, latents: Float[Tensor, "K N D"]) -> Float[Tensor, "K"]:
        seen = see_latents(self.model, latents, batch_size=self.batch_size)
        return self.verifier.score(prompt, seen)


def _in_batches(
    model: UniMM, part: Part, convert: Callable[[Tensor], Tensor], rows: Tensor, batch_size: int
) -> Tensor:
    size = exact_batch_size(batch_size, model.device, model.dtype)
    chunks = torch.split(rows, size)
    with in_use(model, part) as device:
        return torch.cat([convert(c.to(device, model.dtype)).float().cpu() for c in chunks])
