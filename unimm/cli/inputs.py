"""What a person names on the command line to be looked at: a picture or a latents file."""

from pathlib import Path
from typing import TYPE_CHECKING

from unimm.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from unimm.latents_file import LatentsFile


def read_input(path: Path) -> "Image | LatentsFile":
    """Return the picture, or the latents of one picture, in a file.

    Raises:
        UserError: The file is neither, or holds the latents of several pictures.
    """
    if path.suffix.lower() != ".safetensors":
        from unimm.image import read_image

        return read_image(path)
    from unimm.latents_file import load_latents

    file = load_latents(path)
    if len(file.latents) != 1:
        count = len(file.latents)
        raise UserError(f"{path} holds the latents of {count} pictures; name a file of one")
    return file


def as_model_input(source: "Image | LatentsFile", *, space: str) -> "Image | Tensor":
    """Return the picture or the latents (N, D) as a pipeline of that latent space takes them.

    Raises:
        UserError: The latents belong to another space.
    """
    from unimm.latents_file import LatentsFile

    return source.in_space(space)[0] if isinstance(source, LatentsFile) else source
