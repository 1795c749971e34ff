import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unimm.errors import ImageError
from unimm.image import (
    MAX_PIXELS,
    contact_sheet,
    fit_image,
    images_to_pixels,
    pixels_to_images,
    read_image,
    save_png,
)


def gradient(width: int = 12, height: int = 8) -> Image.Image:
    values = np.arange(width * height * 3, dtype=np.uint8).reshape(height, width, 3)
    return Image.fromarray(values)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that claims a size and has no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


def test_a_png_survives_writing_and_reading_with_its_text(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    save_png(gradient(), path, text={"prompt": "un café", "seed": "3"})
    assert np.array_equal(np.asarray(read_image(path)), np.asarray(gradient()))
    with Image.open(path) as image:
        assert image.info == {"prompt": "un café", "seed": "3"}


def test_pixels_survive_the_way_there_and_back() -> None:
    image = fit_image(gradient(), 8)
    (back,) = pixels_to_images(images_to_pixels([image], size=8))
    assert np.array_equal(np.asarray(back), np.asarray(image))


def test_pixels_are_rgb_from_0_to_1_and_clipped_on_the_way_back() -> None:
    pixels = images_to_pixels([Image.new("RGB", (4, 4), (255, 0, 51))], size=4)
    assert pixels.shape == (1, 3, 4, 4)
    assert torch.allclose(pixels[0, :, 0, 0], torch.tensor([1.0, 0.0, 0.2]))
    (image,) = pixels_to_images(torch.full((1, 3, 2, 2), 1.5))
    assert image.getpixel((0, 0)) == (255, 255, 255)


def test_no_pictures_make_an_empty_batch() -> None:
    assert images_to_pixels([], size=4).shape == (0, 3, 4, 4)


def test_a_picture_is_cropped_around_its_centre() -> None:
    image = Image.new("RGB", (30, 10), "red")
    image.paste("blue", (10, 0, 20, 10))
    assert set(fit_image(image, 10).get_flattened_data()) == {(0, 0, 255)}


def test_a_rotated_photograph_is_read_upright() -> None:
    image = Image.new("RGB", (16, 8), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    assert read_image(encoded(image, "JPEG", exif=exif)).size == (8, 16)


def test_transparent_parts_are_white() -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert read_image(encoded(image, "PNG")).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 0)
    assert read_image(encoded(palette, "PNG", transparency=0)).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bit_grey_is_scaled() -> None:
    image = Image.fromarray(np.full((4, 4), 32768, dtype=np.uint16))
    assert read_image(encoded(image, "PNG")).getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
def test_the_usual_formats_are_read(kind: str) -> None:
    image = read_image(encoded(gradient(), kind))
    assert (image.mode, image.size) == ("RGB", (12, 8))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
def test_a_truncated_picture_is_refused_wherever_it_ends(kind: str) -> None:
    content = encoded(gradient(40, 40), kind)
    for length in range(0, len(content) * 3 // 4, max(1, len(content) // 40)):
        with pytest.raises(ImageError):
            read_image(content[:length])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
def test_a_damaged_picture_is_read_or_refused_but_never_a_bug(kind: str) -> None:
    content = encoded(gradient(40, 40), kind)
    generator = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(content)
        for position in generator.integers(len(content), size=3):
            damaged[position] = generator.integers(256)
        with contextlib.suppress(ImageError):
            assert read_image(bytes(damaged)).mode == "RGB"


@pytest.mark.parametrize("content", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg/>"])
def test_what_is_no_picture_is_refused(content: bytes) -> None:
    with pytest.raises(ImageError, match="is no picture"):
        read_image(content, name="a.png")


@pytest.mark.parametrize("side", [MAX_PIXELS // 1000, 60_000])
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(side: int) -> None:
    with pytest.raises(ImageError, match="make it smaller"):
        read_image(png_header(1001 if side < 60_000 else side, side))


def test_a_missing_file_or_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="there is no file"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(ImageError, match="is not a file"):
        read_image(tmp_path)


@pytest.mark.parametrize("count", [1, 2, 5, 8, 16])
def test_a_sheet_shows_every_picture_and_frames_the_chosen_one(count: int) -> None:
    images = [Image.new("RGB", (64, 64), (index * 15, 0, 255)) for index in range(count)]
    sheet = contact_sheet(images, ["x"] * count, chosen=count - 1)
    colors = {color for _, color in sheet.getcolors(1 << 20) or []}
    assert {(index * 15, 0, 255) for index in range(count)} <= colors
    assert (0x0A, 0x7D, 0x28) in colors


def test_a_sheet_needs_a_caption_for_every_picture() -> None:
    with pytest.raises(ValueError, match="1 pictures and 2 captions"):
        contact_sheet([gradient()], ["a", "b"])
