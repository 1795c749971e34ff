"""Where the pictures of a conversation come from, and how much of that is allowed."""

import base64
import binascii
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from math import sqrt
from pathlib import Path
from typing import Any, Literal
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import url2pathname

from PIL import Image

from unimm.errors import ImageError
from unimm.image import normalise_image, read_image

_TIMEOUT = 20.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceOptions:
    """What may be read, how large it may be, and who reads it.

    Args:
        allow_files: Whether paths and ``file://`` URIs are opened. A server says no: whoever
            writes the message would choose what is read from its disk.
        allow_urls: Whether ``http(s)://`` URLs are fetched, by this machine, from anywhere.
        max_bytes: Largest file, base64 text decoded, or download.
        max_pixels: Larger pictures are scaled down; far larger ones are refused unread.
        max_pictures: Most pictures of a conversation, frames of videos included.
        max_frames: Most frames of a video.
        reader: ``qwen-vl-utils`` resizes pictures as Qwen's models see them and reads videos;
            ``core`` does without; ``auto`` takes qwen-vl-utils where it is installed.
    """

    allow_files: bool = True
    allow_urls: bool = False
    max_bytes: int = 32 * 2**20
    max_pixels: int = 2048 * 2048
    max_pictures: int = 32
    max_frames: int = 16
    reader: Literal["auto", "core", "qwen-vl-utils"] = "auto"

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels", "max_pictures", "max_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.reader not in ("auto", "core", "qwen-vl-utils"):
            raise ValueError(
                f"unknown reader {self.reader!r}; choose from auto, core, qwen-vl-utils"
            )


def read_source(source: Any, options: SourceOptions, *, name: str) -> Image.Image:
    """Return the picture of a message as RGB, upright.

    Args:
        source: A path, ``file://`` URI, base64 ``data:`` URI, ``http(s)://`` URL, the bytes of a
            file, or an image.
        options: What is allowed.
        name: What to call it in an error.

    Raises:
        ImageError: It is no picture, too large, or comes from where none may.
    """
    if isinstance(source, Image.Image):
        return normalise_image(source, name=name)
    if isinstance(source, bytes):
        return read_image(_bounded(source, options, name), name=name)
    if isinstance(source, Path) or (isinstance(source, str) and _scheme(source) == "file"):
        path = local_path(source, options, name=name)
        return read_image(path, name=f"{name}: {path}")
    if not isinstance(source, str) or not source:
        raise ImageError(
            f"{name}: a picture must be a path, URI, URL or image, got {type(source).__name__}"
        )
    if _scheme(source) == "data":
        return read_image(_from_data_uri(source, options, name), name=name)
    return read_image(_fetch(source, options, name), name=f"{name}: {source}")


def local_path(source: str | Path, options: SourceOptions, *, name: str) -> Path:
    """Return the file that a path or ``file://`` URI names, if it may be read."""
    if not options.allow_files:
        raise ImageError(f"{name}: files are not read here; send the picture as a base64 data URI")
    path = Path(source).expanduser()
    if isinstance(source, str) and source.startswith("file:"):
        parts = urlsplit(source)
        if parts.netloc not in ("", "localhost"):
            raise ImageError(f"{name}: {source} is on another machine; a file URI has no host")
        path = Path(url2pathname(parts.path))
    if path.is_file() and path.stat().st_size > options.max_bytes:
        raise ImageError(f"{name}: {path} {_too_large(options)}")
    return path


def shrink(image: Image.Image, max_pixels: int) -> Image.Image:
    """Return the picture with at most so many pixels, its proportions kept."""
    width, height = image.size
    scale = sqrt(max_pixels / (width * height))
    if scale >= 1:
        return image
    size = (max(1, int(width * scale)), max(1, int(height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC)


def is_url(source: str) -> bool:
    """Return whether a text names a picture on another machine."""
    return _scheme(source) in ("http", "https")


def _scheme(source: str) -> str:
    """Return what kind of text names a picture: file, data, http or https."""
    scheme, colon, _ = source[:8].partition(":")
    known = scheme.lower() in ("data", "http", "https") and bool(colon)
    return scheme.lower() if known else "file"


def _from_data_uri(source: str, options: SourceOptions, name: str) -> bytes:
    header, comma, text = source.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise ImageError(f"{name}: a data URI must be base64: data:image/png;base64,...")
    # Four characters hold three bytes; checked before there is a second copy.
    if len(text) // 4 * 3 > options.max_bytes + 2:
        raise ImageError(f"{name}: the data URI {_too_large(options)}")
    try:
        content = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"{name}: the data URI is no base64: {error}") from None
    return _bounded(content, options, name)


def _fetch(url: str, options: SourceOptions, name: str) -> bytes:
    if not options.allow_urls:
        raise ImageError(
            f"{name}: URLs are not fetched unless allowed (allow_urls, --allow-urls); allow it, or "
            f"download {url[:100]} and name the file"
        )
    request = urllib.request.Request(url, headers={"User-Agent": "unimm"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            content: bytes = response.read(options.max_bytes + 1)
    except (URLError, HTTPException, OSError, ValueError) as error:
        if isinstance(error, HTTPError):  # it is the answer, too, with its connection
            error.close()
        raise ImageError(f"{name}: cannot fetch {url[:200]}: {error}") from None
    return _bounded(content, options, name)


def _bounded(content: bytes, options: SourceOptions, name: str) -> bytes:
    if len(content) > options.max_bytes:
        raise ImageError(f"{name}: the picture {_too_large(options)}")
    return content


def _too_large(options: SourceOptions) -> str:
    return f"is larger than {options.max_bytes:,} bytes; make it smaller"
