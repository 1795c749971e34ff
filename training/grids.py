"""Grids of pictures that show how far a run is."""

import torch
from PIL import Image
from torch import Tensor

from unimm.image import pixels_to_images
from unimm.latents import LatentSpace

_GAP_PX = 2


def reconstruction_grid(space: LatentSpace, originals: Tensor, *, columns: int = 8) -> Image.Image:
    """Return pairs of rows: pictures above, what is left after encoding and decoding below.

    Args:
        space: Encodes and decodes.
        originals: (B, 3, S, S) in [0, 1].
        columns: Pictures in a row.
    """
    decoded = space.decode(space.encode(originals))
    if decoded.shape != originals.shape:
        decoded = torch.nn.functional.interpolate(decoded, size=originals.shape[-2:])
    pairs = zip(torch.split(originals, columns), torch.split(decoded, columns), strict=True)
    rows = [row for pair in pairs for row in pair]
    return _paste([pixels_to_images(row) for row in rows])


def picture_grid(pixels: Tensor, *, columns: int = 8) -> Image.Image:
    """Return pictures row by row."""
    return _paste([pixels_to_images(row) for row in torch.split(pixels, columns)])


def _paste(rows: list[list[Image.Image]]) -> Image.Image:
    width, height = rows[0][0].size
    grid = Image.new(
        "RGB", (len(rows[0]) * (width + _GAP_PX), len(rows) * (height + _GAP_PX)), "white"
    )
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            grid.paste(picture, (x * (width + _GAP_PX), y * (height + _GAP_PX)))
    return grid
