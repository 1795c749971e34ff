"""The unified objective: flow matching on what is drawn plus cross-entropy on what is written.

Both are means over the whole step: all processes, all micro-batches (Scale-RAE, arXiv:2601.16208,
weighs them 2.0 and 1.0). Randomness belongs to the picture, not to the batch, so losses and
gradients do not depend on how a step is divided.

Shape legend:
    B batch      A pictures drawn      K times drawn for each      N latent tokens
    D latent channels      Q queries      H language-model width
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor, nn

from metaquery.flow import sample_times
from unimm.layout import IGNORE, Layout
from unimm.model import PARTS, UniMM

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
    """

    flow_weight: float = 2.0
    text_weight: float = 1.0
    times_per_picture: int = 1
    read_noise: float = 0.0

    def __post_init__(self) -> None:
        if self.times_per_picture < 1:
            raise ValueError(f"times_per_picture must be at least 1, got {self.times_per_picture}")
        if min(self.flow_weight, self.text_weight, self.read_noise) < 0:
            raise ValueError(
                f"flow_weight ({self.flow_weight}), text_weight ({self.text_weight}) and "
                f"read_noise ({self.read_noise}) must not be negative"
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


class Totals(NamedTuple):
    """What the means of a step are taken over, in all processes and micro-batches."""

    tokens: float
    pictures: float


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
        self, layout: Layout, pictures: Pictures, draws: Draws, of: Totals
    ) -> dict[str, Tensor]:
        """Return this micro-batch's share of the step's loss and of its parts.

        Args:
            layout: The sequences.
            pictures: To read and to draw.
            draws: The randomness.
            of: What the means are taken over.
        """
        hidden = self.model(layout, pictures.read)
        tokens, rows = self.model.token_losses(hidden, layout)
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
        return {"loss": loss, "flow": flow.detach(), "text": text.detach(), "by_task": by_task}


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


def with_read_noise(latents: Tensor, seeds: Tensor, largest: float) -> Tensor:
    """Return latents (I, N, D) with noise of up to ``largest`` standard deviation on each.

    The squared draw leaves most of them nearly clean.
    """
    if not largest:
        return latents
    device = latents.device
    noised = []
    for seed, picture in zip(seeds.tolist(), latents, strict=True):
        generator = Generator(device).manual_seed(seed)
        scale = torch.rand((), generator=generator, device=device).square() * largest
        noise = torch.randn(picture.shape, generator=generator, device=device)
        noised.append(picture + (scale * noise).to(picture.dtype))
    return torch.stack(noised)
