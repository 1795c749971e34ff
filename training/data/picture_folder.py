"""Pictures of a folder, cropped at random, as a pure function of their place in the run."""

import logging
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from unimm.errors import ImageError, UserError
from unimm.image import read_image

_SUFFIXES = (".bmp", ".jpg", ".jpeg", ".png", ".webp")
_LONGEST_RUN_OF_BAD_FILES = 32
_LOG = logging.getLogger(__name__)


class PictureFolder:
    """The pictures below a folder, every one once an epoch, in an order that the seed fixes.

    Args:
        folder: Searched to any depth.
        size: Side of the square crops, in pixels.
        scale: The shorter side becomes ``scale`` times ``size`` before the crop, as in RAE.
        seed: Of order and crops.

    Raises:
        UserError: There is no such folder, or it holds no picture.
    """

    def __init__(self, folder: Path, *, size: int, scale: float = 1.5, seed: int = 0) -> None:
        self.paths: list[Path] = sorted(
            p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES
        )
        if not self.paths:
            raise UserError(
                f"there is no picture below {folder}; images must name a folder with "
                f"{', '.join(_SUFFIXES)} files"
            )
        self.size = size
        self.scale = scale
        self.seed = seed
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def batch(self, first: int, count: int) -> UInt8[Tensor, "B 3 size size"]:
        """Return the pictures at places ``first`` to ``first + count`` of the run."""
        crops = [self._crop(place) for place in range(first, first + count)]
        return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()

    def _crop(self, place: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, 1, place])
        image = self._read(place)
        shorter = round(self.size * self.scale)
        factor = shorter / min(image.size)
        width, height = (max(shorter, round(side * factor)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left = int(rng.integers(width - self.size + 1))
        top = int(rng.integers(height - self.size + 1))
        return np.asarray(image.crop((left, top, left + self.size, top + self.size)))

    def _read(self, place: int) -> Image.Image:
        """Return the picture at a place, or the next one that can be read."""
        for ahead in range(_LONGEST_RUN_OF_BAD_FILES):
            path = self._path(place + ahead)
            try:
                return read_image(path)
            except ImageError as error:
                _LOG.warning("left out: %s", error)
        raise ImageError(
            f"{_LONGEST_RUN_OF_BAD_FILES} pictures in a row cannot be read, the last is {path}"
        )

    def _path(self, place: int) -> Path:
        epoch, index = divmod(place, len(self.paths))
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, 0, epoch])
            self._epoch, self._order = epoch, rng.permutation(len(self.paths))
        return self.paths[int(self._order[index])]
