"""Pictures: read them safely, fit them to a model, turn them into pixels and back, write them.

Pixels are (B, 3, height, width) RGB floats in [0, 1].
"""

import io
import struct
import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import (
    Image,
    ImageDraw,
    ImageFont,
    ImageOps,
    PngImagePlugin,
    UnidentifiedImageError,
)
from torch import Tensor

from unimm.errors import ImageError
from unimm.files import atomic_write

MAX_PIXELS = 50_000_000
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
# What Pillow's readers raise on damaged files.
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    struct.error,
    zlib.error,
)


def read_image(source: Path | bytes, *, name: str | None = None) -> Image.Image:
    """Return a picture as RGB, upright, transparent parts over white.

    Args:
        source: A file or its content.
        name: What to call it in an error; the path by default.

    Raises:
        ImageError: It is missing, no picture, truncated, or larger than ``MAX_PIXELS``.
    """
    name = name or (str(source) if isinstance(source, Path) else "the picture")
    if isinstance(source, Path) and not source.is_file():
        raise ImageError(f"{name} is not a file" if source.exists() else f"there is no file {name}")
    try:
        with warnings.catch_warnings():
            # Our own limit is lower than Pillow's; its other warnings come before its errors.
            warnings.simplefilter("ignore")
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(file, formats=FORMATS) as image:
                _check_size(image, name)
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image))
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(f"{name} has more than {MAX_PIXELS:,} pixels; make it smaller") from None
    except UnidentifiedImageError:
        raise ImageError(f"{name} is no picture; {', '.join(FORMATS)} can be read") from None
    except _UNREADABLE as error:
        raise ImageError(f"{name} is damaged or truncated: {error}") from None


def normalise_image(image: Image.Image, *, name: str = "the picture") -> Image.Image:
    """Return an opened picture as :func:`read_image` returns a file.

    Raises:
        ImageError: It is damaged or larger than ``MAX_PIXELS``.
    """
    _check_size(image, name)
    try:
        # A picture opened from a file is read only now.
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except _UNREADABLE as error:
        raise ImageError(f"{name} is damaged or truncated: {error}") from None


def fit_image(image: Image.Image, size: int) -> Image.Image:
    """Return the picture scaled and centre-cropped to a square of ``size`` pixels."""
    if image.size == (size, size):
        return image
    return ImageOps.fit(image, (size, size), method=Image.Resampling.BICUBIC)


def images_to_pixels(images: Sequence[Image.Image], *, size: int) -> Float[Tensor, "B 3 size size"]:
    """Return pictures as a batch of pixels, scaled and cropped to a square."""
    if not images:
        return torch.empty(0, 3, size, size)
    arrays = [np.asarray(fit_image(image.convert("RGB"), size)) for image in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


def pixels_to_images(pixels: Float[Tensor, "B 3 height width"]) -> list[Image.Image]:
    """Return a batch of pixels as pictures; values beyond [0, 1] are clipped."""
    array = (pixels.detach().float().clamp(0, 1) * 255).round().byte()
    return [Image.fromarray(picture) for picture in array.permute(0, 2, 3, 1).cpu().numpy()]


def contact_sheet(
    images: Sequence[Image.Image], captions: Sequence[str], *, chosen: int | None = None
) -> Image.Image:
    """Return all pictures on one sheet in reading order, captioned, the chosen one framed.

    Raises:
        ValueError: There is no picture, or not one caption for each.
    """
    if not images or len(images) != len(captions):
        raise ValueError(f"got {len(images)} pictures and {len(captions)} captions")
    side = max(128, *(max(image.size) for image in images))
    columns = min(len(images), max(1, round(len(images) ** 0.5 + 0.49)))
    rows = -(-len(images) // columns)
    font = ImageFont.load_default(size=max(11, side // 11))
    margin, caption_height = side // 16, round(font.getbbox("Ag")[3] * 1.4)
    cell = (side + margin, side + margin + caption_height)
    sheet = Image.new("RGB", (columns * cell[0] + margin, rows * cell[1] + margin), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x = margin + index % columns * cell[0]
        y = margin + index // columns * cell[1]
        sheet.paste(image.convert("RGB").resize((side, side), Image.Resampling.NEAREST), (x, y))
        color = "#0a7d28" if index == chosen else "#333333"
        if index == chosen:
            width = max(2, margin // 2)
            box = (x - width, y - width, x + side + width - 1, y + side + width - 1)
            draw.rectangle(box, outline=color, width=width)
        draw.text(
            (x + side // 2, y + side + margin // 2), caption, fill=color, font=font, anchor="ma"
        )
    return sheet


def save_png(image: Image.Image, path: Path, *, text: Mapping[str, str] | None = None) -> None:
    """Write a picture as PNG, whole or not at all, with text fields such as its prompt and seed.

    Raises:
        OutputError: The file cannot be written.
    """
    fields = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        fields.add_itxt(key, value)
    # Encoded in memory first, so that only writing can fail once the file is open.
    content = io.BytesIO()
    image.save(content, format="PNG", pnginfo=fields)
    with atomic_write(path) as file:
        file.write(content.getvalue())


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name} has {width} x {height} pixels; the limit is {MAX_PIXELS:,}, make it smaller"
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        # Pillow clips wide grey values instead of scaling them.
        values = np.asarray(image, dtype=np.float64)
        scale = 65535 if values.max(initial=0) > 255 else 255
        return Image.fromarray((values.clip(0, scale) * (255 / scale)).astype(np.uint8)).convert(
            "RGB"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
