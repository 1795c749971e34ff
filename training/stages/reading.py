"""Stage (c): language model and projector learn to read true pictures, before any are drawn.

Reading comes first: the same hidden states later condition the generator, so words that mean
nothing yet could not steer it. Tower and generator stay as they are.

Shape legend:
    B batch      N latent tokens      D latent channels
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from unimm.checkpoint import load_model, read_config, save_checkpoint
from unimm.layout import Layout
from unimm.model import UniMM
from unimm.scenes import Grammar
from unimm.tokenizer import load_tokenizer

from ..config import OptimizerConfig, RunConfig
from ..data.reading import ReadingBatch, ReadingBatchConfig, reading_batch
from ..data.scenes import CachedTemplate, pixels_of
from ..fast_attention import use_fast_attention
from ..fast_norm import use_fast_norms
from ..imperfect import noised
from ..loop import LossReport
from ..optimizer import ParameterGroup, parameter_groups
from ..ranks import ALONE, Ranks, run_device
from .picture_stage import PictureStage


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadingConfig:
    """A run of the reading stage.

    Args:
        run: Length, place, machine.
        init: Model directory of the stage before.
        optimizer: AdamW and its schedule.
        batch: What a step is made of.
        grammar: Keys of the stored grammar to narrow, such as ``sizes: [large]``.
        matching_weight: Of the cross-entropy on yes and no, against that on other answers.
        read_noise: Largest standard deviation of noise on the latents.
    """

    run: RunConfig
    init: Path
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    batch: ReadingBatchConfig = field(default_factory=ReadingBatchConfig)
    grammar: dict[str, Any] = field(default_factory=dict)
    matching_weight: float = 1.0
    read_noise: float = 0.3


class ReadingStage(PictureStage):
    """Train what reads; what sees and what draws are frozen."""

    def __init__(self, config: ReadingConfig, ranks: Ranks = ALONE) -> None:
        self.config, self.ranks = config, ranks
        self.device = run_device(config.run.device, ranks)
        stored, _ = read_config(config.init)
        self.tokenizer = load_tokenizer(config.init)
        self.model: UniMM = load_model(
            config.init, stored, device=self.device, dtype=torch.float32, attention="eager"
        ).to(getattr(torch, config.run.precision))
        grammar = Grammar.from_dict({**(stored.grammar or {}), **config.grammar})
        super().__init__(config.run, self.model, grammar)
        self.model.train_only(["language", "projector"])
        use_fast_norms(self.model.language)
        if self.device.type == "cpu":
            use_fast_attention(self.model.language)
        self.template = CachedTemplate(self.tokenizer, stored.chat)

    def groups(self) -> list[ParameterGroup]:
        return parameter_groups(self.model.parameter_groups().items(), self.model)

    def batch(self, step: int) -> ReadingBatch:
        return reading_batch(
            self.ranks.place(step),
            seed=self.config.run.seed,
            config=self.config.batch,
            grammar=self.grammar,
            template=self.template,
            model=self.model,
        )

    def loss(self, batch: ReadingBatch, *, step: int, generator: Generator) -> LossReport:
        config = self.config
        with torch.no_grad():
            pixels = pixels_of(batch.pictures.to(self.device), self.model.dtype)
            latents = noised(self.model.latents.encode(pixels), config.read_noise, generator)
        asked, matched = latents.split([config.batch.num_pictures, config.batch.matching_rows])
        reading, _ = self._loss(batch.reading.to(self.device), asked)
        matching, is_right = self._loss(batch.matching.to(self.device), matched)
        loss = reading + config.matching_weight * matching
        parts = {"reading": reading, "matching": matching, "matched_right": is_right}
        return LossReport(loss, parts, len(latents))

    def _loss(self, layout: Layout, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean cross-entropy, and the share of rows without a wrong token."""
        hidden = self.model(layout, latents)
        losses, rows = self.model.token_losses(hidden, layout)
        # A token with more than half the probability costs less than ln 2.
        worst = torch.zeros(len(latents), device=self.device)
        worst = worst.scatter_reduce(0, rows, losses.detach().float(), "amax")
        return losses.mean(), (worst < 0.693).float().mean()

    def export(self, directory: Path) -> None:
        save_checkpoint(directory, self.model, self.tokenizer, readme="Reading stage.\n")
