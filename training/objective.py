"""The unified objective: flow matching on what is drawn plus cross-entropy on what is written.

Both are means over the whole step: all processes, all micro-batches (Scale-RAE, arXiv:2601.16208,
weighs them 2.0 and 1.0). Randomness belongs to the picture, not to the batch, so losses and
gradients do not depend on how a step is divided.

Shape legend:
    B batch      A pictures drawn      K times drawn for each      N latent tokens
    D latent channels      Q queries      H language-model width      I pictures read
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from metaquery.flow import sample_times
from unimm.config import UniMMConfig
from unimm.errors import UserError
from unimm.layout import IGNORE, Layout
from unimm.model import PARTS, UniMM

from .batch import AlignedRows, PromptRows, Rereading, mixed_seed
from .imperfect import noised_by_seed, predicted
from .losses.behaviour import AlignmentConfig, answer_divergences
from .rereading import ALIGNMENT, READ_BACK, RereadingPlan

TASKS = ("drawing", "reading", "text")
"""Kinds of rows: with a picture to draw, with pictures to read only, with neither."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """Weights and randomness of the objective.

    Args:
        flow_weight: Of the flow-matching loss, a mean over pictures.
        text_weight: Of the cross-entropy, a mean over supervised tokens.
        times_per_picture: Times and noises drawn for each picture, K: one pass of the language
            model serves them all.
        read_noise: Largest standard deviation of noise on the pictures that are read.
        read_back_share: Share of the conversations with a prompt for their pictures (yes/no cases
            of the miniature world, captions) that are read with the generator's predictions of
            them from random times on the sampler's way, so that a search can trust what the model
            says of an unfinished picture.
        loss_chunks: Parts that the supervised tokens' logits are computed in, each once more in
            the backward pass; a micro-batch then never holds more than one part's.
        alignment: Of answers about imperfect pictures with those about clean ones.
    """

    flow_weight: float = 2.0
    text_weight: float = 1.0
    times_per_picture: int = 1
    read_noise: float = 0.0
    read_back_share: float = 0.0
    loss_chunks: int = 1
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)

    def __post_init__(self) -> None:
        for name in ("times_per_picture", "loss_chunks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if min(self.flow_weight, self.text_weight, self.read_noise) < 0:
            raise ValueError(
                f"flow_weight ({self.flow_weight}), text_weight ({self.text_weight}) and "
                f"read_noise ({self.read_noise}) must not be negative"
            )
        if not 0 <= self.read_back_share <= 1:
            raise ValueError(f"read_back_share must be in [0, 1], got {self.read_back_share}")

    @property
    def rereading(self) -> RereadingPlan:
        """How many conversations are read with imperfect pictures."""
        aligned = self.alignment
        return RereadingPlan(
            read_back=self.read_back_share,
            aligned=aligned.share if aligned.weight else 0.0,
            aligned_by_exit=aligned.weight > 0 and aligned.source == "exit",
        )


class Draws(NamedTuple):
    """The randomness of the flow loss, a row for every time of every picture (A*K, ...)."""

    t: Float[Tensor, "R"]
    noise: Float[Tensor, "R N D"]
    drop: Bool[Tensor, "R"] | None


class Pictures(NamedTuple):
    """Latents of a micro-batch's pictures.

    Args:
        read: Pictures to read.
        drawn: Pictures to draw.
        weights: 1 for one that counts, 0 for one that only runs along.
    """

    read: Float[Tensor, "I N D"]
    drawn: Float[Tensor, "A N D"]
    weights: Float[Tensor, "A"]


class Imperfect(NamedTuple):
    """What a micro-batch reads imperfectly.

    Args:
        rows: Which pictures, in which conversations.
        clean: All pictures to read as they are.
        seeds: Their seeds, on the CPU.
    """

    rows: Rereading
    clean: Float[Tensor, "I N D"]
    seeds: Tensor

    def seeds_of(self, pictures: Tensor, purpose: int) -> Tensor:
        """Return seeds of some of the pictures for one purpose."""
        chosen = self.seeds[pictures.cpu()].tolist()
        return torch.tensor([mixed_seed(seed, purpose) for seed in chosen])


class Totals(NamedTuple):
    """What the means of a step are taken over, in all processes and micro-batches."""

    tokens: float
    pictures: float
    aligned: float = 0.0


class JointObjective(nn.Module):
    """The loss as one module, for engines that watch a module's forward pass.

    The frozen latent space is no part of it: nobody needs to shard, gather or differentiate it.

    Args:
        model: Its trained parts become submodules.
        config: Weights and randomness.
    """

    def __init__(self, model: UniMM, config: ObjectiveConfig) -> None:
        super().__init__()
        self.config = config
        parts: dict[str, nn.Module] = {part: model.part(part) for part in PARTS}
        del parts["latents"]
        self.parts = nn.ModuleDict(parts)
        self._model = (model,)  # in a tuple it does not become a submodule

    @property
    def model(self) -> UniMM:
        """The model whose parts these are."""
        return self._model[0]

    def forward(
        self,
        layout: Layout,
        pictures: Pictures,
        draws: Draws,
        of: Totals,
        imperfect: Imperfect | None = None,
    ) -> dict[str, Tensor]:
        """Return this micro-batch's share of the step's loss and of its parts.

        Args:
            layout: The sequences.
            pictures: To read and to draw.
            draws: The randomness.
            of: What the means are taken over.
            imperfect: What is read imperfectly.
        """
        read = pictures.read
        if imperfect is not None and imperfect.rows.read_back is not None:
            read = self._read_back(read, imperfect.rows.read_back, imperfect)
        hidden = self.model(layout, read)
        tokens, rows = self.model.token_losses(hidden, layout, chunks=self.config.loss_chunks)
        copies = self.config.times_per_picture
        states = self.model.query_states(hidden, layout).repeat_interleave(copies, dim=0)
        clean = pictures.drawn.repeat_interleave(copies, dim=0)
        losses = self.model.generator.losses(
            states, clean, t=draws.t, noise=draws.noise, drop=draws.drop
        )
        flow = (losses.view(-1, copies).mean(dim=1) * pictures.weights).sum() / max(
            of.pictures, 1.0
        )
        text = tokens.sum() / max(of.tokens, 1.0)
        loss = self.config.flow_weight * flow + self.config.text_weight * text
        task_sums = torch.zeros(len(TASKS), device=tokens.device, dtype=tokens.dtype)
        by_task = task_sums.index_add(0, row_tasks(layout)[rows], tokens.detach())
        parts = {"flow": flow.detach(), "text": text.detach(), "by_task": by_task}
        if imperfect is not None and imperfect.rows.aligned is not None:
            divergences = self._divergences(imperfect.rows.aligned, imperfect)
            alignment = divergences.sum() / max(of.aligned, 1.0)
            loss = loss + self.config.alignment.weight * alignment
            parts["alignment"] = alignment.detach()
        return {"loss": loss, **parts}

    def _read_back(self, read: Tensor, rows: PromptRows, imperfect: Imperfect) -> Tensor:
        """Return the pictures to read, some of them as the generator predicts them."""
        shift = self.model.generator.config.timestep_shift

        def draw_time(generator: Generator) -> Tensor:
            # The sampler's steps are even in time before the shift.
            return sample_times(
                1,
                distribution="uniform",
                shift=shift,
                generator=generator,
                device=generator.device,
            )

        clean = imperfect.clean[rows.pictures]
        seeds = imperfect.seeds_of(rows.pictures, READ_BACK)
        found = predicted(self.model, rows, clean, seeds, draw_time)[: rows.num_used]
        return read.index_copy(0, rows.pictures[: rows.num_used], found.to(read.dtype))

    def _divergences(self, rows: AlignedRows, imperfect: Imperfect) -> Tensor:
        """Return how far answers about imperfect pictures are from those about clean ones."""
        config, clean = self.config.alignment, imperfect.clean[rows.pictures]
        seeds = imperfect.seeds_of(rows.pictures, ALIGNMENT)

        def draw_time(generator: Generator) -> Tensor:
            return config.max_time * torch.rand(1, generator=generator, device=generator.device)

        if rows.prompts is None:
            changed = noised_by_seed(clean, config.noise, seeds)
        else:
            changed = predicted(self.model, rows.prompts, clean, seeds, draw_time, head="exit")
        return answer_divergences(self.model, rows.layout, clean, changed)


def row_tasks(layout: Layout) -> Tensor:
    """Return each row's number in ``TASKS``, (B,)."""
    count, length = layout.token_ids.shape
    tasks = layout.token_ids.new_full((count,), TASKS.index("text"))
    tasks[layout.image_index // length] = TASKS.index("reading")
    tasks[layout.query_index // length] = TASKS.index("drawing")
    return tasks


def task_tokens(layout: Layout) -> Tensor:
    """Return how many supervised tokens each task has."""
    counts = (layout.labels[:, 1:] != IGNORE).sum(dim=1)
    return counts.new_zeros(len(TASKS)).index_add(0, row_tasks(layout), counts)


def check_objective(config: ObjectiveConfig, model: UniMMConfig) -> None:
    """Raise UserError unless a model has what the objective asks for."""
    if model.vision is not None and (config.read_back_share or config.rereading.aligned_by_exit):
        raise UserError(
            "a model that draws in another space than it sees in cannot read what its generator "
            "predicts; set objective.read_back_share to 0 and objective.alignment.source to noise"
        )
    if config.rereading.aligned_by_exit and not model.generator.dit.exit_depth:
        raise UserError(
            "objective.alignment.source exit needs a DiT with an early exit; set "
            "model.config.generator.dit.exit_depth, or make the source noise"
        )


def draw(
    seeds: Tensor, latents: Float[Tensor, "A N D"], model: UniMM, config: ObjectiveConfig
) -> Draws:
    """Return the randomness of pictures, each from its own seed."""
    generator_config = model.generator.config
    device = latents.device
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    for seed, picture in zip(seeds.tolist(), latents, strict=True):
        generator = Generator(device).manual_seed(seed)
        copies = config.times_per_picture
        t = sample_times(
            copies,
            distribution=generator_config.time_distribution,
            shift=generator_config.timestep_shift,
            generator=generator,
            device=device,
        )
        noise = torch.randn((copies, *picture.shape), generator=generator, device=device)
        uniform = torch.rand(1, generator=generator, device=device)
        drop = uniform < generator_config.condition_dropout
        rows.append((t, noise, drop.expand(copies)))
    t, noise, drop = (torch.cat(column) for column in zip(*rows, strict=True))
    return Draws(t, noise, drop)
