"""Decode a sample's pictures and fit them to the latent space.

Shape legend:
    S side of a picture in pixels
"""

import json
from dataclasses import asdict, dataclass
from hashlib import blake2b

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

from unimm.errors import ImageError
from unimm.image import read_image

from .config import Fit, Resample
from .sample import SampleError


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """How a file becomes the square picture that an encoder sees.

    Args:
        image_size: Side in pixels.
        fit: ``stretch`` changes proportions, as Scale-RAE does; ``crop`` cuts the longer side.
        resample: Filter of the scaling.
    """

    image_size: int
    fit: Fit = "crop"
    resample: Resample = "bicubic"

    @property
    def digest(self) -> str:
        """A short hash of all settings."""
        text = json.dumps(asdict(self), sort_keys=True)
        return blake2b(text.encode(), digest_size=4).hexdigest()


def decode_picture(
    content: bytes, preprocessing: Preprocessing, *, name: str
) -> UInt8[Tensor, "3 S S"]:
    """Return a picture file as a square of the encoder's size.

    Raises:
        SampleError: It is no picture, damaged or too large.
    """
    try:
        image = read_image(content, name=name)
    except ImageError as error:
        raise SampleError(str(error)) from None
    size = (preprocessing.image_size, preprocessing.image_size)
    method = Image.Resampling[preprocessing.resample.upper()]
    if preprocessing.fit == "crop":
        image = ImageOps.fit(image, size, method=method)
    elif image.size != size:
        image = image.resize(size, method)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
