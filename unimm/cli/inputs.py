"""What a person names on the command line to be looked at: a picture or a latents file."""

from pathlib import Path
from typing import TYPE_CHECKING

from unimm.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from unimm.latents_file import LatentsFile


def read_input(name: str, *, allow_urls: bool = False) -> "Image | LatentsFile":
    """Return the picture, or the latents of one picture, in a file; a picture also from a URL.

    Raises:
        UserError: It is neither, holds the latents of several pictures, or is a URL and none may
            be fetched.
    """
    from unimm.picture_sources import is_url

    path = Path(name)
    if is_url(name) or path.suffix.lower() != ".safetensors":
        return read_picture(name, allow_urls=allow_urls)
    from unimm.latents_file import load_latents

    file = load_latents(path)
    if len(file.latents) != 1:
        count = len(file.latents)
        raise UserError(f"{path} holds the latents of {count} pictures; name a file of one")
    return file


def read_picture(name: str, *, allow_urls: bool = False) -> "Image":
    """Return the picture in a file or at a URL.

    Raises:
        UserError: There is none, or it is a URL and none may be fetched.
    """
    from unimm.picture_sources import SourceOptions, is_url, read_source

    if is_url(name):
        return read_source(name, SourceOptions(allow_urls=allow_urls), name="picture")
    from unimm.image import read_image

    return read_image(Path(name).expanduser())


def as_model_input(source: "Image | LatentsFile", *, space: str) -> "Image | Tensor":
    """Return the picture or the latents (N, D) as a pipeline of that latent space takes them.

    Raises:
        UserError: The latents belong to another space.
    """
    from unimm.latents_file import LatentsFile

    return source.in_space(space)[0] if isinstance(source, LatentsFile) else source
