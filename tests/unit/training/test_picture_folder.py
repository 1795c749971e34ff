"""Pictures of a folder: an order, an epoch, a damaged file."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.data.picture_folder import PictureFolder
from unimm.errors import ImageError, UserError


def write_greys(folder: Path, count: int) -> Path:
    """Write pictures of one grey each, by which they are known again."""
    (folder / "below").mkdir(parents=True)
    for index in range(count):
        Image.new("RGB", (20 + index, 40), (10 * index,) * 3).save(folder / f"below/{index}.png")
    return folder


def greys(pictures: PictureFolder, first: int, count: int) -> list[int]:
    return [int(crop[0, 0, 0]) // 10 for crop in pictures.batch(first, count)]


def test_every_picture_comes_once_an_epoch_in_an_order_of_the_seed(tmp_path: Path) -> None:
    folder = write_greys(tmp_path, 7)
    pictures = PictureFolder(folder, size=16, seed=3)
    epochs = [greys(pictures, 7 * epoch, 7) for epoch in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert greys(pictures, 5, 4) == (epochs[0] + epochs[1])[5:9]
    again = PictureFolder(folder, size=16, seed=3)
    assert torch.equal(again.batch(9, 3), pictures.batch(9, 3))
    assert greys(PictureFolder(folder, size=16, seed=4), 0, 7) != epochs[0]


def test_crops_are_of_pictures_scaled_by_their_shorter_side(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 64, dtype=np.uint8)
    Image.fromarray(np.repeat(ramp[None, :, None], 32, axis=0).repeat(3, axis=2)).save(
        tmp_path / "ramp.png"
    )
    for scale in (1.0, 2.0):
        crop = PictureFolder(tmp_path, size=16, scale=scale).batch(0, 1)[0].float()
        # The ramp falls by 255 over twice the shorter side.
        slope = (crop[0, 8, 12] - crop[0, 8, 4]).item() / 8
        assert slope == pytest.approx(255 / (2 * 16 * scale), rel=0.2)


def test_a_damaged_picture_is_named_and_the_next_takes_its_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_greys(tmp_path, 3)
    (folder / "below/1.png").write_bytes(b"no picture")
    with caplog.at_level(logging.WARNING):
        seen = greys(PictureFolder(folder, size=16), 0, 3)
    assert set(seen) == {0, 2}
    assert "1.png is no picture" in caplog.text
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ImageError, match="32 pictures in a row"):
        PictureFolder(folder, size=16).batch(0, 1)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="images must name a folder"):
        PictureFolder(tmp_path, size=16)
