"""Stage (b): the pixel decoder alone, on frozen latents with noise (RAE, arXiv:2510.11690).

Shape legend:
    B batch      N latent tokens      D latent channels
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from unimm.checkpoint import load_model, read_config, save_checkpoint
from unimm.scenes import Grammar, blend_colours
from unimm.tokenizer import load_tokenizer

from ..config import OptimizerConfig, RunConfig
from ..data.scenes import SceneSample, pixels_of, render_samples, sample_scenes, step_rng
from ..loop import LossReport
from ..optimizer import ParameterGroup, parameter_groups
from ..ranks import ALONE, Ranks, run_device
from .picture_stage import PictureStage

STREAM = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig:
    """A run of the decoder stage.

    Args:
        run: Length, place, machine.
        init: Model directory of the vision stage.
        optimizer: AdamW and its schedule.
        batch_size: Pictures a step.
        max_noise: Largest standard deviation of the noise on latents; a picture's is uniform
            below it, so that the decoder also reads what a sampler leaves imperfect.
        clean_share: Share of pictures whose latents get no noise.
        l1_weight: Of the mean absolute error.
        l2_weight: Of the mean squared error.
        edge_weight: How much more an error at a full-contrast edge counts than one on a plain
            surface: edges are few pixels, but they are what tells shapes apart.
        visible_weight: Of the mean visible error: how far a pixel's colour is off beyond
            ``visible_margin``. Faint lines beside an edge add little to the other errors, and
            yet are seen as objects.
        visible_margin: Distance of colours in RGB, each channel in [0, 1], that nobody sees.
        blend_share: Share of pictures whose colours lie between two of the grammar's. A decoder
            that saw the named ones alone knows which shapes come in which colour, and distorts
            the others.
        grammar: Keys of the stored grammar to narrow, such as ``sizes: [large]``.
    """

    run: RunConfig
    init: Path
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    batch_size: int = 128
    max_noise: float = 0.5
    clean_share: float = 0.5
    l1_weight: float = 1.0
    l2_weight: float = 10.0
    edge_weight: float = 4.0
    visible_weight: float = 0.0
    visible_margin: float = 0.1
    blend_share: float = 0.0
    grammar: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.blend_share <= 1:
            raise ValueError(f"blend_share must be from 0 to 1, got {self.blend_share}")


class DecoderStage(PictureStage):
    """Train the decoder of a model whose tower stays as it is."""

    def __init__(self, config: DecoderConfig, ranks: Ranks = ALONE) -> None:
        self.config, self.ranks = config, ranks
        self.device = run_device(config.run.device, ranks)
        stored, _ = read_config(config.init)
        self.tokenizer = load_tokenizer(config.init)
        self.model = load_model(config.init, stored, device=self.device, dtype=torch.float32).to(
            getattr(torch, config.run.precision)
        )
        grammar = Grammar.from_dict({**(stored.grammar or {}), **config.grammar})
        super().__init__(config.run, self.model, grammar)
        decoder = self.model.latents.decoder
        if decoder is None:
            raise ValueError(f"{config.init} has no pixel decoder to train")
        self.decoder = decoder.requires_grad_(True).train()

    def groups(self) -> list[ParameterGroup]:
        return parameter_groups([("decoder", list(self.decoder.parameters()))], self.decoder)

    def batch(self, step: int) -> Tensor:
        rng = step_rng(self.config.run.seed, STREAM, self.ranks.place(step))
        samples = sample_scenes(rng, self.grammar, self.config.batch_size)
        if self.config.blend_share:
            samples = [self._blended(sample, rng) for sample in samples]
        return render_samples(samples)

    def _blended(self, sample: SceneSample, rng: np.random.Generator) -> SceneSample:
        if rng.random() >= self.config.blend_share:
            return sample
        return replace(sample, scene=blend_colours(sample.scene, rng, self.grammar))

    def loss(self, batch: Tensor, *, step: int, generator: Generator) -> LossReport:
        config = self.config
        pixels = pixels_of(batch.to(self.device), self.model.dtype)
        with torch.no_grad():
            latents = self.model.latents.encode(pixels)
        shape = (len(latents), 1, 1)
        scale = torch.rand(shape, generator=generator, device=self.device) * config.max_noise
        noise = torch.randn(latents.shape, generator=generator, device=self.device)
        num_clean = round(config.clean_share * len(latents))
        scale[:num_clean] = 0
        noised = latents + (scale * noise).to(latents.dtype)
        error = self.model.latents.decode_unclamped(noised).float() - pixels.float()
        squared = error.square()
        weight = 1 + config.edge_weight * edge_strength(pixels.float())
        l1, l2 = (weight * error.abs()).mean(), (weight * squared).mean()
        loss = config.l1_weight * l1 + config.l2_weight * l2
        parts = {"l1": l1, "l2": l2}
        if config.visible_weight:
            parts["visible"] = visible_error(error, config.visible_margin).mean()
            loss = loss + config.visible_weight * parts["visible"]
        if num_clean:
            parts["psnr_db"] = -10 * squared[:num_clean].detach().mean().log10()
        return LossReport(loss, parts, len(latents))

    def export(self, directory: Path) -> None:
        save_checkpoint(
            directory,
            self.model,
            self.tokenizer,
            readme="Decoder stage: see the stages before.\n",
        )


def visible_error(error: Tensor, margin: float) -> Tensor:
    """Return how far each pixel's colour is off beyond a margin, (B, 3, S, S) -> (B, S, S)."""
    return F.relu(error.norm(dim=1) - margin)


def edge_strength(pixels: Tensor) -> Tensor:
    """Return how much the pixels around each one differ, (B, 1, S, S) in [0, 1].

    The largest range of any channel over a 3 x 3 neighbourhood.
    """
    highest = F.max_pool2d(pixels, 3, stride=1, padding=1)
    lowest = -F.max_pool2d(-pixels, 3, stride=1, padding=1)
    return (highest - lowest).amax(dim=1, keepdim=True)
