"""Gate 1: do pictures survive the tower and the decoder?"""

from dataclasses import dataclass

import numpy as np
import torch

from unimm.image import images_to_pixels
from unimm.pipeline import Pipeline
from unimm.scenes import detect, judge

from .samples import TrueSample


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """Quality of encoding and decoding.

    Args:
        count: Pictures.
        pass_rate: Share whose decoded picture still shows exactly what its prompt says.
        psnr_db: Mean over pictures of the peak signal-to-noise ratio, peak 1.
    """

    count: int
    pass_rate: float
    psnr_db: float


def measure_reconstruction(
    pipeline: Pipeline, samples: list[TrueSample], *, batch_size: int = 64
) -> Reconstruction:
    """Encode and decode the pictures and let the detector judge them."""
    passed, psnr = [], []
    for start in range(0, len(samples), batch_size):
        chunk = samples[start : start + batch_size]
        pictures = [sample.picture for sample in chunk]
        decoded = pipeline.decode_images(pipeline.encode(pictures))
        before = images_to_pixels(pictures, size=64)
        after = images_to_pixels(decoded, size=64)
        error = (before - after).square().mean(dim=(1, 2, 3))
        psnr.append(-10 * error.clamp_min(1e-10).log10())
        passed += [
            judge(sample.prompt, detect(np.asarray(picture))).correct
            for sample, picture in zip(chunk, decoded, strict=True)
        ]
    return Reconstruction(
        count=len(samples),
        pass_rate=float(np.mean(passed)),
        psnr_db=torch.cat(psnr).mean().item(),
    )
