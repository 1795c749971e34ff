"""Stage (a): a vision tower that keeps what matters, with its decoder and its first reader.

SigLIP-2's losses (sigmoid image-text loss and captioning, arXiv:2502.14786) plus a pixel loss
through a decoder: a tower trained on words alone drops shape, and nothing after it can bring
that back. The decoder sees noised latents (as RAE's, arXiv:2510.11690), and here the noise
reaches the tower's gradient too, so that it spreads what matters over many channels.

Shape legend:
    B batch      N latent tokens      D latent channels      R rows that are read
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from unimm.checkpoint import save_checkpoint
from unimm.config import UniMMConfig
from unimm.layout import Layout
from unimm.model import UniMM
from unimm.scenes import Grammar, dense_caption
from unimm.tokenizer import train_tokenizer

from ..config import OptimizerConfig, RunConfig
from ..data.scenes import (
    CachedTemplate,
    pad_token_ids,
    pixels_of,
    reading_conversation,
    render_samples,
    sample_scenes,
    step_rng,
    tokenizer_texts,
)
from ..loop import LossReport
from ..optimizer import ParameterGroup, parameter_groups
from ..ranks import ALONE, Ranks, run_device
from .picture_stage import PictureStage
from .text_tower import ImageTextPair, TextTowerConfig

STREAM = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionConfig:
    """A run of the vision stage.

    Args:
        run: Length, place, machine.
        optimizer: AdamW and its schedule.
        model: The whole model; its generator is left untrained here.
        text_tower: The text side of the sigmoid loss.
        vocab_size: Of the tokenizer that is trained first.
        batch_size: Pictures a step.
        reading_batch_size: Of these, how many the language model reads.
        reading_length: Positions of a conversation, padded to one shape.
        num_questions: Turns of a conversation.
        pixel_weight: Of the pixel loss (mean absolute plus ten times mean squared error).
        sigmoid_weight: Of the image-text loss.
        reading_weight: Of the language model's cross-entropy.
        max_noise: Largest standard deviation of the noise on latents before decoding.
    """

    run: RunConfig
    model: UniMMConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    text_tower: TextTowerConfig = field(default_factory=TextTowerConfig)
    vocab_size: int = 512
    batch_size: int = 256
    reading_batch_size: int = 48
    reading_length: int = 112
    num_questions: int = 3
    pixel_weight: float = 1.0
    sigmoid_weight: float = 0.05
    reading_weight: float = 0.2
    max_noise: float = 0.6

    def __post_init__(self) -> None:
        if not 0 < self.reading_batch_size <= self.batch_size:
            raise ValueError(
                f"reading_batch_size must be from 1 to batch_size ({self.batch_size}), "
                f"got {self.reading_batch_size}"
            )
        if self.model.grammar is None:
            raise ValueError("model.grammar must say which miniature world to train on")


@dataclass(frozen=True, slots=True)
class VisionBatch:
    """Pictures, their captions, and conversations about the first R of them."""

    pictures: Tensor
    caption_ids: Tensor
    reading: Layout


class VisionStage(PictureStage):
    """Train tower, decoder, language model and projector together."""

    def __init__(self, config: VisionConfig, ranks: Ranks = ALONE) -> None:
        self.config, self.ranks = config, ranks
        grammar = Grammar.from_dict(config.model.grammar or {})
        super().__init__(config.run, UniMM(config.model, attention="eager"), grammar)
        seed = config.run.seed
        self.tokenizer = train_tokenizer(
            tokenizer_texts(grammar, seed=seed, count=4000), vocab_size=config.vocab_size
        )
        self.template = CachedTemplate(self.tokenizer, config.model.chat)
        self.model = nn.ModuleDict(
            {
                "unimm": self.unimm,
                "pair": ImageTextPair(
                    config.text_tower,
                    vocab_size=config.vocab_size,
                    vision_dim=config.model.latents.dim,
                ),
            }
        )
        self.device = run_device(config.run.device, ranks)
        self.model.to(self.device, getattr(torch, config.run.precision))
        self.unimm.train_only(["language", "projector", "latents"])
        self.unimm.latents.tower.set_attn_implementation("eager")

    @property
    def pair(self) -> ImageTextPair:
        return self.model["pair"]  # type: ignore[return-value]

    def groups(self) -> list[ParameterGroup]:
        text_tower = list(self.pair.parameters())
        return parameter_groups(
            [*self.unimm.parameter_groups().items(), ("text_tower", text_tower)], self.model
        )

    def batch(self, step: int) -> VisionBatch:
        config = self.config
        rng = step_rng(config.run.seed, STREAM, self.ranks.place(step))
        samples = sample_scenes(rng, self.grammar, config.batch_size)
        captions = [self.template.encode(dense_caption(s.scene, rng)) for s in samples]
        conversations = [
            reading_conversation(
                sample, self.template, rng, self.grammar, num_questions=config.num_questions
            )
            for sample in samples[: config.reading_batch_size]
        ]
        return VisionBatch(
            pictures=render_samples(samples),
            caption_ids=pad_token_ids(
                captions, length=config.text_tower.max_tokens, pad_id=self.template.pad_id
            ),
            reading=self.unimm.lay_out(
                conversations,
                pad_id=self.template.pad_id,
                length=config.reading_length,
                padding_side="right",
            ),
        )

    def loss(self, batch: VisionBatch, *, step: int, generator: Generator) -> LossReport:
        config, device = self.config, self.device
        dtype = self.unimm.dtype
        pixels = pixels_of(batch.pictures.to(device), dtype)
        latents = self.unimm.latents.encode(pixels)  # (B, N, D)
        pixel, clean_mse = self._pixel_loss(latents, pixels, generator)
        sigmoid = self.pair.loss(latents, batch.caption_ids.to(device))
        layout = batch.reading.to(device)
        hidden = self.unimm(layout, latents[: config.reading_batch_size])
        token_losses, _ = self.unimm.token_losses(hidden, layout)
        reading = token_losses.mean()
        loss = (
            config.pixel_weight * pixel
            + config.sigmoid_weight * sigmoid
            + config.reading_weight * reading
        )
        psnr = -10 * clean_mse.log10()
        parts = {"pixel": pixel, "sigmoid": sigmoid, "reading": reading, "psnr_db": psnr}
        return LossReport(loss, parts, config.batch_size)

    def _pixel_loss(
        self, latents: Tensor, pixels: Tensor, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the pixel loss on noised latents, and the squared error of the least noised."""
        shape = (len(latents), 1, 1)
        # Squared, so that most latents carry little noise.
        uniform = torch.rand(shape, generator=generator, device=latents.device)
        scale = self.config.max_noise * uniform.square()
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        noised = latents + (scale * noise).to(latents.dtype)
        error = self.unimm.latents.decode_unclamped(noised).float() - pixels.float()
        per_picture = error.square().mean(dim=(1, 2, 3))
        clean = per_picture.detach()[scale.flatten() < 0.02 * self.config.max_noise]
        return error.abs().mean() + 10 * per_picture.mean(), clean.mean()

    def export(self, directory: Path) -> None:
        save_checkpoint(
            directory,
            self.unimm,
            self.tokenizer,
            readme="Vision stage: tower, decoder and reader are trained, the generator is not.\n",
        )
