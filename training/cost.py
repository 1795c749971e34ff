"""What a step of the unified objective costs: parameters by part, operations, memory.

Operations are those of the model's matrix products, as is usual for model FLOPs utilisation
(Chowdhery et al. 2022, arXiv:2204.02311): a forward pass, and twice that backward for what is
trained, once for what only passes gradients on. Computing activations again is not counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from metaquery.layers import TimeEmbedding
from unimm.checkpoints.assemble import empty_parameters
from unimm.latents import LatentSpace, LatentSpaceConfig, build_latent_space
from unimm.model import UniMM

from .batch import ExampleLike

ZeroStage = Literal[0, 1, 2, 3]


@dataclass(frozen=True, slots=True)
class Work:
    """What a step handles.

    Args:
        positions: Of the language model, without padding.
        squared: Sum over rows of their squared length, for attention.
        tokens: Supervised tokens.
        drawn: Pictures times the times drawn for each.
        seen: Pictures that the frozen tower encodes to be read.
        targets: Pictures that are encoded to be drawn, by the same tower or by a VAE.
        longest: Positions of the longest conversation.
    """

    positions: float
    squared: float
    tokens: float
    drawn: float
    seen: float
    targets: float
    longest: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            positions=self.positions + other.positions,
            squared=self.squared + other.squared,
            tokens=self.tokens + other.tokens,
            drawn=self.drawn + other.drawn,
            seen=self.seen + other.seen,
            targets=self.targets + other.targets,
            longest=max(self.longest, other.longest),
        )

    def scaled(self, share: float) -> "Work":
        """Return a share of the work, of conversations as long."""
        return Work(
            positions=share * self.positions,
            squared=share * self.squared,
            tokens=share * self.tokens,
            drawn=share * self.drawn,
            seen=share * self.seen,
            targets=share * self.targets,
            longest=self.longest,
        )


NO_WORK = Work(0, 0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class PartSize:
    """Parameters of a part of a model."""

    part: str
    total: int
    trained: int


def part_sizes(model: UniMM) -> list[PartSize]:
    """Return the parameters of every part."""
    sizes = []
    for name in model.parts:
        parameters = list(model.part(name).parameters())
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        sizes.append(PartSize(name, sum(p.numel() for p in parameters), trained))
    return sizes


@dataclass(frozen=True, slots=True)
class StepCost:
    """Floating-point operations of a forward pass by what they grow with.

    Args:
        per_position: Of the language model.
        per_squared: Of its attention.
        per_token: Of its output embedding.
        per_drawn: Of the generator, as it is evaluated.
        per_drawn_in_training: Of the generator, both passes.
        per_seen: Of the encoder of pictures to read.
        per_target: Of the encoder of pictures to draw.
        passes: Forward passes that both passes of the language model are worth.
    """

    per_position: float
    per_squared: float
    per_token: float
    per_drawn: float
    per_drawn_in_training: float
    per_seen: float
    per_target: float
    passes: int

    @classmethod
    def of(cls, model: UniMM) -> "StepCost":
        """Return the cost of training a model; its weights may be on ``meta``."""
        config: Any = model.lm.model.config.get_text_config(decoder=True)
        head = model.lm.model.get_output_embeddings()
        language = _linear(model.language) - _linear(head)
        heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        drawn, drawn_in_training = _drawn(model)
        return cls(
            per_position=2 * language,
            per_squared=2 * config.num_hidden_layers * heads * head_dim,  # causal: half
            per_token=2 * _linear(head),
            per_drawn=drawn,
            per_drawn_in_training=drawn_in_training,
            per_seen=_encoding(model.config.seen, model.seen),
            per_target=_encoding(model.config.latents, model.latents),
            passes=_language_passes(model),
        )

    def flops(self, work: Work, *, without_gradient: Work = NO_WORK) -> float:
        """Return the operations of a step."""
        return (
            self.passes * self._language(work)
            + self._language(without_gradient)
            + self.per_drawn_in_training * work.drawn
            + self.per_drawn * without_gradient.drawn
            + self.per_seen * (work.seen + without_gradient.seen)
            + self.per_target * (work.targets + without_gradient.targets)
        )

    def _language(self, work: Work) -> float:
        return (
            self.per_position * work.positions
            + self.per_squared * work.squared
            + self.per_token * work.tokens
        )


def _language_passes(model: UniMM) -> int:
    if model.config.generator.exit_only:
        return 1
    # Gradients always pass through the language model to the queries.
    return 3 if _is_trained(model.language) else 2


def _drawn(model: UniMM) -> tuple[float, float]:
    """Return the operations of an evaluation of the generator, and of training it."""
    generator, tokens = model.generator, model.config.latents.num_tokens
    dit, config = generator.dit, generator.config.dit
    once = sum(_linear(m) for m in generator.modules() if isinstance(m, TimeEmbedding))
    square = 4 * tokens**2

    def forward(linear: int, attention: int) -> float:
        return 2 * linear * tokens + 2 * once + square * attention

    whole = forward(
        _linear(generator) - once,
        config.depth * config.hidden_dim + config.ddt_depth * config.ddt_dim,
    )
    if not generator.config.exit_only:
        return whole, 3 * whole
    way = [generator.connector, dit.latent_embed, *dit.blocks.layers[: config.exit_depth]]
    trunk = forward(sum(map(_linear, way)), config.exit_depth * config.hidden_dim)
    return whole, trunk + 3 * 2 * _linear(dit.exit) * tokens


def work_of(
    samples: Sequence[ExampleLike], *, latents: LatentSpaceConfig, num_queries: int, copies: int
) -> Work:
    """Return what a step of these samples handles; ``latents`` are those that are read."""
    from unimm.chat import TextSegment
    from unimm.layout import sequence_length

    lengths = [
        sequence_length(s.segments, num_image_tokens=latents.num_tokens, num_queries=num_queries)
        for s in samples
    ]
    tokens = sum(
        len(segment.token_ids)
        for sample in samples
        for segment in sample.segments
        if isinstance(segment, TextSegment) and segment.supervised
    )
    drawn = [picture for sample in samples for picture in sample.drawn]
    seen = [picture for sample in samples for picture in sample.read]
    return Work(
        positions=sum(lengths),
        squared=sum(length**2 for length in lengths),
        tokens=tokens,
        drawn=len(drawn) * copies,
        seen=sum(not picture.is_floating_point() for picture in seen),
        targets=sum(not picture.is_floating_point() for picture in drawn),
        longest=max(lengths, default=0),
    )


def state_bytes(
    sizes: Sequence[PartSize], stage: ZeroStage, *, ranks: int, itemsize: int, keeps_average: bool
) -> float:
    """Return the bytes of weights, gradients and optimiser in each of ``ranks`` processes.

    The frozen latent spaces are whole everywhere. Activations and buffers come on top.

    Args:
        sizes: Of the model's parts.
        stage: Of ZeRO.
        ranks: Processes.
        itemsize: Bytes of a computed parameter: 2 in bfloat16.
        keeps_average: Whether there is a moving average of the weights.
    """
    frozen_space = sum(size.total for size in sizes if size.part in ("latents", "vision"))
    weights = sum(size.total for size in sizes) - frozen_space
    trained = sum(size.trained for size in sizes)
    # float32: master, two moments, and perhaps the average.
    optimizer = trained * 4 * (4 if keeps_average else 3)
    shares = {"optimizer": 1, "gradients": 2, "weights": 3}
    divide = {name: ranks if stage >= least else 1 for name, least in shares.items()}
    return (
        frozen_space * itemsize
        + weights * itemsize / divide["weights"]
        + trained * itemsize / divide["gradients"]
        + optimizer / divide["optimizer"]
    )


def _linear(module: nn.Module | None) -> int:
    """Return the weights of a module's linear layers, which is what a position costs."""
    if module is None:
        return 0
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


def _is_trained(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return 2 * sum(p.numel() for p in parameters if p.requires_grad) > sum(
        p.numel() for p in parameters
    )


def _encoding(config: LatentSpaceConfig, space: LatentSpace) -> float:
    """Return the operations of encoding a picture; decoders are not run."""
    if config.kind != "flux_vae":
        return 2 * _linear(getattr(space, "tower", None)) * config.num_tokens
    with empty_parameters():
        autoencoder: Any = build_latent_space(config)
    pixels = torch.empty((1, 3, config.image_size, config.image_size), device="meta")
    with FlopCounterMode(display=False) as counter:
        autoencoder.encode(pixels)
    return float(counter.get_total_flops())
